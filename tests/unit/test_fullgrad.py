"""The full gradient against torch autograd, the authors' loop, the article's loop, and numbers worked out by hand."""

import dataclasses
import math
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import traces
import zoo
from glassbox.errors import BadInputError
from glassbox.explanation import trace_format
from glassbox.explanation.facts import Blurred
from glassbox.explanation.fullgrad import effective_bias_bn, explain, full_gradient
from glassbox.explanation.trace_reader import read_index, read_trace
from recorder import TensorRecorder

EXACT = [name for name, net in zoo.ZOO.items() if net.exact]
INEXACT = [name for name, net in zoo.ZOO.items() if not net.exact]


def arrays(terms):
    """The arguments of ``full_gradient``."""
    modules = {name: (bias.numpy(), gradient.numpy()) for name, (bias, gradient) in terms.modules.items()}
    return terms.image.numpy(), terms.image_gradient.numpy(), modules


def chosen_logit(terms):
    return terms.logits.gather(1, terms.target[:, None])[:, 0].double().numpy()


def authors_map(terms):
    """As the authors compute it (github.com/idiap/fullgrad-saliency, saliency/fullgrad.py), here with our own names."""

    def rescaled(term):
        term = term.abs()
        term = term - term.flatten(1).min(1).values.view(-1, 1, 1, 1)
        return term / (term.flatten(1).max(1).values.view(-1, 1, 1, 1) + 1e-6)

    size = terms.image.shape[2:]
    total = rescaled(terms.image * terms.image_gradient).sum(1)
    for bias, gradient in terms.modules.values():
        if gradient.ndim == 4:
            term = rescaled(bias.view(1, -1, 1, 1) * gradient)
            total = total + F.interpolate(term, size, mode="bilinear", align_corners=True).sum(1)
    return total.numpy()


def article_map(image, image_gradient, bias_terms):
    """As the article's notebook computes it for one square input_image: one zoom per channel."""

    def normalize(x):
        return (x - x.min()) / (x.max() - x.min())

    total = normalize(np.abs(image * image_gradient)[0]).sum(0)
    for bias, gradient in bias_terms.values():
        if gradient.ndim == 4:
            for channel in normalize(np.abs(bias.reshape(-1, 1, 1) * gradient[0])):
                total = total + scipy.ndimage.zoom(channel, image.shape[2] / gradient.shape[2], order=1)
    return total


class TestByHand:
    """A network of two layers on a input_image of two pixels, worked out on paper.

    Layer 1, a 1×1 convolution: z = 2x − 1, ReLU. Layer 2, linear: f = 3·a₀ − 2·a₁ + 0.5. Input image x = (2, 0.25).
    z = (3, −0.5), a = (3, 0), f = 9.5. Only pixel 0 passes the ReLU: ∂f/∂z = (3, 0), ∂f/∂x = (6, 0).
    Terms: input 2·6 = 12, bias of layer 1 −1·3 = −3, bias of layer 2 0.5. Their sum is 9.5 = f.
    """

    def test_terms_and_map_of_a_network_computed_on_paper(self):
        image = np.array([[[[2.0, 0.25]]]], np.float32)
        gradient = np.array([[[[6.0, 0.0]]]], np.float32)
        found = full_gradient(
            image,
            gradient,
            {
                "layer1": (np.array([-1.0], np.float32), np.array([[[[3.0, 0.0]]]], np.float32)),
                "layer2": (np.array([0.5], np.float32), np.array([[1.0]], np.float32)),
            },
        )
        assert found.total.tolist() == [9.5]
        assert found.sum_abs.tolist() == [15.5]
        # |12|, |0| -> 12/(12 + 1e-6); |−3|, |0| -> 3/(3 + 1e-6); the linear layer makes no map.
        assert found.saliency.tolist() == [[[pytest.approx(2.0, abs=1e-6), 0.0]]]
        assert (found.saliency.dtype, found.total.dtype) == (np.float32, np.float64)

    def test_effective_bias(self):
        """bias − mean · weight / √(var + eps): 1 − 2 · 3 / √(4 + 5) = −1, and 0.5 + 1 · 2 / √(0 + 0.25) = 4.5."""
        found = effective_bias_bn(
            *(np.array(v, np.float32) for v in ([3, 2], [1, 0.5], [2, -1], [4, 0])), eps=np.array([5, 0.25])
        )
        assert found.tolist() == [-1.0, 4.5]

    def test_interpolated_channels_and_layers_are_summed(self):
        """A 2×2 map of two channels on a 3×3 input_image: corners keep their values, the middle is their mean."""
        zero = np.zeros((1, 1, 3, 3), np.float32)
        gradient = np.array([[[[1, 0], [0, 0]], [[0, 0], [0, 2]]]], np.float32)
        found = full_gradient(zero, zero, {"conv": (np.ones(2, np.float32), gradient)}).saliency[0]
        expected = [[0.5, 0.25, 0], [0.25, 0.375, 0.5], [0, 0.5, 1]]
        np.testing.assert_allclose(found, expected, atol=1e-6)


