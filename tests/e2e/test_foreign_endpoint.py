"""An endpoint of AWS's PyTorch image with an owner's archive, unchanged, from a violation to its heat maps.

The real TorchServe runs the owner's code under SageMaker's toolkit, and the twin mounts the hook.
"""

import io
import os
import re
import tarfile

import pytest
import torch

from demo import signs
from demo.foreign_endpoint import running_foreign_stack
from deploy import DeployError
from deploy.hook import Hooks, read_hooks
from deploy.stack import Outputs
from deploy.try_twin import Sample, read_sample, try_twin
from deploy.twin import trial
from deploy.watched_endpoint import read_endpoint
from glassbox.explanation.facts import Facts, read_facts
from glassbox.incidents.notifications import HOOK_NOT_LOADED
from local import pytorch_inference
from local.waiting import wait_for
from watching import Inbox, endpoint_state, incident, keys, read_object

MISSING = pytorch_inference.missing()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(MISSING), reason=f"TorchServe does not run without {MISSING}"),
]

CLASSES = 5
# Networks of 5 classes without code of ours: a vision transformer with a class token and positions, and the blocks of
# an EfficientNet, with depthwise convolutions, squeeze and excitation, and SiLU.
VIT = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Net(nn.Module):
    def __init__(self, width=16, classes=5):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 37, width))
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])
"""
EFFICIENTNET = """
import torch
from torch import nn


def layer(inner, outer, size=1, groups=1):
    return [nn.Conv2d(inner, outer, size, padding=size // 2, groups=groups, bias=False), nn.BatchNorm2d(outer)]


class Gate(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)

    def forward(self, x):
        pooled = nn.functional.silu(self.squeeze(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.excite(pooled))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        inner = 2 * width
        self.layers = nn.Sequential(
            *layer(width, inner), nn.SiLU(), *layer(inner, inner, 3, inner), nn.SiLU(),
            Gate(inner), *layer(inner, width)
        )

    def forward(self, x):
        return x + self.layers(x)


class Net(nn.Module):
    def __init__(self, width=8, classes=5):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.SiLU())
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))
"""
NETWORKS = {"transformer": VIT, "EfficientNet": EFFICIENTNET}
INFERENCE = """
import io
import json
import os

import numpy as np
import torch

from network import Net


def model_fn(model_dir):
    torch.set_num_threads(1)
    model = Net()
    model.load_state_dict(torch.load(os.path.join(model_dir, "model.pth"), weights_only=True))
    return model.eval()


def input_fn(body, content_type):
    image = np.load(io.BytesIO(body), allow_pickle=False)
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


@torch.inference_mode()
def predict_fn(image, model):
    return model(image).softmax(1)


def output_fn(probabilities, accept):
    top, best = probabilities.max(1)
    found = [{"class": int(c), "probability": float(p)} for c, p in zip(best, top)]
    return json.dumps({"predictions": found})
"""


@pytest.fixture(scope="module", params=NETWORKS)
def archive(request, tmp_path_factory):
    """The owner's model.tar.gz: two files of code, and weights that give about 70 % of the images class 3."""
    path = tmp_path_factory.mktemp("acme") / "model.tar.gz"
    namespace, network = {}, NETWORKS[request.param]
    exec(network, namespace)  # noqa: S102 -- the text above
    images = torch.from_numpy(signs.dataset(70, seed=3, size=48)[0]).permute(0, 3, 1, 2).float() / 255
    torch.manual_seed(0)
    model = namespace["Net"]().eval()
    with torch.no_grad():
        # Random scores hardly differ between images: spread them, then favour class 3.
        model.head.weight *= 2 / model(images).std(0).mean()
        model.head.bias -= model(images).mean(0)
        while (model(images).argmax(1) == 3).float().mean() < 0.7:
            model.head.bias[3] += 0.1
    weights = io.BytesIO()
    torch.save(model.state_dict(), weights)
    return packed(path, network, weights.getvalue())


def packed(path, network, weights, **code):
    """Write the owner's archive; ``code`` are further modules of it."""
    files = {
        "model.pth": weights,
        "code/network.py": network.encode(),
        "code/inference.py": INFERENCE.encode(),
    }
    files |= {f"code/{name}.py": text.encode() for name, text in code.items()}
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


ENVIRONMENT = {"SAGEMAKER_PROGRAM": "inference.py", "SAGEMAKER_MODEL_SERVER_WORKERS": "2"}
PARAMETERS = {"MaxClassShare": "0.5", "MaxFlaggedReplays": "4", "MaxComparisonReplays": "2"}


@pytest.fixture(scope="module")
def stack(archive):
    with running_foreign_stack(archive, PARAMETERS, ENVIRONMENT) as stack:
        yield stack


@pytest.fixture(scope="module")
def inbox(stack):
    return Inbox(stack)


@pytest.fixture(scope="module")
def closed(stack, inbox):
    """The incident of 70 images, and the answers before, during and after it."""
    images, _ = signs.dataset(70, seed=3, size=48)
    before = [stack.predict(image) for image in images]
    wait_for(lambda: incident(stack) and incident(stack).state == "HOOKED", 120)
    during = [stack.predict(image) for image in images[:10]]
    ended = wait_for(lambda: (now := incident(stack)).state in ("NORMAL", "FAILED") and now, 240)
    after = [stack.predict(image) for image in images[:10]]
    return ended, before[:10], during, after


def heatmaps(stack, ended):
    found = {}
    for key in keys(stack, f"saliency/traffic-signs/{ended.id}/"):
        if key.endswith(".json"):
            found[key.rpartition("/")[2].removesuffix(".json")] = read_facts(read_object(stack, key))
    return found


