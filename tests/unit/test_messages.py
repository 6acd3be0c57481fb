"""The messages of each notification: valid against both schemas, bounded, inert in a chat."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from fakes import FakeObjects
from glassbox.incidents import notifications
from glassbox.incidents.events import read_violation
from glassbox.incidents.messages import by_protocol, chat_of, facts_of, sms_of, text_of
from glassbox.incidents.model import Limits, State
from glassbox.incidents.notifications import SEVERITIES, Notice
from notices import every_notification
from world import LINK, World, following

ROOT = Path(__file__).parents[2]
FACTS = json.loads((ROOT / "docs/notification.schema.json").read_text(encoding="utf-8"))
CHAT = json.loads(Path(__file__).with_name("chatbot.schema.json").read_text(encoding="utf-8"))
PROTOCOLS = {"default", "email", "http", "https", "sms", "sqs", "lambda"}
MESSAGE_BYTES = 262_144  # of SNS


@pytest.fixture
def violation(load_event):
    return read_violation(load_event("violation"), FakeObjects())


@pytest.fixture
def notices(violation):
    """Every notification, with every text at its bound and with usual texts."""
    world = World()
    world.run(violation)
    return [*every_notification(violation), *world.notices.published]


def problems(schema, value):
    return [error.message for error in Draft202012Validator(schema).iter_errors(value)]


def test_the_schemas_are_schemas():
    Draft202012Validator.check_schema(FACTS)
    Draft202012Validator.check_schema(CHAT)


def test_every_event_has_a_severity_a_schema_and_a_notification(notices):
    assert set(FACTS["properties"]["event"]["enum"]) == set(SEVERITIES) == {n.event for n in notices}
    assert set(FACTS["properties"]["severity"]["enum"]) == set(SEVERITIES.values())


def test_facts_match_their_schema(notices):
    for notice in notices:
        facts = facts_of(notice)
        assert problems(FACTS, facts) == []
        assert facts.keys() <= FACTS["properties"].keys()  # no field without a description


def test_chat_messages_match_the_schema_of_amazon_q(notices):
    for notice in notices:
        assert problems(CHAT, chat_of(notice)) == []


@pytest.mark.parametrize(
    "broken",
    [
        {"subject": "s", "text": "t"},
        {"version": 1.0, "source": "custom", "content": {"description": "d"}},
        {"version": "1.0", "source": "custom", "content": {"title": "without a description"}},
        {"version": "1.0", "source": "custom", "content": {"description": "d", "nextSteps": "one"}},
        {
            "version": "1.0",
            "source": "custom",
            "content": {"description": "d"},
            "metadata": {"additionalContext": {"n": 1}},
        },
    ],
)
def test_the_schema_of_amazon_q_refuses_other_payloads(broken):
    assert problems(CHAT, broken)


def test_each_protocol_has_its_text_within_the_limits_of_sns(notices):
    for notice in notices:
        texts = by_protocol(notice)
        assert texts.keys() == PROTOCOLS
        assert len(json.dumps(texts, ensure_ascii=False).encode()) < MESSAGE_BYTES
        assert json.loads(texts["sqs"]) == json.loads(texts["lambda"]) == facts_of(notice)
        assert json.loads(texts["https"]) == json.loads(texts["http"]) == chat_of(notice)
        assert texts["email"].count("\n") < 39
        assert texts["sms"].isascii()
        assert texts["sms"].isprintable()
        assert len(texts["sms"]) <= 140


@pytest.mark.parametrize("character", ["a", "é", "😀", '"', "\\", "\x00", "\u2028", "\ud800", "To x:\n"])
def test_any_text_fits(violation, character):
    long = replace(violation, reason=character * 20_000, predicted_class="c" * 64)
    notice = Notice(
        "failed", "e" * 63, character * 200, character * 50_000, "i" * 60, long, "s3://b/" + "k" * 900
    )
    message = json.dumps(by_protocol(notice), ensure_ascii=False).encode()
    assert len(message) < MESSAGE_BYTES
    assert len(json.dumps(facts_of(notice)).encode()) < MESSAGE_BYTES  # as EventBridge gets them
    assert problems(CHAT, chat_of(notice)) == []
    assert problems(FACTS, facts_of(notice)) == []


def test_begin_and_end_are_one_thread_and_another_incident_is_another(violation):
    world = World(cooldown_minutes=0)
    world.run(violation)
    world.run(following(violation, 2))
    threads = [chat_of(notice)["metadata"]["threadId"] for notice in world.notices.published]
    assert threads[0] == threads[1] != threads[2] == threads[3]
    first = world.notices.published[0]
    assert threads[0] == facts_of(first)["deduplication_key"] == first.attributes["deduplication_key"]


def test_the_same_incident_id_of_two_endpoints_is_two_threads():
    one, other = (Notice("failed", name, "s", "t", "20261123t102105-drift") for name in ("one", "other"))
    assert one.deduplication_key != other.deduplication_key


def test_the_chat_message_separates_the_commands_from_the_text(violation):
    world = World()
    world.run(violation)
    begun, _ = world.notices.published
    content = chat_of(begun)["content"]
    (step,) = content["nextSteps"]
    assert step == (
        "To stop it now: aws events put-events --entries 'Source=glassbox.operator,"
        'DetailType=Glassbox Command,Detail="{\\"endpoint\\": \\"traffic-signs\\", \\"action\\": \\"abort\\"}"\''
    )
    assert "aws " not in content["description"]
    assert violation.reason in content["description"]
    context = chat_of(begun)["metadata"]["additionalContext"]
    assert context["window_start"] == "2026-11-23T10:00:00Z"
    assert context["severity"] == "warning"


def test_the_command_of_a_next_step_is_one_that_a_shell_reads(violation):
    world = World()
    world.run(violation)
    (step,) = facts_of(world.notices.published[0])["next_steps"]
    command = step.removeprefix("To stop it now: ").removeprefix("aws ")
    shown = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, check=True, text=True
    )
    entries = shown.stdout.splitlines()[-1]
    detail = json.loads(entries.partition("Detail=")[2])
    assert json.loads(detail) == {"endpoint": "traffic-signs", "action": "abort"}


@pytest.mark.parametrize(
    "name", ["<!channel>", "@here", "<http://evil.example|report>", "[report](http://evil.example)"]
)
def test_a_class_name_neither_mentions_people_nor_hides_a_link(violation, name):
    notice = notifications.opened(
        replace(
            incident_of(violation), cause=replace(violation, reason=f"{name} 90 %", predicted_class=name)
        ),
        Limits(),
    )
    shown = json.dumps(chat_of(notice), ensure_ascii=False)
    assert not set("<>@") & set(shown)
    assert "](" not in shown
    assert name in text_of(notice)  # an e-mail is plain text


def incident_of(violation):
    world = World()
    world.swap(violation)
    assert world.incident.state is State.SWAPPING
    return world.incident


def test_the_sms_has_the_headline_and_the_reason(violation):
    world = World()
    world.swap(
        replace(violation, reason="Class 14 (Überholverbot) has 61 % of 105 predictions, more than 50 %")
    )
    (notice,) = world.notices.published
    assert sms_of(notice) == (
        "Glassbox traffic-signs: violation, swapping to the hooked model. "
        "Class 14 (?berholverbot) has 61 % of 105 predictions, more than 50 %"
    )


def test_a_violation_that_opens_no_incident_is_the_one_in_its_facts(violation):
    other = following(violation, 0, "drift")
    notice = notifications.cooling_down(incident_of(violation), other, other.window_end)
    assert facts_of(notice)["check"] == "drift"
    assert facts_of(notice)["incident"] == incident_of(violation).id


def test_a_notification_about_the_endpoint_alone_has_no_violation(notices):
    (notice,) = [notice for notice in notices if notice.event == "stale-twin"]
    facts = facts_of(notice)
    assert not facts.keys() & {"incident", "check", "reason", "class", "window", "report"}
    assert facts["deduplication_key"].endswith(".stale-twin")


def test_every_message_after_the_report_links_to_it(violation):
    world = World()
    world.run(violation)
    other = following(violation, 0, "drift")
    closed = world.incident
    for notice in (
        world.notices.published[-1],
        notifications.diagnosed(closed),
        notifications.cooling_down(closed, other, other.window_end),
        notifications.cap_reached(closed, other, Limits()),
        notifications.failed(replace(closed, headline="Glassbox: failed", failure="reason")),
    ):
        assert text_of(notice).count(LINK) == 1
        assert facts_of(notice)["link"] == chat_of(notice)["metadata"]["additionalContext"]["link"] == LINK
        step = f"To open the report of incident {closed.id}, signed in to AWS: {LINK}"
        assert step in chat_of(notice)["content"]["nextSteps"]


def test_no_message_links_to_a_report_that_is_not_written(violation):
    world = World()
    world.swap(violation)
    (notice,) = world.notices.published
    assert "https://" not in json.dumps(by_protocol(notice))