class TestAgainstAutograd:
    @pytest.mark.parametrize("name", EXACT)
    def test_terms_sum_to_the_logit(self, name):
        """Proposition 1 of the paper, in float64: what is left over in float32 is rounding, not the decomposition."""
        terms = zoo.autograd_terms(*zoo.build(name))
        found = full_gradient(*arrays(terms))
        np.testing.assert_allclose(found.total, chosen_logit(terms), rtol=1e-12)

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("name", EXACT)
    def test_residual_is_within_float32_rounding(self, name, seed):
        """At most 1e-5 of the logit for the predicted class, at most 5e-7 of Σ|terms| for any class."""
        model, image = zoo.build(name, seed)
        predicted = zoo.autograd_terms(model, image, dtype=torch.float32)
        found = full_gradient(*arrays(predicted))
        logit = chosen_logit(predicted)
        assert (np.abs(found.total - logit) <= 1e-5 * np.abs(logit)).all()
        for target in range(0, predicted.logits.shape[1], 3):
            terms = zoo.autograd_terms(model, image, torch.full((len(image),), target), torch.float32)
            found = full_gradient(*arrays(terms))
            assert (np.abs(found.total - chosen_logit(terms)) <= 5e-7 * found.sum_abs).all()

    @pytest.mark.parametrize("name", EXACT)
    def test_every_layer_equals_autograds(self, name, tmp_path):
        """Each layer's contribution and share, from the stored trace, are those of autograd in float64."""
        model, image = zoo.build(name)
        terms = zoo.autograd_terms(model, image)
        for form in (traces.reduced, traces.full):
            folder = tmp_path / form.__name__
            found = explain(traces.read_step(folder, traces.write_step(folder, form(terms, model))))
            for i, explanation in enumerate(found):
                parts = {"input": terms.image * terms.image_gradient}
                for module, (bias, gradient) in terms.modules.items():
                    parts[module] = bias.view(1, -1, *[1] * (gradient.ndim - 2)) * gradient
                total = sum(part[i].abs().sum() for part in parts.values())
                assert [layer.name for layer in explanation.layers] == list(parts)
                for layer in explanation.layers:
                    part = parts[layer.name][i]
                    tolerance = 1e-6 * float(part.abs().sum())
                    assert layer.contribution == pytest.approx(float(part.sum()), abs=tolerance)
                    assert layer.share == pytest.approx(float(part.abs().sum() / total), rel=1e-5, abs=1e-9)
                assert sum(layer.share for layer in explanation.layers) == pytest.approx(1)
                unplaced = sum(part[i].abs().sum() for part in parts.values() if part.ndim == 2)
                assert explanation.unplaced_share == pytest.approx(float(unplaced / total), rel=1e-5)
                assert explanation.complete

    def test_samples_of_a_batch_are_independent(self):
        model, image = zoo.build("ResNet18 (BasicBlock)", samples=4)
        together = full_gradient(*arrays(zoo.autograd_terms(model, image)))
        for i in range(4):
            alone = full_gradient(*arrays(zoo.autograd_terms(model, image[i : i + 1])))
            np.testing.assert_allclose(together.saliency[i], alone.saliency[0], rtol=1e-5, atol=1e-5)
            assert together.total[i] == pytest.approx(alone.total[0])


class TestAgainstTheAuthors:
    @pytest.mark.parametrize("name", list(zoo.ZOO))
    def test_map_equals_the_authors(self, name):
        terms = zoo.autograd_terms(*zoo.build(name), dtype=torch.float32)
        ours, theirs = full_gradient(*arrays(terms)).saliency, authors_map(terms)
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < 1e-5 * (theirs.max() - theirs.min())

    @settings(max_examples=60, deadline=None)
    @given(st.tuples(*[st.integers(1, 9)] * 4))
    def test_interpolation_of_any_size(self, sizes):
        """Corners kept, as ``align_corners=True`` does, also from and to a single row."""
        h, w, height, width = sizes
        gradient = torch.arange(h * w).float().view(1, 1, h, w).cos()
        zero = np.zeros((1, 1, height, width), np.float32)
        found = full_gradient(zero, zero, {"conv": (np.ones(1, np.float32), gradient.numpy())}).saliency
        low, high = gradient.abs().min(), gradient.abs().max()
        rescaled = (gradient.abs() - low) / (high - low + 1e-6)
        expected = F.interpolate(rescaled, (height, width), mode="bilinear", align_corners=True)
        np.testing.assert_allclose(found, expected[:, 0], atol=1e-6)


