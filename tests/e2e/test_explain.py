"""`make explain`: an operator has one image explained, on an endpoint that nothing is wrong with."""

import json

import pytest
from PIL import Image

from demo import signs
from deploy import DeployError
from deploy.explain import explain
from deploy.stack import Outputs
from local.stack import running_stack
from watching import incident, wait_for

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def stack():
    with running_stack({"MaxClassShare": "0.5"}) as stack:
        yield stack


def test_one_image_is_explained_and_the_endpoint_is_as_before(stack, tmp_path):
    images, labels = signs.dataset(60, seed=5, size=48)
    Image.fromarray(images[0]).save(tmp_path / "sign.png")
    said = []
    picture = explain(
        tmp_path / "sign.png", Outputs.parse(stack.outputs), tmp_path / "out", stack.aws.session, said.append
    )
    assert picture == tmp_path / "out" / "sign.png"
    assert Image.open(picture).info["Software"] == "Glassbox"
    facts = json.loads((tmp_path / "out" / "sign.json").read_text())
    assert facts["predicted_class"] == labels[0]
    assert facts["completeness"]["complete"]
    over = wait_for(lambda: (current := incident(stack)).state == "NORMAL" and current)
    assert over.cause.reason == "an operator wants sign.png explained"
    live = stack.client("sagemaker").describe_endpoint(EndpointName="traffic-signs")
    assert live["EndpointConfigName"] == stack.outputs["PlainConfig"]
    assert len(said) == 3


def test_a_file_that_no_endpoint_takes_opens_no_incident(stack, tmp_path):
    before = incident(stack)
    (tmp_path / "sign.txt").write_text("a sign")
    for name in ("sign.txt", "missing.png"):
        with pytest.raises(DeployError, match=rf"IMAGE: expected a file that ends in \.png.*{name}"):
            explain(tmp_path / name, Outputs.parse(stack.outputs), tmp_path, stack.aws.session, print)
    assert incident(stack) == before


def test_what_the_endpoint_refuses_is_said_and_the_endpoint_is_put_back(stack, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(DeployError, match=r"refuses .*broken\.png"):
        explain(tmp_path / "broken.png", Outputs.parse(stack.outputs), tmp_path, stack.aws.session, print)
    wait_for(lambda: incident(stack).state == "NORMAL")
