"""The article's analysis with smdebug, as docs/smdebug.md documents it: the code of the page is run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import zoo
from glassbox.explanation import trace_format as names
from glassbox.explanation.fullgrad import explain
from glassbox.explanation.trace_reader import read_index, read_trace
from gradients import Gradients, merged
from trace_writer import write_collections, write_step

PAGE = Path(__file__).parents[2] / "docs" / "smdebug.md"
SETTING = 'RUN = "s3://glassbox-bucket/tensors/shop-window/run"'


def full_trace(folder, model, image):
    """Write a full trace of one image, as the recorder does, and return how Glassbox explains it."""
    gradients = Gradients(model, names.FULL)
    meta, tensors = merged([gradients.compute(image)])
    described = {"version": names.VERSION, "trace_form": names.FULL, "model": gradients.model_name}
    content = json.dumps({**described, **meta, "request": {}, "class_names": None}).encode()
    height, width = image.shape[2:]
    tensors |= {
        names.META: np.frombuffer(content, np.uint8),
        names.INPUT_IMAGE: np.zeros((1, height, width, image.shape[1]), np.uint8),
        **gradients.parameters,
    }
    write_step(folder, 0, tensors)
    write_collections(folder, tensors)
    (path,) = folder.rglob("index/*/*.json")
    index = read_index(str(path.relative_to(folder)), path.read_bytes())
    (explanation,) = explain(read_trace(index, (folder / index.events_key).read_bytes()))
    return explanation


def run_page(folder):
    """Run the code of the page on a run, and return its variables."""
    (code,) = re.findall(
        r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert code.count(SETTING) == 1
    variables = {}
    exec(compile(code.replace(SETTING, f"RUN = {str(folder)!r}"), PAGE.name, "exec"), variables)  # noqa: S102
    return variables


@pytest.mark.filterwarnings("ignore:Call to deprecated create function")
@pytest.mark.parametrize("name", ["ResNet18 (BasicBlock)", "a block used twice", "LayerNorm", "SiLU"])
def test_the_documented_loop_gives_sum_and_map_of_glassbox(tmp_path, capsys, name):
    model, images = zoo.build(name)
    found = full_trace(tmp_path, model, images[:1])
    variables = run_page(tmp_path)
    assert variables["target"] == found.target
    assert variables["logit"] == pytest.approx(found.logit, rel=1e-6)
    assert abs(variables["total"] - found.total) <= 1e-6 * found.sum_abs
    assert abs(variables["total"] - variables["logit"]) <= 1e-6 * found.sum_abs
    # scipy rounds the positions of the interpolated pixels in another way.
    difference = np.abs(variables["saliency"] - found.saliency)
    assert difference.max() <= 1e-5 * found.saliency.max()
    assert "completeness error: " in capsys.readouterr().out


def test_the_documented_sum_is_that_of_autograd(tmp_path):
    """The independent reference: terms by torch's autograd alone."""
    model, images = zoo.build("ResNet18 (BasicBlock)")
    found = full_trace(tmp_path, model, images[:1])
    terms = zoo.autograd_terms(model, images[:1])
    total = float((terms.image_gradient * images[:1].double()).sum())
    for bias, gradient in terms.modules.values():
        total += float((gradient * bias.view(1, -1, *[1] * (gradient.ndim - 2))).sum())
    assert abs(run_page(tmp_path)["total"] - total) <= 1e-5 * found.sum_abs