class TestAgainstTheArticle:
    """Its formula has no eps, and its loop zooms channel by channel; with eps = 0 it is right, and an oracle."""

    def net(self, eps):
        model, image = zoo.build("ResNet (bottleneck, grouped)", samples=1)
        for module in model.modules():
            if isinstance(module, zoo.BATCH_NORM):
                module.eps = eps
                module.running_var.clamp_(min=0.5)
        return model, image

    def test_map_equals_the_articles_for_large_variances(self):
        """Gradients of a large logit, beside which the 1e-6 in the rescaling's denominator is nothing."""
        image, gradient, modules = arrays(zoo.autograd_terms(*self.net(eps=0.0)))
        terms = image, 1e6 * gradient, {name: (bias, 1e6 * g) for name, (bias, g) in modules.items()}
        ours, theirs = full_gradient(*terms).saliency[0], article_map(*terms)
        assert np.abs(ours - theirs).max() < 1e-6 * (theirs.max() - theirs.min())

    @pytest.mark.parametrize(("variance", "wrong_by"), [(1e-4, 0.04), (1e-5, 0.4), (1e-6, 2.3)])
    def test_the_articles_bias_is_wrong_for_small_variances(self, variance, wrong_by):
        """√((var + eps) / var) − 1 of mean · weight / √(var + eps); the network itself is the reference."""
        norm = nn.BatchNorm2d(1).double().eval()
        norm.running_mean.fill_(0.3)
        norm.running_var.fill_(variance)
        norm.bias.data.zero_()
        weight, bias, mean, var = (
            t.detach().numpy() for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        )
        right = norm(torch.zeros(1, 1, 1, 1, dtype=torch.float64)).item()
        assert effective_bias_bn(weight, bias, mean, var, norm.eps)[0] == pytest.approx(right, rel=1e-6)
        without_eps = (bias - mean * weight / np.sqrt(var))[0]
        assert abs(without_eps - right) > wrong_by * abs(right)

    def test_the_articles_map_of_a_dead_channel_is_nan(self):
        weight, bias, mean, var = (np.array([v], np.float32) for v in (1.0, 0.0, 0.0, 0.0))
        gradient = np.ones((1, 1, 4, 4), np.float32)
        image = np.ones((1, 1, 8, 8), np.float32)
        with np.errstate(all="ignore"):
            without_eps = bias - mean * weight / np.sqrt(var)
            assert np.isnan(article_map(image, image, {"bn": (without_eps, gradient)})).all()
        ours = full_gradient(
            image, image, {"bn": (effective_bias_bn(weight, bias, mean, var, 1e-5), gradient)}
        )
        assert np.isfinite(ours.saliency).all()

    def test_completeness_finds_a_missing_eps(self, tmp_path):
        model, image = zoo.build("depthwise convolutions")
        terms = zoo.autograd_terms(model, image, dtype=torch.float32)
        tensors = traces.full(terms, model)
        described = traces.meta(terms, model, trace_format.FULL).tobytes().replace(b"1e-05", b"1e-20")
        tensors[trace_format.META] = np.frombuffer(described, np.uint8)
        for name in [n for n in tensors if "running_var" in n]:
            tensors[name] = tensors[name].clip(min=1e-7)
        found = explain(traces.read_step(tmp_path / "t", traces.write_step(tmp_path / "t", tensors)))
        assert not any(explanation.complete for explanation in found)


class TestTraceForms:
    @pytest.mark.parametrize("name", list(zoo.ZOO))
    def test_reduced_equals_full(self, name, tmp_path):
        model, image = zoo.build(name)
        terms = zoo.autograd_terms(model, image, dtype=torch.float32)
        reduced, full = (
            explain(
                traces.read_step(
                    tmp_path / f.__name__, traces.write_step(tmp_path / f.__name__, f(terms, model))
                )
            )
            for f in (traces.reduced, traces.full)
        )
        assert len(reduced) == len(full) == len(image)
        for r, f in zip(reduced, full, strict=True):
            assert np.abs(r.saliency - f.saliency).max() <= 1e-5 * np.ptp(f.saliency)
            assert (r.target, r.logit, r.complete) == (f.target, f.logit, f.complete)
            assert r.probability == pytest.approx(f.probability)
            assert r.total == pytest.approx(f.total, abs=1e-6 * f.sum_abs)
            assert r.sum_abs == pytest.approx(f.sum_abs, rel=1e-6)
            assert (r.trace_form, f.trace_form) == ("reduced", "full")

    def test_order_of_tensors_does_not_matter(self, tmp_path):
        """Tensors are paired by name."""
        model, image = zoo.build("a block used twice")
        tensors = traces.full(zoo.autograd_terms(model, image), model)
        turned = dict(reversed(tensors.items()))
        a, b = (
            explain(traces.read_step(tmp_path / n, traces.write_step(tmp_path / n, t)))[0]
            for n, t in {"a": tensors, "b": turned}.items()
        )
        np.testing.assert_allclose(a.saliency, b.saliency, rtol=1e-5, atol=1e-5 * np.ptp(b.saliency))
        assert [layer.name for layer in a.layers] == [layer.name for layer in b.layers]
        assert [layer.share for layer in a.layers] == pytest.approx([layer.share for layer in b.layers])

    def test_linear_along_other_axes(self, tmp_path):
        """A Linear on (N, positions, features): the recorder puts the features first; the term has no map."""

        class Positions(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.mix, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 6), nn.Linear(6, 5)

            def forward(self, x):
                x = self.conv(x).flatten(2).transpose(1, 2)
                return self.head(F.relu(self.mix(x)).mean(1))

        torch.manual_seed(0)
        model = Positions()
        image = torch.randn(2, 3, 16, 16, requires_grad=True)
        gradients = {}
        for name, module in model.named_children():
            module.register_forward_hook(
                lambda m, i, out, name=name: out.register_hook(lambda g: gradients.update({name: g})) and None
            )
        logits = model(image)
        target = logits.argmax(1)
        logits.gather(1, target[:, None]).sum().backward()
        gradients["mix"] = gradients["mix"].movedim(-1, 1)
        parts = {
            name: (getattr(model, name).bias.detach(), gradients[name]) for name in ("conv", "mix", "head")
        }
        terms = zoo.Terms(logits.detach(), target, image.detach(), image.grad, parts)
        found = explain(
            traces.read_step(tmp_path / "t", traces.write_step(tmp_path / "t", traces.full(terms, model)))
        )
        assert all(explanation.complete for explanation in found)
        assert all(explanation.residual < 5e-7 * explanation.sum_abs for explanation in found)