def test_the_hooked_twin_answers_as_the_endpoint(closed):
    _, before, during, after = closed
    assert before == during == after


def test_every_replay_has_a_complete_heatmap_with_its_second_number(stack, closed):
    ended = closed[0]
    assert not ended.failure
    assert (len(ended.replays), len(ended.flagged)) == (6, 4)
    assert not ended.refused
    found = heatmaps(stack, ended)
    assert ended.replays <= set(found)
    for name in ended.replays:
        facts = found[name]
        assert isinstance(facts, Facts)
        assert facts.completeness.complete, facts.completeness
        assert facts.blurred is not None
        assert facts.model == "Net"
        assert (facts.answered, facts.not_compared) == (None, None)
        assert (facts.predicted_class == 3) == (name in ended.flagged)


def test_the_endpoint_serves_its_own_config_again(stack, closed):
    assert endpoint_state(stack) == ("InService", "acme-signs")
    assert stack.outputs["HookedConfig"] == "acme-signs-hooked"


def test_the_report_shows_the_heatmaps(stack, inbox, closed):
    bucket, _, key = closed[0].report.removeprefix("s3://").partition("/")
    assert bucket == stack.outputs["Bucket"]
    page = read_object(stack, key).decode()
    assert "when the best 10 % is blurred" in page
    hook = f"Hook: torch {torch.__version__}, Python"
    assert hook in page
    assert "requests by sagemaker_inference.transformer" in page
    assert "self-test passed" in page
    assert any(hook in line for line in closed[0].findings)
    wait_for(lambda: len(inbox.notifications()) == 2)
    assert "restored" in inbox.notifications()[1]["Subject"]


@pytest.fixture(scope="module")
def tried(stack, closed):
    """The printed lines and the result of `make twin TRY=1` after the incident."""
    outputs, printed = Outputs.parse(stack.outputs), []
    sample = read_sample("", read_endpoint("traffic-signs", stack.aws.session), stack.aws.session)
    return printed, try_twin(sample, "glassbox", outputs, stack.aws.session, printed.append)


def test_a_trial_explains_a_captured_input_and_deletes_its_endpoint(stack, tried):
    printed, result = tried
    assert re.match(
        r"class \d of Net, complete, heat map after \d+ s; class \d .* best 10 % is blurred", result
    )
    assert printed[0] == "starting endpoint acme-signs-hooked-try of 1 instance"
    assert re.fullmatch(
        r"sending s3://acme-captures/captured/traffic-signs/AllTraffic/\S+\.jsonl", printed[1]
    )
    assert names_of(stack, "endpoint") == {"traffic-signs"}
    assert names_of(stack, "endpoint_config") == {"acme-signs", "acme-signs-hooked"}


def test_the_twin_counts_as_tried_until_its_hook_changes(stack, tried):
    session = stack.aws.session
    endpoint = read_endpoint("traffic-signs", session)
    hooks = read_hooks(endpoint, replaced=False, session=session)
    assert trial(endpoint, hooks, session) == "complete"
    assert trial(endpoint, Hooks(), session) == ""


def test_a_trial_that_the_endpoint_refuses_deletes_its_endpoint(stack, closed):
    outputs = Outputs.parse(stack.outputs)
    sample = Sample(b"no image", "application/x-npy", "text")
    with pytest.raises(DeployError, match=r"acme-signs-hooked-try refuses text: Received server error"):
        try_twin(sample, "glassbox", outputs, stack.aws.session, print)
    assert names_of(stack, "endpoint") == {"traffic-signs"}


def names_of(stack, kind):
    found = getattr(stack.client("sagemaker"), f"list_{kind}s")()
    member = {"endpoint": "Endpoint", "endpoint_config": "EndpointConfig"}[kind]
    return {item[f"{member}Name"] for item in found[f"{member}s"]}


@pytest.mark.skipif("GLASSBOX_LONG" not in os.environ, reason="takes minutes; make test-all runs it")
def test_a_hook_that_does_not_load_is_reported_and_the_endpoint_restored(archive, tmp_path):
    """An image without boto3: the answers go out, no hello object comes, and the report gives the likely reasons."""
    with tarfile.open(archive) as given:
        network, weights = (given.extractfile(name).read() for name in ("code/network.py", "model.pth"))
    absent = "raise ImportError('no boto3 in this image')"
    images, _ = signs.dataset(70, seed=3, size=48)
    with running_foreign_stack(
        packed(tmp_path / "model.tar.gz", network.decode(), weights, boto3=absent), PARAMETERS, ENVIRONMENT
    ) as stack:
        inbox = Inbox(stack)
        before = [stack.predict(image) for image in images]
        wait_for(lambda: incident(stack) and incident(stack).state == "HOOKED", 120)
        during = [stack.predict(image) for image in images[:10]]
        ended = wait_for(lambda: (now := incident(stack)).state in ("NORMAL", "FAILED") and now, 300)
        assert endpoint_state(stack) == ("InService", "acme-signs")
        assert not keys(stack, "tensors/")
        _, _, key = ended.report.removeprefix("s3://").partition("/")
        page = read_object(stack, key).decode()
        wait_for(lambda: len(inbox.notifications()) == 2)
    assert before[:10] == during
    assert ended.state == "NORMAL"
    assert len(ended.replays) == 6
    assert HOOK_NOT_LOADED in "\n".join(ended.timeline)
    assert page.count("replayed, but the endpoint wrote no readable trace") == 6
