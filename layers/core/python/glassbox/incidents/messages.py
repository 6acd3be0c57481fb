"""The message of a notification for each protocol of SNS, and its facts as JSON (docs/notification.schema.json).

Sizes are bounded: SNS accepts 262,144 bytes in all, EventBridge 262,144 bytes an event. The facts stand in the message
three times, the text once, the chat message twice; a character takes at most 4 bytes each time.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from glassbox.errors import printable
from glassbox.incidents.notifications import Notice

NOTIFICATION_DETAIL_TYPE = "Glassbox Notification"  # its detail are the facts
VERSION = 1
SUBJECT_CHARACTERS = 100  # of ASCII: SNS refuses more
SMS_CHARACTERS = 140  # of ASCII: one SMS
_TEXT_CHARACTERS = 8_000
_CHAT_CHARACTERS = 2_500  # Slack cuts a block of text after 3,000
_REASON_CHARACTERS = 1_000
_CHAT_FACTS = ("severity", "endpoint", "incident", "check", "class", "report", "link")
_STEPS = 5
_STEP_CHARACTERS = 500
# A class name may come from a client: in a chat it must not mention people or make a link of other text.
_INERT = str.maketrans({"<": "‹", ">": "›", "@": "＠"})


def by_protocol(notice: Notice) -> Mapping[str, str]:
    """Return the texts by protocol, as SNS's ``MessageStructure=json`` expects them.

    ``https`` is what Amazon Q Developer in chat applications subscribes with. ``default`` reaches Firehose and mobile
    push.
    """
    facts, chat = _json(facts_of(notice)), _json(chat_of(notice))
    return {
        "default": facts,
        "sqs": facts,
        "lambda": facts,
        "http": chat,
        "https": chat,
        "email": text_of(notice),
        "sms": sms_of(notice),
    }


def facts_of(notice: Notice) -> dict[str, Any]:
    """Return the facts for programs, version VERSION of docs/notification.schema.json."""
    facts: dict[str, Any] = {
        "version": VERSION,
        "event": notice.event,
        "severity": notice.severity,
        "deduplication_key": notice.deduplication_key,
        "endpoint": notice.endpoint,
        "subject": subject_of(notice),
        "text": text_of(notice),
        "next_steps": _parts(notice)[1],
    }
    if notice.incident:
        facts["incident"] = notice.incident
    if notice.report:
        facts["report"] = notice.report
    if notice.link:
        facts["link"] = notice.link
    if violation := notice.violation:
        facts["check"] = violation.check
        facts["reason"] = printable(violation.reason, _REASON_CHARACTERS)
        facts["window"] = {
            "start": f"{violation.window_start:%Y-%m-%dT%H:%M:%SZ}",
            "end": f"{violation.window_end:%Y-%m-%dT%H:%M:%SZ}",
        }
        if violation.predicted_class is not None:
            facts["class"] = str(violation.predicted_class)
    return facts


def chat_of(notice: Notice) -> dict[str, Any]:
    """Return a custom notification of Amazon Q Developer in chat applications.

    The service drops other payloads. All notifications of an incident are one thread. The facts are in
    ``additionalContext``, as strings.
    """
    body, steps = _parts(notice)
    facts = facts_of(notice)
    context: dict[str, str] = {name: facts[name] for name in _CHAT_FACTS if name in facts}
    if window := facts.get("window"):
        context |= {f"window_{end}": window[end] for end in ("start", "end")}
    subject = _inert(subject_of(notice))
    content: dict[str, Any] = {
        "textType": "client-markdown",
        "title": subject,
        "description": _inert(_cut(body, _CHAT_CHARACTERS)) or subject,
        "keywords": [notice.endpoint, notice.event, notice.severity],
    }
    if steps:
        content["nextSteps"] = [_inert(step) for step in steps]
    return {
        "version": "1.0",
        "source": "custom",
        "content": content,
        "metadata": {
            "threadId": notice.deduplication_key,
            "summary": subject,
            "eventType": f"glassbox-{notice.event}",
            "additionalContext": {name: _inert(value) for name, value in context.items()},
        },
    }


def sms_of(notice: Notice) -> str:
    """Return one line of at most SMS_CHARACTERS characters of ASCII."""
    reason = f" {notice.violation.reason}" if notice.violation else ""
    line = _ascii(f"{notice.subject}.{reason}")
    return line if len(line) <= SMS_CHARACTERS else f"{line[: SMS_CHARACTERS - 3]}..."


def subject_of(notice: Notice) -> str:
    """Return the subject, cut to SUBJECT_CHARACTERS characters of ASCII."""
    return _ascii(notice.subject)[:SUBJECT_CHARACTERS]


def text_of(notice: Notice) -> str:
    """Return the text of the e-mail, control characters escaped, a long text cut."""
    return _cut("\n".join(printable(line) for line in notice.text.split("\n")), _TEXT_CHARACTERS)


def _parts(notice: Notice) -> tuple[str, Sequence[str]]:
    """Return the text without its commands, and the next steps: a line "To …:" and each command below it."""
    body, steps = [], []
    for paragraph in re.split(r"\n{2,}", text_of(notice)):
        lines = paragraph.replace(" \\\n", "").split("\n")
        start = next((n for n, line in enumerate(lines) if re.fullmatch(r"To .*:", line)), len(lines))
        body.append("\n".join(lines[:start]))
        commands = [" ".join(line.split()) for line in lines[start + 1 :]]
        if commands:
            commands[0] = f"{lines[start]} {commands[0]}"
        steps += [_cut(command, _STEP_CHARACTERS) for command in commands]
    return "\n\n".join(filter(None, body)), steps[:_STEPS]


def _inert(text: str) -> str:
    return text.translate(_INERT).replace("](", "] (")


def _ascii(text: str) -> str:
    return printable(text).encode("ascii", "replace").decode()


def _cut(text: str, characters: int) -> str:
    more = len(text) - characters
    return f"{text[:characters]}… {more:,} more characters" if more > 0 else text


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)