class TestComplete:
    @pytest.mark.parametrize("name", INEXACT)
    def test_is_false_for_networks_that_are_not_piecewise_linear(self, name, tmp_path):
        """Incomplete by the measured residual, even if every module counts as exact."""
        model, image = zoo.build(name)
        path = traces.write_step(tmp_path / "t", traces.reduced(zoo.autograd_terms(model, image), model))
        found = explain(traces.read_step(tmp_path / "t", path))
        assert found
        assert not any(explanation.complete for explanation in found)
        assert all(np.isfinite(explanation.saliency).all() for explanation in found)

    @pytest.mark.parametrize("form", [traces.reduced, traces.full])
    def test_is_false_when_a_layer_is_missing(self, form, tmp_path):
        model, image = zoo.build("VGG, no BatchNorm, non-square")
        terms = zoo.autograd_terms(model, image)
        modules = {name: part for name, part in terms.modules.items() if name != "2"}
        lost = dataclasses.replace(terms, modules=modules)
        found = explain(
            traces.read_step(tmp_path / "t", traces.write_step(tmp_path / "t", form(lost, model)))
        )
        assert not any(explanation.complete for explanation in found)

    @pytest.mark.parametrize(
        ("logit", "total", "sum_abs", "complete"),
        [
            (10.0, 10.0, 20.0, True),
            (10.0, 10.000099, 20.0, True),
            (10.0, 10.00011, 20.0, False),
            (-10.0, -10.00011, 20.0, False),
            (-10.0, 10.0, 20.0, False),
            (1e-3, 1.2e-3, 3000.0, True),  # 20 % of a logit that almost cancels out is float32's rounding
            (1e-3, 1.2e-3, 1500.0, False),
            (0.0, 0.0, 0.0, True),
            (0.0, 1e-9, 0.0, False),
        ],
    )
    def test_depends_on_both_tolerances(self, logit, total, sum_abs, complete, explanation):
        changed = dataclasses.replace(explanation, logit=logit, total=total, sum_abs=sum_abs)
        assert changed.complete is complete
        assert changed.residual == pytest.approx(abs(logit - total))
        if logit:
            assert changed.relative_error == pytest.approx(abs(logit - total) / abs(logit))
        else:
            assert changed.relative_error is None

    def test_is_false_for_a_sum_that_holds_by_chance(self, explanation):
        exact = dataclasses.replace(explanation, logit=10.0, total=10.0)
        assert exact.complete
        random = f"Net: {trace_format.RANDOM} (bernoulli in eval mode)"
        for unaccounted in (random, "Cumprod: no rule for this autograd node"):
            assert not dataclasses.replace(exact, unaccounted=(unaccounted,)).complete
        held = dataclasses.replace(exact, held={"gate": 16, "activation": 33})
        assert held.complete
        assert (exact.held_places, held.held_places) == (0, 49)


def test_docs_list_every_network():
    """docs/completeness.md, which ``make bench MODULE=completeness`` writes."""
    page = (Path(__file__).parents[2] / "docs" / "completeness.md").read_text()
    _, table = page.split("| network |")
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in table.splitlines()
        if line.startswith("| ")
    ]
    verdicts = {name: (verdict, held != "0") for name, *_, verdict, held in rows}
    held = {"SiLU", "GELU", "GroupNorm", "LayerNorm", "sigmoid gate", "functional SiLU"}
    assert verdicts == {name: ("complete", name in held) for name in zoo.ZOO}


