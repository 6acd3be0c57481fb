"""A record of the calls that IAM allowed each role, for comparison with the roles' policies."""

from __future__ import annotations

from typing import Any

from ministack.core import iam_evaluator

# (role, action, resource ARN)
allowed: set[tuple[str, str, str]] = set()


def install() -> None:
    """Record every call of an assumed role that its policies allow."""
    evaluate = iam_evaluator.evaluate

    def evaluate_and_record(ctx: Any, policies: Any, *limits: Any) -> Any:
        result = evaluate(ctx, policies, *limits)
        if result.decision == "Allow" and ":assumed-role/" in ctx.principal_arn:
            allowed.add((ctx.principal_arn.split("/")[1], ctx.action, ctx.resource_arn))
        return result

    iam_evaluator.evaluate = evaluate_and_record
