"""The simulation must not be kinder than the stack: its limits are those of template.yaml."""

from pathlib import Path

import pytest
from samtranslator.yaml_helper import yaml_parse

from simulation.system import APPS, MAX_RECEIVES, TIMEOUTS, VISIBILITY

RESOURCES = yaml_parse((Path(__file__).parents[2] / "template.yaml").read_text())
FUNCTIONS = {
    "count": "CountPredictionsFunction",
    "swap": "SwapEndpointFunction",
    "confirm": "ConfirmEndpointFunction",
    "restore": "RestoreEndpointFunction",
    "render": "RenderSaliencyFunction",
    "diagnose": "DiagnoseIncidentFunction",
}


@pytest.mark.parametrize("queue", APPS)
def test_queues_and_timeouts_are_those_of_the_template(queue):
    resources = RESOURCES["Resources"]
    default = RESOURCES["Globals"]["Function"]["Timeout"]
    found = resources[f"{queue.capitalize()}Queue"]["Properties"]
    assert resources[FUNCTIONS[queue]]["Properties"].get("Timeout", default) == TIMEOUTS[queue]
    assert found["VisibilityTimeout"] == VISIBILITY[queue]
    assert found["RedrivePolicy"]["maxReceiveCount"] == MAX_RECEIVES[queue]