class TestEdges:
    def term(self, *shape):
        return torch.randn(shape, generator=torch.Generator().manual_seed(1)).numpy()

    @pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 5, 1), (1, 3, 1, 7), (3, 2, 4, 9)])
    @pytest.mark.parametrize("map_shape", [(1, 1), (1, 3), (6, 2)])
    def test_accepts_any_shape(self, shape, map_shape):
        n, channels, *size = shape
        gradient = self.term(n, channels, *map_shape)
        found = full_gradient(self.term(*shape), self.term(*shape), {"m": (self.term(channels), gradient)})
        assert found.saliency.shape == (n, *size)
        assert np.isfinite(found.saliency).all()
        assert (found.saliency >= 0).all()

    def test_zero_gradients_give_a_zero_map(self):
        zero = np.zeros((2, 3, 4, 4), np.float32)
        found = full_gradient(
            self.term(2, 3, 4, 4), zero, {"m": (self.term(3), zero), "fc": (self.term(3), zero[:, :, 0, 0])}
        )
        assert not found.saliency.any()
        assert not found.total.any()

    @pytest.mark.parametrize("value", [1.0, 0.3, 1000.1, 1e-5])
    @pytest.mark.parametrize("shape", [(1, 37, 5, 5), (1, 1, 1, 1), (1, 99, 1, 1)])
    def test_constant_map_becomes_zero(self, shape, value):
        """min = max: the rescaled map is 0 as the authors' is, not 0/0 nor the rounding of Σ|term|."""
        flat = torch.full(shape, value)
        terms = zoo.Terms(torch.zeros(1, 1), torch.zeros(1), flat, flat, {"m": (flat[0, :, 0, 0], flat)})
        assert not authors_map(terms).any()
        assert not full_gradient(*arrays(terms)).saliency.any()

    def test_nearly_constant_map_stays_finite(self):
        """Close to flat, the rounding of Σ|term| is seen, but stays small beside the map."""
        torch.manual_seed(0)
        flat = 1 + 1e-3 * torch.rand(1, 16, 8, 8)
        zero = torch.zeros(1, 1, 8, 8)
        terms = zoo.Terms(torch.zeros(1, 1), torch.zeros(1), zero, zero, {"m": (torch.ones(16), flat)})
        theirs = authors_map(terms)
        assert np.abs(full_gradient(*arrays(terms)).saliency - theirs).max() < 1e-2 * np.ptp(theirs)

    def test_differences_of_rounding_are_left_out(self):
        feature = np.full((1, 37, 4, 4), 0.7, np.float32)
        feature[0, ::2] = np.nextafter(np.float32(0.7), np.float32(1))
        zero = np.zeros((1, 1, 4, 4), np.float32)
        assert not full_gradient(zero, zero, {"m": (np.ones(37, np.float32), feature)}).saliency.any()

    def test_map_is_never_negative(self):
        """Σ|term| is rounded: if every channel is at its minimum, it may be below C·min."""
        zero = np.zeros((1, 1, 2, 2), np.float32)
        for channels in range(2, 400, 7):
            feature = np.ones((1, channels, 2, 2), np.float32)
            feature[0, 0, 0, 0] += 1e-5
            found = full_gradient(zero, zero, {"m": (np.full(channels, 0.7, np.float32), feature)})
            assert (found.saliency >= 0).all()

    def test_memory_order_does_not_matter(self):
        """Channels-last networks give gradients with adjacent channels."""
        image, gradient, feature, bias = (
            self.term(*s) for s in [(2, 3, 8, 8), (2, 3, 8, 8), (2, 4, 4, 4), (4,)]
        )
        expected = full_gradient(image, gradient, {"m": (bias, feature)})
        last = (
            np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
            for a in (image, gradient, feature)
        )
        image, gradient, feature = last
        found = full_gradient(image, gradient, {"m": (bias, feature)})
        np.testing.assert_allclose(found.saliency, expected.saliency, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.sum_abs, expected.sum_abs, rtol=1e-6)

    def test_does_not_change_its_inputs(self):
        image, gradient, bias = self.term(1, 3, 4, 4), self.term(1, 3, 4, 4), self.term(3)
        before = image.copy(), gradient.copy(), bias.copy()
        full_gradient(image, gradient, {"m": (bias, gradient)})
        for array, kept in zip((image, gradient, bias), before, strict=True):
            np.testing.assert_array_equal(array, kept)

    @pytest.mark.parametrize(
        ("bias", "gradient"),
        [((3,), (1, 2, 4, 4)), ((3,), (2, 3, 4, 4)), ((3,), (1,)), ((3, 1), (1, 3, 4, 4))],
    )
    def test_refuses_other_shapes(self, bias, gradient):
        image = self.term(1, 3, 8, 8)
        with pytest.raises(ValueError, match=r"conv: expected a gradient of"):
            full_gradient(image, image, {"conv": (self.term(*bias), self.term(*gradient))})

    def test_refuses_an_image_gradient_of_another_shape(self):
        with pytest.raises(ValueError, match=r"image gradient: expected \(1, 3, 8, 8\), got \(1, 1, 8, 8\)"):
            full_gradient(self.term(1, 3, 8, 8), self.term(1, 1, 8, 8), {})


