"""The tensors of a trace are the terms that autograd computes in float64."""

import numpy as np
import pytest
import torch
from torch import nn

import gradient_self_test
import gradients
import zoo
from glassbox.explanation import trace_format as names
from gradients import Gradients, merged

pytestmark = pytest.mark.usefixtures("one_thread")


RULES_OF_TERMS = {"bias", "batch norm", "normalization", "activation", "gate", "clip", "constant"}


def images(n=1, seed=0):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def computed(model, x, targets=None, trace_form=names.REDUCED):
    """The meta and the tensors of a batch."""
    network = Gradients(model.eval(), trace_form)
    targets = [None] * len(x) if targets is None else targets
    return merged([network.compute(x[i : i + 1], targets[i]) for i in range(len(x))])


class Routed(nn.Module):
    """A network whose path depends on the image."""

    def __init__(self):
        super().__init__()
        self.dark, self.light, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Linear(4, 5)

    def forward(self, x):
        return self.fc((self.light if x.mean() > 0 else self.dark)(x).mean((2, 3)))


class TestReduced:
    @pytest.mark.parametrize("name", [name for name, net in zoo.ZOO.items() if net.exact])
    def test_every_tensor_is_what_autograd_recomputes(self, name):
        model, x = zoo.build(name, samples=3)
        terms = zoo.autograd_terms(model, x)
        meta, found = computed(model, x, terms.target.tolist())

        expected = {names.INPUT: terms.image * terms.image_gradient}
        for key, (bias, gradient) in terms.modules.items():
            expected[key] = bias.view(-1, *[1] * (gradient.ndim - 2)) * gradient
        order = [names.INPUT, *(term["name"] for term in meta["terms"])]
        assert set(order) == expected.keys()
        assert (meta["held"], meta["unaccounted"]) == ({}, [])
        np.testing.assert_allclose(found.pop(names.LOGITS), terms.logits, rtol=1e-4, atol=1e-5)
        assert found.pop(names.TARGET).tolist() == terms.target.tolist()
        stats = found.pop(names.STATS_TENSOR)
        assert stats.dtype == np.float64
        assert stats.shape == (3, 1 + len(terms.modules), len(names.STATS))
        for row, key in zip(stats.transpose(1, 0, 2), order, strict=True):
            term = expected[key].flatten(1)
            scale = term.abs().amax(1).numpy()
            assert (row[:, 0] == expected[key].shape[1]).all()
            np.testing.assert_allclose(row[:, 1], term.abs().amin(1), atol=1e-5 * scale.max())
            np.testing.assert_allclose(row[:, 2], scale, rtol=1e-5)
            np.testing.assert_allclose(row[:, 3], term.sum(1), atol=1e-6 * term.abs().sum(1).max())
            np.testing.assert_allclose(row[:, 4], term.abs().sum(1), rtol=1e-5)
            if expected[key].ndim == 4:
                map_ = found.pop(names.abs_map(key))
                assert map_.dtype == np.float32
                np.testing.assert_allclose(
                    map_, expected[key].abs().sum(1), rtol=1e-4, atol=1e-5 * scale.max()
                )
        assert not found

    @pytest.mark.parametrize("seed", range(6))
    def test_the_sums_add_up_to_the_logit(self, seed):
        """Of any class, with random BatchNorms that have channels of tiny variance and of none."""
        model, x = zoo.build("ResNet18 (BasicBlock)", seed, samples=10)
        _, found = computed(model, x, list(range(10)))
        stats = found[names.STATS_TENSOR]
        residual = np.abs(stats[:, :, 3].sum(1) - np.diag(found[names.LOGITS]).astype(np.float64))
        assert (residual <= 5e-7 * stats[:, :, 4].sum(1)).all()

    @pytest.mark.parametrize("name", list(zoo.ZOO))
    def test_terms_carry_their_rule(self, name):
        meta, _ = computed(*zoo.build(name, samples=1))
        for term in meta["terms"]:
            assert term["rule"] in RULES_OF_TERMS
            assert (term["eps"] is not None) == term["type"].startswith("BatchNorm")

    def test_the_order_of_the_numbers_in_memory_does_not_matter(self):
        model, x = zoo.build("ResNet18 (BasicBlock)")
        _, expected = computed(model, x)
        _, found = computed(
            model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
        )
        for name, tensor in expected.items():
            np.testing.assert_allclose(found[name], tensor, rtol=1e-3, atol=1e-5 * np.abs(tensor).max())

    @pytest.mark.parametrize("x", [torch.zeros(1, 3, 48, 48), torch.full((1, 3, 48, 48), 1e6)])
    def test_numbers_are_finite_at_the_edges(self, x):
        model, _ = zoo.build("ResNet18 (BasicBlock)")
        assert all(np.isfinite(tensor).all() for tensor in computed(model, x)[1].values())

    def test_an_output_that_is_not_used_has_no_term(self):
        class Unused(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.ignored, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

            def forward(self, x):
                x = self.first(x)
                self.ignored(x)
                return self.fc(x.mean((2, 3)))

        meta, _ = computed(Unused(), images(2))
        assert [term["name"] for term in meta["terms"]] == ["first", "fc"]


class TestFull:
    @pytest.mark.parametrize("name", list(zoo.ZOO))
    def test_holds_every_term(self, name):
        """A module's bias as its parameters and a gradient, all else as the term."""
        model, x = zoo.build(name)
        meta, found = computed(model, x, trace_form=names.FULL)
        network = Gradients(model, names.FULL)
        for term in meta["terms"]:
            gradient = names.output_gradient(term["name"])
            values = names.term_values(term["name"])
            assert (gradient in found) != (values in found)
            assert found[gradient if gradient in found else values].shape[0] == len(x)
            if gradient in found and not term["type"].startswith("BatchNorm2d"):
                assert names.parameter(type(model).__name__, term["name"], "bias") in network.parameters

    def test_a_clipped_value_is_a_term(self):
        meta, found = computed(*zoo.build("ReLU6"), trace_form=names.FULL)
        clips = [term["name"] for term in meta["terms"] if term["rule"] == "clip"]
        assert clips
        assert all(found[names.term_values(name)].ndim == 4 for name in clips)


class TestMerged:
    def test_a_sample_without_a_term_of_another_holds_zeros(self):
        x = torch.stack((torch.full((3, 8, 8), -1.0), torch.full((3, 8, 8), 1.0)))
        for trace_form in (names.REDUCED, names.FULL):
            meta, found = computed(Routed(), x, trace_form=trace_form)
            assert [term["name"] for term in meta["terms"]] in (
                ["dark", "light", "fc"],
                ["light", "dark", "fc"],
            )
        meta, found = computed(Routed(), x)
        dark = [term["name"] for term in meta["terms"]].index("dark") + 1
        stats = found[names.STATS_TENSOR]
        assert stats[0, dark, 4] > 0
        assert stats[1, dark].tolist() == [4, 0, 0, 0, 0]
        assert not found[names.abs_map("dark")][1].any()
        logits = found[names.LOGITS].max(1)
        np.testing.assert_allclose(stats[:, :, 3].sum(1), logits, rtol=1e-5)

    def test_maps_of_different_sizes_are_refused(self):
        class Resizing(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)

            def forward(self, x):
                return self.fc(self.conv(x[..., ::2, ::2] if x.mean() > 0 else x).mean((2, 3)))

        with pytest.raises(ValueError, match=r"glassbox/abs/conv: expected one shape.*different paths"):
            computed(Resizing(), torch.stack((torch.full((3, 8, 8), -1.0), torch.full((3, 8, 8), 1.0))))


def test_random_networks_are_unaccounted():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 5)

        def forward(self, x):
            return self.fc(nn.functional.dropout(x.mean((2, 3)), 0.5, training=True))

    meta, _ = computed(Dropping(), images())
    assert meta["unaccounted"] == [
        "Dropping: gives different logits for the same image (bernoulli in eval mode)"
    ]


def test_nothing_is_explained_where_the_self_test_fails(monkeypatch):
    def fails():
        raise gradient_self_test.SelfTestError("self-test of the gradients with torch 9.9: GELU: …")

    monkeypatch.setattr(gradients, "self_test", fails)
    gradients.self_test_error.cache_clear()
    try:
        with pytest.raises(gradient_self_test.SelfTestError, match=r"torch 9\.9: GELU"):
            computed(Routed(), images())
    finally:
        gradients.self_test_error.cache_clear()


@pytest.mark.parametrize("target", [5, -1])
def test_a_target_out_of_range_is_refused(target):
    with pytest.raises(ValueError, match=f"target: expected a class from 0 to 4, got {target}"):
        computed(Routed(), images(), [target])
