"""Class names from another container, from the capture file to the log, the e-mail and the incident report.

HTML is a valid class name, and the report escapes it. A name with control characters is not a class: the response
counts as unreadable, and its reason contains no control characters.
"""

import json
import unicodedata

import markupsafe
import pytest

import captures
import replays
from fakes import FakeObjects
from glassbox.aws.topic import Topic
from glassbox.incidents.events import read_violation
from glassbox.incidents.incident_report import write_report
from glassbox.monitoring.count_file import CountingDependencies, CountingSettings, check_file, count_file
from glassbox.violation import VIOLATION_DETAIL_TYPE
from world import NOW, World

HTML = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "Stop{{ 7 * 7 }}&lt;",
    "javascript:alert(1)",
]
CONTROLS = [
    "Stop\nSubject: all is well",
    "\x1b[2J\x1b[31mStop",
    "Stop\u202egpj",
    "a\x00b",
    "a\u2028b",
    "\x9b31m",
]
FORMS = {
    "ours": lambda name: {"predictions": [{"class": name, "label": None, "probability": 0.9}]},
    "scores": lambda name: [{"label": name, "score": 0.9}],
}


class Client:
    """A client of SNS."""

    def __init__(self):
        self.published = []

    def publish(self, **request):
        self.published.append(request)


def everything_shown(name, form):
    """Return every text that ops see, and the report, for 50 responses of the name and one of class 3."""
    body = b"".join(captures.line(FORMS[form](c)) + b"\n" for c in [name] * 50 + [3])
    counts, events = captures.FakeCounts(), captures.FakeEvents()
    settings = CountingSettings(threshold=0.5, unreadable_threshold=0.5)
    dependencies = CountingDependencies(
        settings=settings,
        replay_key=replays.key,
        captures=captures.FakeCaptures({captures.KEY: body}),
        counts=counts,
        events=events,
    )
    counted = count_file(captures.created(), NOW, dependencies)
    check_file(counted, dependencies)
    (event,) = events.events
    detail = json.loads(json.dumps(event[2]))  # as EventBridge carries it
    violation = read_violation({"detail-type": VIOLATION_DETAIL_TYPE, "detail": detail}, FakeObjects())
    world = World()
    world.run(violation)
    topic = Topic(sns := Client(), "arn")
    for notice in world.notices.published:
        topic.publish(notice)
    objects = FakeObjects()
    report = write_report(
        world.incident, bucket="b", objects=objects, counts=counts, variants=lambda cause: [cause.variant]
    )
    (page,) = (body.decode() for (_, key), body in objects.objects.items() if key.endswith("index.html"))
    log = [str(example) for example in counted.tally.examples]
    mails = [text for request in sns.published for text in json.loads(request["Message"]).values()]
    subjects = [request["Subject"] for request in sns.published]
    return counted, [*log, *subjects, *world.incident.timeline, *report.findings], mails, page


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", HTML)
def test_html_in_a_class_name_is_escaped_in_the_report(name, form):
    counted, lines, mails, page = everything_shown(name, form)
    assert counted.tally.counts.classes[name] == 50
    assert any(name in line for line in lines)  # the log and the time line show the name unchanged
    assert any(name in mail for mail in mails)  # plain text
    assert str(markupsafe.escape(name)) in page  # and no template was made of it
    assert name not in page or name == markupsafe.escape(name)
    assert page.count("<script") == page.count("<img src=x") == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CONTROLS, ids=ascii)
def test_control_characters_in_a_class_name_reach_no_log_mail_or_report(name, form):
    counted, lines, mails, page = everything_shown(name, form)
    assert counted.tally.counts.unreadable == 50
    assert set(counted.tally.counts.classes) == {3}
    shown = "".join(lines) + "".join(mails).replace("\n", "") + page.replace("\n", "")
    assert [c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")] == []
    for line in "\n".join(mails).split("\n"):
        assert not line.startswith("Subject: all is well")