class TestPinned:
    """Numbers of a fixed case, worked out once with torch's F.interpolate in float64."""

    def test_values_stay_the_same(self):
        def wave(*shape, by):
            return np.cos(by * np.arange(math.prod(shape), dtype=np.float32)).reshape(shape)

        image, gradient = wave(1, 3, 6, 8, by=0.7), wave(1, 3, 6, 8, by=1.3)
        found = full_gradient(
            image,
            gradient,
            {
                "conv": (wave(4, by=0.9), wave(1, 4, 3, 4, by=0.3)),
                "last": (wave(2, by=2.0), wave(1, 2, 1, 1, by=1.0)),
                "fc": (wave(5, by=0.4), wave(1, 5, by=0.2)),
            },
        )
        assert found.total[0] == pytest.approx(-0.0284682173, abs=1e-7 * 83.8)
        assert found.sum_abs[0] == pytest.approx(83.8382001796, rel=1e-6)
        corners = [4.5846188991, 3.4090253125, 3.8795768966, 3.8771915853]
        assert found.saliency[0, ::5, ::7].ravel().tolist() == pytest.approx(corners, rel=1e-6)
        assert found.saliency.sum(dtype=np.float64) == pytest.approx(188.6495411200, rel=1e-6)


class Bucket(dict):
    """What ``put_object`` was given, in the order it was given."""

    def put_object(self, Bucket, Key, Body):
        self[Key] = bytes(Body)


