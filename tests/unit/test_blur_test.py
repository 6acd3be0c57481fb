"""The blur test: which cells it blurs, the numbers it returns, and that it leaves the network unchanged."""

import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

import blur_test
import zoo
from blur_test import blurred_probabilities
from complete_gradients import UnexplainableError, complete_gradients, plain_logits
from glassbox.explanation import trace_format as names
from glassbox.explanation import trace_reader
from glassbox.explanation.fullgrad import explain
from gradients import Gradients, heat_map, merged

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Patch(nn.Module):
    """Class 1 if the pixels of one patch differ from their neighbours; nothing else matters."""

    def __init__(self, rows, columns):
        super().__init__()
        self.place = (slice(None), slice(None), slice(*rows), slice(*columns))
        self.eval()

    def forward(self, x):
        contrast = x[self.place].diff(dim=-1).abs().mean((1, 2, 3))
        return torch.stack((torch.zeros_like(contrast), 4 * contrast), 1)


def watched(network):
    """Return the list that the inputs of the network's passes are added to; the passes run on copies of its modules."""
    seen = []
    network.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    return seen


def relevant(shape, rows, columns):
    saliency = np.zeros(shape, np.float32)
    saliency[slice(*rows), slice(*columns)] = 1
    return saliency


def box_filter(image, size, axis):
    """The mean of the pixels at most size // 2 away, one pixel after another."""
    image = np.moveaxis(image, axis, 0)
    reach, out = size // 2, np.empty_like(image)
    for i in range(len(image)):
        out[i] = image[max(0, i - reach) : i + reach + 1].mean(0)
    return np.moveaxis(out, 0, axis)


