"""`make explain`: an operator requests the heat map of one image, without a violation."""

import json

import pytest
from PIL import Image

from demo import signs
from deploy import DeployError
from deploy.explain import explain
from deploy.stack import Outputs
from local.stack import running_stack
from local.waiting import wait_for
from watching import endpoint_state, incident

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def stack():
    with running_stack({"MaxClassShare": "0.5"}) as stack:
        yield stack


def test_explains_one_image_and_restores_the_endpoint(stack, tmp_path):
    images, classes = signs.dataset(60, seed=5, size=48)
    Image.fromarray(images[0]).save(tmp_path / "sign.png")
    printed = []
    heatmap = explain(
        tmp_path / "sign.png",
        Outputs.parse(stack.outputs),
        tmp_path / "out",
        stack.aws.session,
        printed.append,
    )
    assert heatmap == tmp_path / "out" / "sign.png"
    assert Image.open(heatmap).info["Software"] == "Glassbox"
    facts = json.loads((tmp_path / "out" / "sign.json").read_text())
    assert facts["predicted_class"] == classes[0]
    assert facts["completeness"]["complete"]
    closed = wait_for(lambda: (current := incident(stack)).state == "NORMAL" and current)
    assert closed.cause.reason == "make explain: explain sign.png"
    assert endpoint_state(stack) == ("InService", stack.outputs["PlainConfig"])
    assert len(printed) == 3


def test_opens_no_incident_for_a_file_with_another_suffix(stack, tmp_path):
    before = incident(stack)
    (tmp_path / "sign.txt").write_text("a sign")
    for name in ("sign.txt", "missing.png"):
        with pytest.raises(DeployError, match=rf"IMAGE: expected a file that ends in \.png.*{name}"):
            explain(tmp_path / name, Outputs.parse(stack.outputs), tmp_path, stack.aws.session, print)
    assert incident(stack) == before


def test_reports_a_refused_image_and_restores_the_endpoint(stack, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(DeployError, match=r"refuses .*broken\.png"):
        explain(tmp_path / "broken.png", Outputs.parse(stack.outputs), tmp_path, stack.aws.session, print)
    wait_for(lambda: incident(stack).state == "NORMAL")