class TestChain:
    """From the recorder's events to the explanation, for every network of the zoo."""

    @pytest.mark.parametrize("form", [trace_format.REDUCED, trace_format.FULL])
    @pytest.mark.parametrize("name", list(zoo.ZOO))
    def test_recorder_to_explanation(self, name, form):
        model, image = zoo.build(name)
        expected = zoo.autograd_terms(model, image)
        input_image = np.arange(image[:, 0].numel() * image.shape[1], dtype=np.uint8)
        input_image = input_image.reshape(len(image), *image.shape[2:], image.shape[1])
        bucket = Bucket()
        recorder = TensorRecorder(
            model,
            "s3://bucket/tensors/signs",
            client=bucket,
            traces_per_minute=10,
            trace_form=form,
            clock=lambda: 0.0,
            utcnow=lambda: datetime(2026, 11, 23, 10, tzinfo=UTC),
        )
        request = {"inference_id": "id-1", "custom_attributes": "glassbox=1", "sha256": "0" * 64}
        recorder.predict(image, input_image, request, [f"class {i}" for i in range(10)])
        recorder.close()

        (key,) = [key for key in bucket if "/index/" in key]
        index = read_index(key, bucket[key])
        assert list(bucket).index(index.events_key) < list(bucket).index(key)
        found = explain(read_trace(index, bucket[index.events_key]))
        assert len(found) == len(image)
        for i, explanation in enumerate(found):
            assert explanation.target == expected.target[i]
            assert explanation.class_name == f"class {explanation.target}"
            assert explanation.request["custom_attributes"] == "glassbox=1"
            np.testing.assert_array_equal(explanation.input_image, input_image[i])
            assert explanation.complete
            assert explanation.unaccounted == ()
            assert explanation.residual <= 1e-5 * abs(explanation.logit)
            assert sum(layer.contribution for layer in explanation.layers) == pytest.approx(explanation.total)
            if zoo.ZOO[name].exact:
                assert explanation.residual <= 1e-5 * abs(explanation.logit)
                assert explanation.residual <= 5e-7 * explanation.sum_abs
                assert {layer.name for layer in explanation.layers} == {"input", *expected.modules}
                theirs = authors_map(expected)[i]
                assert np.abs(explanation.saliency - theirs).max() < 1e-5 * np.ptp(theirs)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Return a function that explains a valid trace of a form after changes to its tensors."""
    model, image = zoo.build("1×1 maps, one channel")
    terms = zoo.autograd_terms(model, image, dtype=torch.float32)
    folder = tmp_path_factory.mktemp("good")

    def explained(form, changes):
        tensors = {"reduced": traces.reduced, "full": traces.full}[form](
            terms, model, class_names=["Stop", "Yield"]
        )
        for name, change in changes.items():
            tensors[name] = change(tensors[name])
        tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        run = folder / str(len(list(folder.iterdir())))
        return explain(traces.read_step(run, traces.write_step(run, tensors)))

    return explained


@pytest.fixture
def explanation(good):
    return good("reduced", {})[0]


class TestExplanation:
    def test_holds_the_models_answer(self, good, explanation):
        model, image = zoo.build("1×1 maps, one channel")
        logits = model(image).detach().double()
        probabilities = logits.softmax(1)
        for i, found in enumerate(good("reduced", {})):
            assert found.sample == i
            assert found.target == logits[i].argmax()
            assert found.class_name == ["Stop", "Yield"][i]
            assert found.logit == pytest.approx(logits[i].max().item(), rel=1e-6)
            assert found.probability == pytest.approx(probabilities[i].max().item(), rel=1e-5)
            np.testing.assert_allclose(found.probabilities, probabilities[i], rtol=1e-5)
            values, classes = probabilities[i].topk(3)
            assert [c for c, _ in found.top] == classes.tolist()
            assert [p for _, p in found.top] == pytest.approx(values.tolist(), rel=1e-5)
            assert found.input_image.shape == (16, 16, 3)
            assert found.saliency.shape == (16, 16)
            assert found.request["inference_id"] == "request-1"

    def test_probabilities_of_huge_logits_are_finite(self, good):
        found = good("reduced", {trace_format.LOGITS: lambda t: t * np.float32(1e30)})[0]
        assert found.probability == 1.0
        assert found.probabilities.sum() == pytest.approx(1.0)

    def test_target_may_differ_from_the_most_probable_class(self, good):
        found = good("reduced", {trace_format.TARGET: lambda t: (t + 1) % 10})[0]
        assert found.top[0][0] != found.target
        assert found.probability < found.top[0][1]

    def test_class_name_is_none_without_labels(self, good):
        change = {trace_format.META: lambda t: _replaced(t, b'["Stop", "Yield"]', b"null")}
        assert good("reduced", change)[0].class_name is None

    def test_probabilities_after_blurring_belong_to_their_sample(self, good):
        entry = b'"blurred": [null, {"best": 0.25, "random": 1}]'
        change = {trace_format.META: lambda t: _replaced(t, b'"held": {}', b'"held": {}, ' + entry)}
        first, second = good("reduced", change)
        assert first.blurred is None
        assert second.blurred == Blurred(0.25, 1.0)
        assert good("reduced", {})[0].blurred is None

    @pytest.mark.parametrize("entries", [b"[]", b"[null]", b"[null, null, null]"])
    def test_refuses_another_number_of_blurred_samples(self, good, entries):
        change = {
            trace_format.META: lambda t: _replaced(t, b'"held"', b'"blurred": ' + entries + b', "held"')
        }
        with pytest.raises(BadInputError, match="blurred: expected 2, one per sample, got"):
            good("reduced", change)

    @pytest.mark.parametrize(
        ("form", "name", "change", "reason"),
        [
            ("reduced", trace_format.INPUT_IMAGE, lambda t: None, "glassbox/input_image: expected a tensor"),
            (
                "reduced",
                trace_format.INPUT_IMAGE,
                lambda t: t.astype(np.int32),
                "glassbox/input_image: .* got int32",
            ),
            ("reduced", trace_format.INPUT_IMAGE, lambda t: t[..., :2], "glassbox/input_image: .*1 or 3"),
            ("reduced", trace_format.INPUT_IMAGE, lambda t: t[:, :8], r"heat map: expected \(2, 8, 16\)"),
            (
                "reduced",
                trace_format.INPUT_IMAGE,
                lambda t: np.zeros((1, 2049, 2048, 1), np.uint8),
                "at most 4194304 pixels",
            ),
            ("reduced", trace_format.INPUT_IMAGE, lambda t: t[:1], "glassbox/logits: .*1 samples, got"),
            ("reduced", trace_format.LOGITS, lambda t: None, "glassbox/logits: expected a tensor"),
            ("reduced", trace_format.LOGITS, lambda t: t.reshape(-1), "glassbox/logits: .*2 dimensions"),
            ("reduced", trace_format.LOGITS, lambda t: t * np.float32(np.nan), "expected finite"),
            ("reduced", trace_format.LOGITS, lambda t: t[:, :1], "classes 0 to 0"),
            ("reduced", trace_format.TARGET, lambda t: t - 100, "classes 0 to 9"),
            ("reduced", trace_format.TARGET, lambda t: t.astype(np.int32), "glassbox/target: .* got int32"),
            ("reduced", trace_format.STATS_TENSOR, lambda t: None, "glassbox/stats: expected a tensor"),
            (
                "reduced",
                trace_format.STATS_TENSOR,
                lambda t: t[:, 1:],
                r"glassbox/stats: expected \(2, 8, 5\)",
            ),
            (
                "reduced",
                trace_format.STATS_TENSOR,
                lambda t: t[..., :4],
                r"glassbox/stats: expected \(2, 8, 5\)",
            ),
            ("reduced", "glassbox/abs/input", lambda t: None, "glassbox/abs/input: expected a tensor"),
            ("reduced", "glassbox/abs/3", lambda t: None, "glassbox/abs/3: expected a tensor"),
            ("reduced", trace_format.STATS_TENSOR, lambda t: t + np.inf, "contradicts"),
            ("reduced", "glassbox/abs/0", lambda t: t[:1], "glassbox/abs/0: .*2 samples, got"),
            ("full", "Sequential_input_0", lambda t: None, "Sequential_input_0: expected a tensor"),
            ("full", "gradient/image", lambda t: t[:, :1], "image gradient: expected"),
            ("full", "gradient/0_output", lambda t: None, "gradient/0_output: expected a tensor"),
            ("full", "gradient/3_output", lambda t: t[:, 1:], "3: expected a gradient of"),
            (
                "full",
                "gradient/0_output",
                lambda t: np.float32(1).reshape(()),
                "gradient/0_output: .* got float32",
            ),
            ("full", "Sequential_0.bias", lambda t: None, r"Sequential_0\.bias: expected a tensor"),
            ("full", "1.running_var_output_0", lambda t: None, r"1\.running_var_output_0: expected a tensor"),
            (
                "full",
                "1.running_mean_output_0",
                lambda t: None,
                r"1\.running_mean_output_0: expected a tensor",
            ),
            ("full", "1.running_var_output_0", lambda t: -t, "expected finite"),
            (
                "full",
                "1.running_mean_output_0",
                lambda t: t.astype(np.float64),
                r"1\.running_mean_output_0: .* got float64",
            ),
            ("full", "Sequential_1.bias", lambda t: t * np.float32(np.inf), "expected finite"),
        ],
    )
    @pytest.mark.filterwarnings("error::RuntimeWarning:glassbox")
    def test_refuses_invalid_tensors(self, good, form, name, change, reason):
        with pytest.raises(BadInputError, match=f"worker_0.tfevents: .*{reason}"):
            good(form, {name: change})


WHOLE, CONTRADICT = "expected whole numbers of channels", r"expected \|sum\| ≤ Σ"


@pytest.mark.filterwarnings("error::RuntimeWarning:glassbox")
class TestReducedMaps:
    """A heat map shows the terms that sum to the logit, or the trace is refused."""

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda t: t - [0, 1, 0, 0, 0], CONTRADICT),
            (lambda t: t * [1, 1, 0, 1, 1] - [0, 0, 1, 0, 0], CONTRADICT),
            (lambda t: t * [1, 1, 1, 1, -1], CONTRADICT),
            (lambda t: t * [1, 1, 1, 1, 0.01], CONTRADICT),
            (lambda t: t * [1, 1, 1, 1e3, 1], CONTRADICT),
            (lambda t: t * [1, 1, 1, np.nan, 1], CONTRADICT),
            (lambda t: t * [0, 1, 1, 1, 1], WHOLE),
            (lambda t: t * [-1, 1, 1, 1, 1], WHOLE),
            (lambda t: t * [1.3, 1, 1, 1, 1], WHOLE),
            (lambda t: t * [np.nan, 1, 1, 1, 1], WHOLE),
        ],
    )
    def test_refuses_contradictory_statistics(self, good, change, reason):
        with pytest.raises(BadInputError, match=f"worker_0.tfevents: glassbox/stats: {reason}"):
            good("reduced", {trace_format.STATS_TENSOR: change})

    @pytest.mark.parametrize(
        "change",
        [
            lambda t: 0 * t,
            lambda t: -t,
            lambda t: t[::-1],
            lambda t: t[:, :2],
            lambda t: 1.001 * t,
            lambda t: t * np.float32(np.nan),
            lambda t: 0 * t + t.mean((1, 2), keepdims=True),
            lambda t: 1e6 * np.cos(np.arange(t.size)).reshape(t.shape),
        ],
    )
    def test_refuses_a_map_of_other_terms(self, good, change):
        reason = "glassbox/abs/3: the map of sample 0 contradicts glassbox/stats"
        with pytest.raises(BadInputError, match=f"worker_0.tfevents: {reason}"):
            good("reduced", {"glassbox/abs/3": lambda t: change(t).astype(np.float32)})

    @pytest.mark.parametrize(
        "change",
        [
            lambda channels, low, high, total, sum_abs: (1e9, low, high, total, sum_abs),
            lambda channels, low, high, total, sum_abs: (channels, high, high, total, sum_abs),
            lambda channels, low, high, total, sum_abs: (channels, low, 20 * high, total, sum_abs),
            lambda channels, low, high, total, sum_abs: (channels, low, low, total, sum_abs),
            lambda channels, low, high, total, sum_abs: (channels, low, high, total, 1.001 * sum_abs),
        ],
    )
    def test_refuses_statistics_of_other_terms(self, tmp_path, change):
        """In a network without ReLU no term is 0, so that the least one counts."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LeakyReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 5))
        terms = zoo.autograd_terms(model, torch.randn(2, 3, 8, 8))
        tensors = traces.reduced(terms, model)
        row = tensors[trace_format.STATS_TENSOR][0, 1]
        assert row[1] > 0
        row[:] = change(*row)
        step = traces.write_step(tmp_path / "t", tensors)
        with pytest.raises(
            BadInputError, match="glassbox/abs/0: the map of sample 0 contradicts glassbox/stats"
        ):
            explain(traces.read_step(tmp_path / "t", step))

    def test_module_without_pixels_has_no_map(self, good):
        names = [layer.name for layer in good("reduced", {})[0].layers]
        assert names[-2:] == ["10", "11"]
        with pytest.raises(BadInputError, match="glassbox/abs/10: expected a tensor"):
            good(
                "reduced",
                {trace_format.META: lambda t: _replaced(t, b'"map": false', b'"map": true ')},
            )


def _replaced(meta, old, new):
    assert old in meta.tobytes()
    return np.frombuffer(meta.tobytes().replace(old, new), np.uint8)