class TestBlurredProbabilities:
    def test_equal_those_of_an_independent_blur(self):
        """The best 26 of 16 × 16 cells of 4 × 3 pixels, replaced by three box filters of 9 × 7 pixels."""
        image, saliency = noise(1, 3, 64, 48), noise(64, 48, seed=1).abs().numpy()
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 48, 5)).eval()
        smooth = image[0].double().numpy()
        for _ in range(3):
            smooth = box_filter(box_filter(smooth, 9, 1), 7, 2)
        cells = {
            (r, c): saliency[4 * r : 4 * r + 4, 3 * c : 3 * c + 3].mean()
            for r, c in itertools.product(range(16), range(16))
        }
        changed = image[0].double().numpy().copy()
        for r, c in sorted(cells, key=cells.get, reverse=True)[:26]:
            place = (slice(None), slice(4 * r, 4 * r + 4), slice(3 * c, 3 * c + 3))
            changed[place] = smooth[place]
        expected = network.double()(torch.from_numpy(changed)[None]).softmax(1)[0, 2].item()
        best, _ = blurred_probabilities(network.float(), image, 2, saliency)
        assert best == pytest.approx(expected, rel=1e-5)

    def test_marked_pixels_that_matter_lower_the_probability(self):
        rows, columns = (16, 28), (8, 20)
        network, image = Patch(rows, columns), noise(1, 3, 48, 48)
        before = network(image).softmax(1)[0, 1].item()
        best, random = blurred_probabilities(network, image, 1, relevant((48, 48), rows, columns))
        assert best < before - 0.3
        assert random > best + 0.2

    def test_marked_pixels_that_do_not_matter_leave_it(self):
        network, image = Patch((16, 28), (8, 20)), noise(1, 3, 48, 48)
        before = network(image).softmax(1)[0, 1].item()
        best, _ = blurred_probabilities(network, image, 1, relevant((48, 48), (33, 48), (30, 45)))
        assert best == pytest.approx(before, rel=1e-6)

    @pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 7), (16, 17), (47, 33), (160, 20)])
    def test_blurs_as_many_random_cells_as_best_ones(self, size):
        saliency = np.arange(size[0] * size[1], dtype=np.float32).reshape(size)
        if saliency.size == 1:
            assert blurred_probabilities(Patch((0, 1), (0, 1)), noise(1, 3, *size), 0, saliency) is None
            return
        cells = [min(16, side) for side in size]
        pixels = -(-size[0] // cells[0]) * -(-size[1] // cells[1])
        best, random = blur_test._best(saliency), blur_test._random(noise(1, 3, *size), size)
        count = max(1, round(0.1 * cells[0] * cells[1]))
        for mask in (best, random):
            assert mask.shape == size
            assert count <= mask.sum() <= count * pixels
        assert best[-1, -1]
        assert not best[0, 0] or saliency.size < 10

    def test_takes_two_passes_of_one_image_each(self):
        network = Patch((16, 28), (8, 20))
        image, seen = noise(1, 3, 48, 48), watched(network)
        blurred_probabilities(network, image, 1, relevant((48, 48), (16, 28), (8, 20)))
        assert [len(x) for x in seen] == [1, 1]
        changed = [(x != image).any(1)[0].numpy() for x in seen]
        # 26 of 256 cells of 3 × 3 pixels
        assert [mask.sum() for mask in changed] == [26 * 9, 26 * 9]
        assert changed[0][16:27, 9:18].all()

    def test_the_image_alone_decides_the_random_cells(self):
        first, again, other = (
            blur_test._random(noise(1, 3, 48, 48, seed=seed), (48, 48)) for seed in (0, 0, 1)
        )
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()

    @pytest.mark.parametrize("value", [0.0, 3.0, 1e30])
    def test_map_that_marks_nothing_has_no_numbers(self, value):
        network = Patch((16, 28), (8, 20))
        seen, saliency = watched(network), np.full((48, 48), value, np.float32)
        assert blurred_probabilities(network, noise(1, 3, 48, 48), 1, saliency) is None
        assert seen == []

    def test_refuses_logits_that_are_not_finite(self):
        class Broken(nn.Module):
            def forward(self, x):
                return x.mean((2, 3)) * float("nan")

        saliency = relevant((48, 48), (0, 9), (0, 9))
        with pytest.raises(ArithmeticError, match="expected finite values, got NaN or infinity"):
            blurred_probabilities(Broken().eval(), noise(1, 3, 48, 48), 1, saliency)

    def test_probability_of_a_network_that_ends_in_softmax_is_its_own(self):
        logits = nn.Sequential(nn.Flatten(), nn.Linear(3 * 48 * 48, 5)).eval()
        image, saliency = noise(1, 3, 48, 48), relevant((48, 48), (0, 9), (0, 9))
        expected = blurred_probabilities(logits, image, 3, saliency)
        found = blurred_probabilities(nn.Sequential(logits, nn.Softmax(1)).eval(), image, 3, saliency)
        assert found == pytest.approx(expected, rel=1e-6)


class Counting(nn.Module):
    """Writes into a buffer, sets an attribute and draws random numbers in every pass."""

    def __init__(self):
        super().__init__()
        self.fc, self.passes = nn.Linear(3, 5), 0
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        self.passes += 1
        return self.fc(x.mean((2, 3))) + 0 * torch.rand(5)


class TestPlainLogits:
    @pytest.mark.parametrize("name", list(zoo.ZOO))
    def test_are_those_of_the_explained_pass(self, name):
        model, images = zoo.build(name)
        found = plain_logits(model, images)
        assert not found.requires_grad
        for row, explained in zip(found, complete_gradients(model, images), strict=True):
            torch.testing.assert_close(row, explained.logits, rtol=1e-4, atol=1e-5)

    def test_leave_the_network_and_the_random_state(self):
        model = Counting().eval()
        parameters = [p.requires_grad for p in model.parameters()]
        state = torch.get_rng_state()
        plain_logits(model, noise(2, 3, 8, 8))
        assert (float(model.count), model.passes) == (0.0, 0)
        assert [p.requires_grad for p in model.parameters()] == parameters
        assert torch.equal(torch.get_rng_state(), state)

    def test_refuse_train_mode(self):
        with pytest.raises(UnexplainableError, match="expected eval mode, got train mode"):
            plain_logits(nn.Sequential(nn.BatchNorm2d(3)).train(), noise(1, 3, 8, 8))


class TestEndpointsMap:
    @pytest.mark.parametrize("form", [names.REDUCED, names.FULL])
    @pytest.mark.parametrize("name", list(zoo.ZOO))
    def test_equals_the_rendered_map(self, name, form):
        """What the endpoint ranks the cells by is what the heat map shows."""
        model, images = zoo.build(name)
        computed = Gradients(model, form)
        meta, tensors = merged([computed.compute(image[None]) for image in images])
        pixels = np.zeros((len(images), *images.shape[2:], 3), np.uint8)
        step = {**tensors, **computed.parameters, names.INPUT_IMAGE: pixels}
        rendered = explain(_trace(meta, step, computed.model_name, form))
        found = complete_gradients(model, images, keep_values=form == names.FULL)
        for explanation, decomposition in zip(rendered, found, strict=True):
            np.testing.assert_allclose(
                heat_map(decomposition),
                explanation.saliency,
                rtol=1e-4,
                atol=1e-6 * explanation.saliency.max(),
            )


def _trace(meta, tensors, model, form):
    content = {"version": names.VERSION, "trace_form": form, "model": model, **meta, "request": {}}
    encoded = np.frombuffer(json.dumps(content).encode(), np.uint8)
    return trace_reader.Trace("events", 0, trace_reader._read_meta(encoded), tensors)
