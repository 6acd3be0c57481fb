"""What SNS refuses: an invalid subject, and publishing without access to the topic's KMS key."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

import ministack.app as ministack
from ministack.core import iam_evaluator, router
from ministack.services import kms, sns

KEY_ACTIONS = ("kms:GenerateDataKey", "kms:Decrypt")
SUBJECT = 100  # characters


def install(region: str) -> None:
    """Check the subject and the access to the key before each Publish."""
    publish = ministack.SERVICE_HANDLERS["sns"]

    async def handle(
        method: str, path: str, headers: dict[str, str], body: bytes, query: dict[str, Any]
    ) -> Any:
        form = {k: v[0] for k, v in parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True).items()}
        if form.get("Action") == "Publish" and not _is_subject(form.get("Subject", "none")):
            return sns._error("InvalidParameter", "Invalid parameter: Subject", 400)
        key = topic_key(form.get("TopicArn", "")) if form.get("Action") == "Publish" else None
        if key is not None:
            caller = router.extract_access_key_id(headers)
            context = encryption_context(form["TopicArn"])
            for action in KEY_ACTIONS:
                if iam_evaluator.enforce(caller, action, "kms", region, key["Arn"], context):
                    return sns._error("KMSAccessDenied", f"{action} on {key['Arn']} is not allowed", 400)
        return await publish(method, path, headers, body, query)

    ministack.SERVICE_HANDLERS["sns"] = handle


def _is_subject(text: str) -> bool:
    """Return whether SNS accepts it: 1 to 100 characters without control characters (Publish)."""
    return 0 < len(text) <= SUBJECT and text.isprintable()


def topic_key(topic_arn: str) -> dict[str, Any] | None:
    """Return the customer managed KMS key of a topic, or None."""
    topic = sns._topics.get(topic_arn) or {}
    key_id = topic.get("attributes", {}).get("KmsMasterKeyId")
    key: dict[str, Any] | None = kms._resolve_key(key_id) if key_id else None
    return key


def service_may_publish(topic_arn: str, service: str, source_arn: str, account: str, region: str) -> bool:
    """Return whether the policies of the topic and its key allow a service to publish."""
    if not sns.topic_policy_allows(topic_arn, service, source_arn, account):
        return False
    key = topic_key(topic_arn)
    return key is None or all(_key_allows(key, service, action, topic_arn, region) for action in KEY_ACTIONS)


def encryption_context(topic_arn: str) -> dict[str, Any]:
    """Return the condition keys of SNS's requests to KMS (SNS developer guide, "Key terms")."""
    return {"kms:encryptioncontext:aws:sns:topicarn": topic_arn}


def _key_allows(key: dict[str, Any], service: str, action: str, topic_arn: str, region: str) -> bool:
    """Return whether the key's policy allows the service to publish to the topic.

    EventBridge's requests to KMS have neither aws:SourceArn nor aws:SourceAccount (SNS developer guide); for
    CloudWatch's neither is documented. A policy that requires one of the two denies every request.
    """
    context = iam_evaluator.EvalContext(
        principal_arn="*",
        principal_type="Service",
        principal_account="",
        action=action,
        resource_arn=key["Arn"],
        region=region,
        service_context=encryption_context(topic_arn),
    )
    result = iam_evaluator.evaluate_resource_policy(key.get("Policy") or "", context, service=service)
    return bool(result.decision == "Allow")
