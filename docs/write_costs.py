"""Write docs/costs.md: what the stack of template.yaml costs, apart from the endpoint's own instances."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfnlint.decode import cfn_yaml

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE, PAGE = ROOT / "template.yaml", ROOT / "docs" / "costs.md"

#: US dollars in us-east-1, on demand, without free tiers: AWS's pricing pages.
PRICES = {
    "KMS key, a month": 1.0,
    "alarm, a month": 0.10,
    "custom metric, a month": 0.30,
    "dashboard, a month": 3.0,
    "S3 PUT": 0.005 / 1000,
    "S3 GET": 0.0004 / 1000,
    "SQS request": 0.40e-6,
    "Lambda request": 0.20e-6,
    "Lambda GB-second, x86": 0.0000166667,
    "DynamoDB write unit": 0.625e-6,
    "DynamoDB read unit": 0.125e-6,
    "CloudWatch Logs, GB": 0.50,
}
# metrics of a quiet month: those of an endpoint's variant, and those of the functions that run without an incident
METRICS_OF_A_VARIANT = 10
METRICS_OF_THE_STACK = 4
PREDICTIONS = 1_000_000
# of one capture file. SQS: a send, a receive and a delete. Units: one instance, see decisions.md.
SQS_REQUESTS, WRITE_UNITS, READ_UNITS, LOG_BYTES = 3, 1.1, 5, 2_000
# assumed, not measured on Lambda
SECONDS_OF_A_FILE, SECONDS_OF_A_PREDICTION, MEMORY_GB = 0.1, 0.0005, 0.5

HEAD = """# Costs

US dollars in us-east-1, on demand, without free tiers; list prices of June 2026. They do not
contain the endpoint's own instances, and data capture's storage. `make docs` computes this page
from `template.yaml`; a test compares the two. Check the prices of your region.
"""
TAIL = """Data capture writes a file per instance when a buffer is full or a time is over. The more
predictions a file holds, the less a prediction costs.

The duration of the function is an assumption: {file} s a file and {prediction} ms a prediction.
The DynamoDB units are [measured](decisions.md#the-counts-stored-form) for one instance.

## An incident

| item | amount |
|---|---|
| the swap and the restore | a second fleet of the endpoint's instances, some minutes each |
| the twin's requests | up to `MaxFlaggedReplays` and `MaxComparisonReplays` |
| the diagnosis | up to `MaxRepairRequests` requests |
| heat maps | one invocation of a function of 1 GB a trace, 1 to 3 s |

The hourly monitor job (`MonitorImageUri`) takes one instance for some minutes of each hour.
"""


def page(template: Mapping[str, Any]) -> str:
    """Return the page as Markdown."""
    return "\n".join([HEAD, _a_month(template), "", _predictions(), "", _tail()])


def _tail() -> str:
    return TAIL.format(file=SECONDS_OF_A_FILE, prediction=SECONDS_OF_A_PREDICTION * 1000)


def _a_month(template: Mapping[str, Any]) -> str:
    resources = template["Resources"].values()
    always = [r["Type"] for r in resources if "Condition" not in r]
    sometimes = [r["Type"] for r in resources if "Condition" in r]
    alarm, key = "AWS::CloudWatch::Alarm", "AWS::KMS::Key"
    rows = [
        (
            "KMS keys: signature of replays, notifications",
            always.count(key) + sometimes.count(key),
            "KMS key",
        ),
        ("alarms of an endpoint's stack", always.count(alarm), "alarm"),
        ("alarms of the monitor job, the diagnosis and the swap", sometimes.count(alarm), "alarm"),
        (
            "dashboard, of which an account has three free",
            always.count("AWS::CloudWatch::Dashboard"),
            "dashboard",
        ),
        (
            "custom metrics (`ClassMetrics` adds one a class)",
            METRICS_OF_A_VARIANT + METRICS_OF_THE_STACK,
            "custom metric",
        ),
    ]
    lines = ["## A month", "", "| item | number | USD |", "|---|---|---|"]
    lines += [f"| {name} | {n} | {n * PRICES[f'{what}, a month']:.2f} |" for name, n, what in rows]
    total = sum(n * PRICES[f"{what}, a month"] for _, n, what in rows)
    return "\n".join([*lines, f"| **sum** | | **{total:.2f}** |"])


def _predictions() -> str:
    sizes = (1, 100, 1000)
    rows = {item: [cost(item, size) for size in sizes] for item in ITEMS}
    rows["**sum**"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    head = "| " + " | ".join(["item", *(f"{size} a file" for size in sizes)]) + " |"
    lines = [
        f"| {item} | " + " | ".join(f"{usd:.3f}" for usd in values) + " |" for item, values in rows.items()
    ]
    return "\n".join(["## A million predictions", "", head, "|---|---|---|---|", *lines])


ITEMS = ("S3: the capture is written", "S3: it is read", "SQS", "Lambda", "DynamoDB", "logs")


def cost(item: str, predictions_of_a_file: int) -> float:
    """Return the cost of one of ITEMS for a million predictions, in USD."""
    files = PREDICTIONS / predictions_of_a_file
    seconds = files * SECONDS_OF_A_FILE + PREDICTIONS * SECONDS_OF_A_PREDICTION
    return {
        "S3: the capture is written": files * PRICES["S3 PUT"],
        "S3: it is read": files * PRICES["S3 GET"],
        "SQS": files * SQS_REQUESTS * PRICES["SQS request"],
        "Lambda": files * PRICES["Lambda request"] + seconds * MEMORY_GB * PRICES["Lambda GB-second, x86"],
        "DynamoDB": files
        * (WRITE_UNITS * PRICES["DynamoDB write unit"] + READ_UNITS * PRICES["DynamoDB read unit"]),
        "logs": files * LOG_BYTES / 1e9 * PRICES["CloudWatch Logs, GB"],
    }[item]


if __name__ == "__main__":
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}\n")
    PAGE.write_text(page(cfn_yaml.load(str(TEMPLATE))), encoding="utf-8")
