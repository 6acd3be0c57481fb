"""The dashboard's body is valid, and shows metrics that exist."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Of AWS's services, in the widgets.
AWS_METRICS = {
    "AWS/SageMaker": {"Invocations", "Invocation4XXErrors", "Invocation5XXErrors", "ModelLatency"},
    "AWS/SQS": {"ApproximateAgeOfOldestMessage", "ApproximateNumberOfMessagesVisible"},
    "AWS/Lambda": {"Errors", "Duration"},
}


@pytest.fixture(scope="module")
def widgets(template):
    body = template["Resources"]["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
    values = {"AWS::Region": "eu-west-1", "EndpointName": "Shop", "MaxClassShare": "0.5"}

    def value(match):
        name = match[1]
        resource = name.partition(".")[0]
        assert name in values or resource in template["Resources"], name
        assert not template["Resources"].get(resource, {}).get("Condition"), f"{name} may not exist"
        return values.get(name, f"the {name}")

    filled = re.sub(r"\$\{([^!}]+)\}", value, body)
    assert len(filled) <= 1 << 20
    return json.loads(filled)["widgets"]


def test_widgets_fit_the_grid_and_do_not_overlap(widgets):
    taken = set()
    for widget in widgets:
        cells = {
            (x, y)
            for x in range(widget["x"], widget["x"] + widget["width"])
            for y in range(widget["y"], widget["y"] + widget["height"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, widget["properties"]["title"]
        taken |= cells


def test_the_custom_widget_calls_its_function(widgets):
    (custom,) = [widget for widget in widgets if widget["type"] == "custom"]
    properties = custom["properties"]
    assert properties["endpoint"] == "the DashboardWidgetFunction.Arn"
    assert set(properties["updateOn"]) == {"refresh", "resize", "timeRange"}


def test_metrics_are_those_of_the_docs_with_their_dimensions(widgets):
    listed = re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", (ROOT / "docs" / "data.md").read_text(), re.MULTILINE)
    ours = {
        name: set(re.split(", |; ", dimensions))
        for names, dimensions in listed
        for name in re.findall("`([^`]+)`", names)
    }
    seen = set()
    for widget in widgets:
        for metric in widget["properties"].get("metrics", ()):
            if isinstance(metric[0], dict):
                expression = metric[0]["expression"]
                found = re.fullmatch(
                    r"SEARCH\('\{([\w/]+),([\w,]+)\} (\w+)=\"Shop\" MetricName=\"(\w+)\"', '\w+', 300\)",
                    expression,
                )
                namespace, dimensions, by, name = found.groups()
                assert by in dimensions.split(",")
                if namespace == "Glassbox":
                    assert set(dimensions.split(",")) == ours[name] | {"service"}
            else:
                namespace, name, *rest = metric
                pairs = dict(zip(rest[0::2], rest[1::2], strict=False))
                if namespace == "Glassbox":
                    assert pairs == {"service": "glassbox", "endpoint": "Shop"}
                    assert "endpoint" in ours[name]
            assert name in AWS_METRICS.get(namespace, ours), name
            seen.add((namespace, name))
    assert {namespace for namespace, _ in seen} == {"Glassbox", *AWS_METRICS}


def test_every_chart_has_a_title_and_a_region(widgets):
    for widget in widgets:
        if widget["type"] == "metric":
            properties = widget["properties"]
            assert properties["title"]
            assert properties["region"] == "eu-west-1"
