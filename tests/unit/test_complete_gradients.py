"""The terms add up to the class score for every kind of network, and each rule is needed for it."""

import copy
import math
import random
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import complete_gradients as cg
import gradient_rules
import gradient_self_test
import zoo
from complete_gradients import Decomposition, Term, UnexplainableError, complete_gradients
from gradient_self_test import CASES, Between, SelfTestError, self_test


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def images(n=1, size=16):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(3))


def rules_of(found):
    return {term.rule for term in found.terms} | found.held.keys()


def conv_head(*layers, channels=8):
    return nn.Sequential(
        nn.Conv2d(3, channels, 3), *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LazyLinear(5)
    )


def ready(model, size=16):
    """A network in eval mode, its lazy layers made, all biases and statistics random."""
    model.eval()
    with torch.no_grad():
        model(images(size=size))
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.ndim <= 1 and tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.25)
    return model


def assert_complete(model, x=None, **options):
    x = images(2) if x is None else x
    found = complete_gradients(model, x, **options)
    for one in found:
        assert one.unaccounted == []
        assert one.residual <= max(1e-5 * abs(one.score), 1e-7 * one.sum_abs), one.residual / one.sum_abs
        assert one.complete
    return found


class TestRules:
    @pytest.mark.parametrize("name", list(CASES))
    def test_each_rule_makes_its_sum_complete(self, name):
        found = gradient_self_test.decompose(CASES[name])
        assert found.complete
        assert CASES[name].rule in rules_of(found)

    @pytest.mark.parametrize("name", list(CASES))
    def test_without_its_rule_the_sum_is_incomplete(self, name, monkeypatch):
        """No term is computed from the residual: nothing else fills the gap."""
        needs = CASES[name].needs
        if needs in gradient_rules.RULES:
            for op in {needs, "_softmax"} & gradient_rules.RULES.keys():
                monkeypatch.delitem(gradient_rules.RULES, op)
        elif needs in gradient_rules.GATES:
            monkeypatch.setattr(cg, "GATES", gradient_rules.GATES - {needs})
        elif needs in gradient_rules.FACTORS:
            monkeypatch.delitem(gradient_rules.FACTORS, needs)
        elif needs == gradient_rules.ATTENTION:
            monkeypatch.setattr(gradient_rules, "ATTENTION", "none")
        elif needs == "rest":
            monkeypatch.setattr(gradient_rules.Region, "rest", lambda region: torch.zeros(()))
        else:
            monkeypatch.delitem(gradient_rules.CARRIERS, needs)
        found = gradient_self_test.decompose(CASES[name])
        assert found.residual > 1e-4 * abs(found.score)
        assert found.residual > 1e-5 * found.sum_abs

    def test_the_self_test_passes(self):
        self_test()

    def test_the_self_test_names_the_version_of_torch_and_the_case(self, monkeypatch):
        monkeypatch.delitem(gradient_rules.RULES, "gelu")
        with pytest.raises(
            SelfTestError,
            match=rf"torch {torch.__version__}: GELU: expected a complete sum".replace("+", r"\+"),
        ):
            self_test()
        monkeypatch.setattr(cg, "kind", None)
        with pytest.raises(SelfTestError, match="convolution: TypeError"):
            self_test()

    @pytest.mark.parametrize("op", ["silu", "gelu", "mish", "elu", "tanh", "hardswish"])
    def test_an_activation_at_zero_has_its_derivative(self, op):
        """The quotient s(x)/x is 0/0 there."""
        function = getattr(torch if op == "tanh" else F, op)
        (found,) = complete_gradients(
            nn.Sequential(nn.Flatten(), Elementwise(function), nn.Linear(48, 5)).eval(),
            torch.zeros(1, 3, 4, 4),
            keep_values=True,
        )
        assert found.complete
        assert all(math.isfinite(term.sum_abs) for term in found.terms)

    @pytest.mark.parametrize(
        "function",
        [
            lambda x: torch.maximum(
                x, torch.zeros(1) + 0.5
            ),  # torch gives each of two equal operands one half
            lambda x: torch.minimum(torch.zeros(1) - 0.5, x),
            lambda x: x.clamp(0.5, 1),
            lambda x: x.clamp(max=0.5),
            lambda x: x.clamp(min=0.5),
            lambda x: F.hardtanh(x, -0.5, 0.5),
            lambda x: F.threshold(x, 0.5, 1),
            lambda x: F.relu6(6 * x),
        ],
    )
    def test_values_at_the_bound_of_a_clip(self, function):
        x = (2 * images(2)).round() / 2
        assert int((x == 0.5).sum()) > 50
        assert_complete(nn.Sequential(Elementwise(function), nn.Flatten(), nn.Linear(768, 5)).eval(), x)

    @pytest.mark.parametrize("op", [F.softplus, F.logsigmoid])
    def test_slopes_near_zero_keep_their_digits(self, op):
        """s(x) − s(0) is rounded to 1e-7 there, and its quotient by x would be noise."""
        model, x = nn.Sequential(Elementwise(op), nn.Flatten(), nn.Linear(768, 5)).eval(), 1e-6 * images()
        (found,) = assert_complete(model, x, keep_values=True)
        (expected,) = complete_gradients(model.double(), x.double(), [found.target], keep_values=True)
        torch.testing.assert_close(
            found.terms[0].gradient.double(), expected.terms[0].gradient, rtol=1e-4, atol=1e-7
        )

    @pytest.mark.parametrize(
        "function",
        [
            lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-math.inf), 3, 1),
            lambda x: x.masked_fill(x < 0, -math.inf).softmax(1) * x,
            lambda x: x.masked_fill(x < 0, -math.inf).amax(1),
        ],
    )
    def test_infinite_padding_that_is_never_selected_adds_nothing(self, function):
        (found,) = assert_complete(Between(function).eval(), images(size=8))
        assert all(math.isfinite(term.sum_abs) for term in found.terms)

    def test_a_network_that_overflows_is_incomplete(self):
        (found,) = complete_gradients(Between(lambda x: (100 * x).expm1()).eval(), images(size=8))
        assert not found.complete

    def test_a_constant_tensor_that_is_added_into_has_two_terms(self):
        def function(x):
            constant = torch.full_like(x, 0.5)
            constant[:, 2:5] += x[:, :3]
            return constant

        (found,) = assert_complete(Between(function).eval(), images(size=8))
        assert [term.name for term in found.terms[1:]] == ["convolution", "add", "add/rest"]

    def test_relu_networks_hold_nothing(self):
        (found,) = assert_complete(*zoo.build("ResNet18 (BasicBlock)", samples=1))
        assert found.held == {}
        assert rules_of(found) == {"input", "batch norm", "bias"}


class Elementwise(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class TestReferences:
    @pytest.mark.parametrize("name", [name for name, net in zoo.ZOO.items() if net.exact])
    def test_every_term_of_a_relu_network_is_that_of_fullgrad(self, name):
        """Against autograd in float64, which shares nothing with the rules."""
        model, x = zoo.build(name, samples=2)
        expected = zoo.autograd_terms(model, x)
        found = complete_gradients(model, x, expected.target.tolist(), keep_values=True)
        for i, one in enumerate(found):
            torch.testing.assert_close(one.logits.double(), expected.logits[i], rtol=1e-4, atol=1e-5)
            terms = {"input": expected.image * expected.image_gradient}
            for name_, (bias, gradient) in expected.modules.items():
                terms[name_] = bias.view(1, -1, *[1] * (gradient.ndim - 2)) * gradient
            assert {term.name for term in one.terms} == terms.keys()
            for term in one.terms:
                reference = terms[term.name][i].double()
                scale = float(reference.abs().max())
                torch.testing.assert_close(term.values[0].double(), reference, rtol=1e-4, atol=1e-5 * scale)
                assert term.sum_abs == pytest.approx(float(reference.abs().sum()), rel=1e-5)
                assert term.total == pytest.approx(
                    float(reference.sum()), abs=1e-6 * float(reference.abs().sum())
                )
                assert (term.minimum, term.maximum) == pytest.approx(
                    (float(reference.abs().min()), scale), rel=1e-4, abs=1e-6 * scale
                )
                if reference.ndim == 3:
                    torch.testing.assert_close(
                        term.map.double(), reference.abs().sum(0), rtol=1e-4, atol=1e-5 * scale
                    )
                else:
                    assert term.map is None

    def test_the_gradient_of_the_input_is_the_difference_quotient(self):
        model, x = zoo.build("Inception-like branches", samples=1)
        model, x = model.double(), x.double()
        (found,) = complete_gradients(model, x, keep_values=True)
        gradient = found.terms[0].gradient[0]
        generator = random.Random(1)
        for _ in range(20):
            at = (0, generator.randrange(3), generator.randrange(32), generator.randrange(32))
            step = torch.zeros_like(x)
            step[at] = 1e-6
            with torch.no_grad():
                quotient = (model(x + step) - model(x - step))[0, found.target] / 2e-6
            assert float(gradient[at[1:]]) == pytest.approx(float(quotient), rel=1e-4, abs=1e-7)

    def test_held_coefficients_give_the_gradient_of_the_network_with_them_detached(self):
        """SiLU, LayerNorm, a gate, attention, a product and a clip, written out in float64 with explicit detach."""
        model = Modern().double().eval()
        x = images(size=8).double()
        (found,) = complete_gradients(model, x, keep_values=True)
        assert found.complete
        leaf = x.clone().requires_grad_()
        logits, _ = model.held(leaf)
        torch.testing.assert_close(logits[0], found.logits)
        (expected,) = torch.autograd.grad(logits[0, found.target], leaf)
        torch.testing.assert_close(found.terms[0].gradient, expected)
        names = {term.name: term for term in found.terms}
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                logits, _ = model.held(x)
                (gradient,) = torch.autograd.grad(logits[0, found.target], parameter, allow_unused=True)
                total = 0.0 if gradient is None else float((gradient * parameter.detach()).sum())
                parts = [t.total for n, t in names.items() if n.partition("/")[0] == name.rpartition(".")[0]]
                assert sum(parts) == pytest.approx(total, rel=1e-9, abs=1e-12), name
        assert found.terms[-2].rule == "clip"

    def test_float64_leaves_nothing_but_rounding(self):
        for name in zoo.ZOO:
            model, x = zoo.build(name, samples=1)
            (found,) = complete_gradients(model.double(), x.double())
            assert found.residual <= 1e-12 * found.sum_abs, name


class Modern(nn.Module):
    """A small network of today's parts, and :meth:`held`, the same with every coefficient detached by hand."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 2, 2), nn.LayerNorm(8)
        self.gate, self.qkv = nn.Linear(8, 8), nn.Linear(8, 24)
        self.fc = nn.Linear(8, 5)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, x):
        x = F.silu(self.conv(x)).flatten(2).transpose(1, 2)
        x = self.norm(x)
        x = x * torch.sigmoid(self.gate(x.mean(1, keepdim=True)))
        q, k, v = self.qkv(x)[:, None].chunk(3, -1)
        x = x + F.scaled_dot_product_attention(q, k, v)[:, 0]
        x = (x * x.flip(1)).mean(1).clamp(-0.5, 0.5)
        return self.fc(x)

    def held(self, x):
        z = self.conv(x)
        x = (z * torch.sigmoid(z).detach()).flatten(2).transpose(1, 2)
        mean = x.mean(-1, keepdim=True)
        rstd = torch.rsqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-5).detach()
        x = (x - mean) * rstd * self.norm.weight + self.norm.bias
        x = x * torch.sigmoid(self.gate(x.mean(1, keepdim=True))).detach()
        q, k, v = self.qkv(x).chunk(3, -1)
        weights = torch.softmax(q @ k.transpose(1, 2) / 8**0.5, -1).detach()
        x = x + weights @ v
        other = x.flip(1)
        x = ((x.detach() * other + x * other.detach()) / 2).mean(1)
        inside = x.abs() <= 0.5
        clipped = torch.where(inside, torch.zeros_like(x), x.sign() * 0.5).detach()
        return self.fc(torch.where(inside, x, clipped)), clipped


class Windowed(nn.Module):
    """Attention in windows of 4 × 4 tokens, shifted and padded, with its layers inside or outside of the windows."""

    def __init__(self, shift, inside):
        super().__init__()
        self.shift, self.inside = shift, inside
        self.patch, self.qkv, self.projection = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 24), nn.Linear(8, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)
        nn.init.normal_(self.norm.bias)
        self.eval()

    def forward(self, x):
        shortcut = self.patch(x).permute(0, 2, 3, 1)
        height, width = shortcut.shape[1:3]
        x = shortcut if self.inside else self.qkv(shortcut)
        x = F.pad(x, (0, 0, 0, -width % 4, 0, -height % 4))
        x = x.roll((-self.shift, -self.shift), (1, 2))
        rows, columns = x.shape[1] // 4, x.shape[2] // 4
        x = (
            x.view(-1, rows, 4, columns, 4, x.shape[-1])
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(-1, 16, x.shape[-1])
        )
        q, k, v = (self.qkv(x) if self.inside else x).chunk(3, -1)
        x = (q @ k.transpose(1, 2)).softmax(-1) @ v
        x = self.projection(x) if self.inside else x
        x = x.view(-1, rows, columns, 4, 4, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4 * rows, 4 * columns, 8)
        x = x.roll((self.shift, self.shift), (1, 2))[:, :height, :width]
        x = x if self.inside else self.projection(x)
        return self.head((self.norm(x) + shortcut).square().mean((1, 2)))


class TestNetworks:
    def test_reused_modules_are_numbered(self):
        model, x = zoo.build("a block used twice")
        names = [term.name for term in assert_complete(model, x)[0].terms]
        assert names == ["input", "stem.1", "block.0#0", "block.1#0", "block.0#1", "block.1#1", "head.2"]

    def test_a_module_called_input(self):
        model = ready(nn.Sequential())
        model.add_module("input", nn.Conv2d(3, 4, 1))
        model.add_module("flat", nn.Flatten())
        model.add_module("fc", nn.LazyLinear(5))
        names = [term.name for term in assert_complete(ready(model))[0].terms]
        assert names == ["input", "input#0", "fc"]

    def test_functional_code(self):
        class Functional(nn.Module):
            def __init__(self):
                super().__init__()
                self.kernel, self.shift = nn.Parameter(torch.randn(6, 3, 3, 3)), nn.Parameter(torch.randn(6))
                self.head = nn.Parameter(torch.randn(5, 6))

            def forward(self, x):
                x = F.gelu(F.conv2d(x, self.kernel, self.shift))
                return F.linear(x.mean((2, 3)), self.head, self.shift[:5])

        assert [t.rule for t in assert_complete(Functional().eval())[0].terms] == ["input", "bias", "bias"]

    @pytest.mark.parametrize("batch_first", [True, False])
    @pytest.mark.parametrize("weights", [True, False])
    def test_multihead_attention(self, batch_first, weights):
        class Attending(nn.Module):
            def __init__(self):
                super().__init__()
                self.patch = nn.Conv2d(3, 8, 4, 4)
                self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
                self.head = nn.Linear(8, 5)

            def forward(self, x):
                x = self.patch(x).flatten(2).transpose(1, 2)
                x = x if batch_first else x.transpose(0, 1)
                x, _ = self.attention(x, x, x, need_weights=weights)
                return self.head(x.mean(1 if batch_first else 0))

        found = assert_complete(ready(Attending()))
        assert found[0].held.keys() & {"gate", "attention"}
        assert {t.name for t in found[0].terms} >= {"patch", "attention.in_proj_bias", "attention.out_proj"}
        assert all(t.map is not None for t in found[0].terms if t.name.startswith("attention"))

    def test_a_transformer_with_class_token_and_positions(self):
        class Vision(nn.Module):
            def __init__(self):
                super().__init__()
                self.patch = nn.Conv2d(3, 8, 4, 4)
                self.token = nn.Parameter(torch.randn(1, 1, 8))
                self.positions = nn.Parameter(torch.randn(1, 17, 8))
                self.block = nn.TransformerEncoderLayer(
                    8, 2, 16, activation="gelu", batch_first=True, norm_first=True
                )
                self.head = nn.Linear(8, 5)

            def forward(self, x):
                x = self.patch(x).flatten(2).transpose(1, 2)
                x = torch.cat((self.token.expand(len(x), -1, -1), x), 1) + self.positions
                return self.head(self.block(x)[:, 0])

        found = assert_complete(Vision().eval(), images(2))[0]
        terms = {term.name: term for term in found.terms}
        assert {
            "token/prefix",
            "positions",
            "positions/prefix",
            "block.linear1",
            "block.norm1",
        } <= terms.keys()
        assert terms["positions"].map.shape == terms["block.linear1"].map.shape == (4, 4)
        assert terms["positions/prefix"].map is None

    @pytest.mark.parametrize("how", ["trace", "script", "freeze"])
    def test_torchscript_in_every_run(self, how):
        """From its second run on, TorchScript would fuse operators into nodes without a rule."""
        model = ready(conv_head(nn.BatchNorm2d(8), nn.SiLU(inplace=True), nn.Conv2d(8, 8, 3), nn.Hardswish()))
        expected = complete_gradients(model, images())[0]
        scripted = torch.jit.script(model) if how != "trace" else torch.jit.trace(model, images())
        scripted = torch.jit.freeze(scripted) if how == "freeze" else scripted
        for _ in range(4):
            with torch.inference_mode():
                scripted(images())
            (found,) = assert_complete(scripted, images())
            assert found.score == pytest.approx(expected.score, rel=1e-4)
            assert found.terms[0].total == pytest.approx(expected.terms[0].total, rel=1e-3)

    def test_a_batch_norm_that_applies_its_activation(self):
        class BatchNormAct(nn.BatchNorm2d):
            def forward(self, x):
                return F.relu(super().forward(x), inplace=True)

        (found,) = assert_complete(ready(conv_head(BatchNormAct(8))), images())
        assert [(t.name, t.rule, t.type) for t in found.terms][2] == ("1", "batch norm", "BatchNormAct")
        assert found.held == {}

    def test_layers_over_tokens_of_all_samples(self):
        class Flat(nn.Module):
            def __init__(self):
                super().__init__()
                self.patch, self.linear, self.norm = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.BatchNorm1d(8)
                self.head = nn.Linear(8, 5)

            def forward(self, x):
                tokens = self.patch(x).flatten(2).transpose(1, 2)
                flat = self.norm(self.linear(tokens).flatten(0, 1))
                return self.head(flat.reshape(tokens.shape).relu().mean(1))

        found = assert_complete(ready(Flat()), images(3))
        assert {t.name: t.map is not None for t in found[0].terms} == {
            "input": True, "patch": True, "linear": True, "norm": True, "head": False,
        }  # fmt: skip

    def test_channels_last_and_tokens_come_back_as_maps(self):
        class Last(nn.Module):
            def __init__(self):
                super().__init__()
                self.patch, self.linear, self.norm = nn.Conv2d(3, 8, 4, 2), nn.Linear(8, 12), nn.LayerNorm(12)
                self.head = nn.Linear(12, 5)

            def forward(self, x):
                return self.head(self.norm(self.linear(self.patch(x).permute(0, 2, 3, 1))).mean((1, 2)))

        x = torch.randn(1, 3, 16, 24)
        (found,) = assert_complete(Last().eval(), x, keep_values=True)
        for term in found.terms[1:4]:
            assert term.map.shape == (7, 11)
            torch.testing.assert_close(term.map, term.values.abs().sum(1)[0])
        assert [t.channels for t in found.terms] == [3, 8, 12, 12, 5]

    def test_channels_last_of_as_many_channels_as_pixels_in_a_row(self):
        """The shape (1, 8, 8, 8) fits both orders; the same layer as a convolution has one."""

        class Last(nn.Module):
            def __init__(self):
                super().__init__()
                self.patch, self.linear, self.head = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 8), nn.Linear(8, 5)

            def forward(self, x):
                x = self.linear(self.patch(x).permute(0, 2, 3, 1)).relu()
                return self.head((x * x).mean((1, 2)))

        class First(Last):
            def forward(self, x):
                x = F.conv2d(self.patch(x), self.linear.weight[:, :, None, None], self.linear.bias).relu()
                return self.head((x * x).mean((2, 3)))

        last, first = Last().eval(), First().eval()
        first.load_state_dict(last.state_dict())
        (found,), (expected,) = assert_complete(last, images()), assert_complete(first, images())
        assert found.terms[2].name == expected.terms[2].name == "linear"
        torch.testing.assert_close(found.terms[2].map, expected.terms[2].map)

    @pytest.mark.parametrize("shift", [0, 1, 3])
    def test_windows_come_back_in_place(self, shift):
        """A Linear is the same layer before and after the tokens are sorted into windows; its map is the same."""
        inside, outside = Windowed(shift, inside=True), Windowed(shift, inside=False)
        outside.load_state_dict(inside.state_dict())
        x = torch.randn(2, 3, 16, 24)
        for found, expected in zip(assert_complete(inside, x), assert_complete(outside, x), strict=True):
            ours = {term.name: term for term in found.terms}
            theirs = {term.name: term for term in expected.terms}
            for name in ("qkv", "projection", "norm"):
                assert ours[name].map.shape == (8, 12)
                assert float(ours[name].map.std()) > 0.01 * float(ours[name].map.mean())
                torch.testing.assert_close(ours[name].map, theirs[name].map, rtol=1e-4, atol=1e-6)

    def test_padding_of_windows_enters_the_sum_alone(self):
        (found,) = assert_complete(Windowed(1, inside=True), torch.randn(1, 3, 14, 18), keep_values=True)
        terms = {term.name: term for term in found.terms}
        assert terms["qkv"].map.shape == (7, 9)
        assert terms["qkv/padding"].map is None
        assert terms["qkv/padding"].values.shape == (1, 8 * 12 - 7 * 9, 24)
        assert float(terms["qkv"].map.min()) > 0
        # Nothing reads what the last layer returns for the padding.
        assert terms["projection/padding"].sum_abs == 0

    def test_layers_after_the_mean_have_no_place(self):
        class Pooled(nn.Module):
            def __init__(self):
                super().__init__()
                self.patch, self.norm, self.linear = nn.Conv2d(3, 8, 2, 2), nn.LayerNorm(8), nn.Linear(8, 5)
                nn.init.normal_(self.norm.bias)

            def forward(self, x):
                x = self.patch(x).relu().permute(0, 2, 3, 1).mean((1, 2), keepdim=True)
                return self.linear(self.norm(x)).flatten(1)

        (found,) = assert_complete(Pooled().eval(), images())
        assert [t.name for t in found.terms if t.map is None] == ["norm", "linear"]

    def test_rows_of_several_pixels_have_no_place(self):
        class Rows(nn.Module):
            def __init__(self):
                super().__init__()
                self.patch, self.linear, self.head = nn.Conv2d(3, 6, 2, 2), nn.Linear(4, 7), nn.Linear(7, 5)

            def forward(self, x):
                x = self.patch(x).unflatten(3, (2, 4)).flatten(1, 3)
                return self.head(self.linear(x).mean(1))

        (found,) = assert_complete(Rows().eval(), images())
        assert {t.name: t.map is not None for t in found.terms}["linear"] is False

    def test_merged_patches_have_maps_down_to_an_eighth(self):
        class Merging(nn.Module):
            def __init__(self):
                super().__init__()
                self.patch, self.head = nn.Conv2d(3, 3, 2, 2), nn.Linear(3, 5)
                self.merge = nn.ModuleList(nn.Linear(12, 3) for _ in range(3))

            def forward(self, x):
                x = self.patch(x).permute(0, 2, 3, 1)
                for linear in self.merge:
                    quarters = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
                    x = linear(torch.cat(quarters, -1)).sigmoid() * 2 - 1
                return self.head(x.mean((1, 2)))

        (found,) = assert_complete(Merging().eval(), torch.randn(1, 3, 48, 80))
        sizes = {t.name: tuple(t.map.shape) for t in found.terms if t.name.startswith("merge")}
        assert sizes == {"merge.0": (12, 20), "merge.1": (6, 10), "merge.2": (3, 5)}

    def test_networks_that_write_into_their_input(self):
        def normalised(inside):
            class InPlace(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.net = conv_head(nn.ReLU())

                def forward(self, x):
                    inside(x)
                    return self.net(x)

            return ready(InPlace())

        def without_gradients(x):
            with torch.no_grad():
                x.sub_(0.5).div_(0.25)

        def by_channel(x):
            x[:, 0] -= 0.5
            x[:, 1:].mul_(2).add_(1)

        def detached(x):
            x.data.sub_(0.5)

        for inside in (lambda x: x.sub_(0.5).div_(0.25), without_gradients, by_channel, detached):
            x = images(2)
            before = x.clone()
            assert_complete(normalised(inside), x)
            assert torch.equal(x, before)

    def test_in_place_operators_on_parts_that_no_rule_covers_are_named(self):
        def function(x):
            x = x.clone()
            x[:, :4].sigmoid_()
            return x

        (found,) = complete_gradients(Between(function).eval(), images(size=8))
        assert found.unaccounted == ["sigmoid in place into a view: no rule"]
        assert not found.complete

    def test_nodes_that_no_rule_covers_are_named_and_counted(self):
        class Cube(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x**3

            @staticmethod
            def backward(ctx, g):
                return 3 * g * ctx.saved_tensors[0] ** 2

        (found,) = complete_gradients(Between(lambda x: Cube.apply(Cube.apply(x))).eval(), images(size=8))
        assert found.unaccounted == ["Cube: no rule for this autograd node (2 places)"]
        assert not found.complete
        (found,) = complete_gradients(Between(lambda x: x.cumprod(1)).eval(), images(size=8))
        assert found.unaccounted == ["Cumprod: no rule for this autograd node"]

    def test_a_sum_that_holds_by_chance_is_not_complete(self):
        found = Decomposition(
            torch.tensor([1.0]),
            torch.tensor([1.0]),
            0,
            [Term("input", "", "", "", 1, 0, 1, 1.0, 1.0, None)],
            {},
            ["Odd"],
            [],
            "",
            "",
            1,
        )
        assert found.residual == 0
        assert not found.complete

    @pytest.mark.parametrize(
        ("last", "peeled"),
        [(nn.Softmax(1), "softmax"), (nn.LogSoftmax(1), "log_softmax"), (nn.Sigmoid(), "sigmoid")],
    )
    def test_a_final_softmax_or_sigmoid_is_peeled_off(self, last, peeled):
        model = ready(conv_head(nn.SiLU()))
        for one, plain in zip(
            assert_complete(nn.Sequential(model, last).eval()),
            complete_gradients(model, images(2)),
            strict=True,
        ):
            assert (one.peeled, plain.peeled) == (peeled, "")
            assert torch.equal(one.logits, plain.logits)
            torch.testing.assert_close(one.output, last(plain.logits[None])[0])

    def test_networks_whose_activation_is_a_gate(self):
        """LeNet: every path to the image leads through a sigmoid, so that holding it would leave nothing."""
        model = ready(conv_head(nn.Sigmoid(), nn.Conv2d(8, 8, 3), nn.Sigmoid()))
        (found,) = assert_complete(model, images())
        assert found.terms[0].sum_abs > 0
        assert found.held == {"activation": 2}

    def test_outputs_of_several_forms(self):
        class Form(nn.Module):
            def __init__(self, form):
                super().__init__()
                self.net, self.form = conv_head(nn.ReLU()), form

            def forward(self, x):
                return self.form(self.net(x))

        for form in (lambda y: {"logits": y}, lambda y: {"a": y}, lambda y: (y, None), lambda y: [y]):
            assert_complete(ready(Form(form)))
        assert_complete(ready(Form(lambda y: {"x": 1, "y": y})), scores_of=lambda output: output["y"])

    def test_half_precision_and_inference_tensors_run_as_a_copy(self):
        model = ready(conv_head(nn.SiLU())).to(torch.bfloat16)
        (found,) = assert_complete(model, images())
        assert found.logits.dtype == torch.float32
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        with torch.inference_mode():
            model = ready(conv_head(nn.ReLU()))
            assert_complete(model, images())

    def test_autocast_of_the_caller_is_switched_off(self):
        model = ready(conv_head(nn.SiLU()))
        with torch.autocast("cpu", torch.bfloat16):
            assert_complete(model)

    def test_dropout_that_stays_on_is_named(self):
        (found,) = complete_gradients(
            Between(lambda x: F.dropout(x, 0.5, training=True)).eval(), images(size=8)
        )
        assert found.random == ["bernoulli"]
        assert not found.complete
        assert_complete(Between(lambda x: x + 0 * torch.rand_like(x)).eval(), images(size=8))


class TestSamples:
    def test_a_batch_is_its_samples(self):
        model, x = zoo.build("functional SiLU", samples=3)
        together = complete_gradients(model, x)
        for i, one in enumerate(together):
            (alone,) = complete_gradients(model, x[i : i + 1])
            assert [(t.name, t.total) for t in one.terms] == [(t.name, t.total) for t in alone.terms]

    def test_any_class_can_be_the_target(self):
        model, x = zoo.build("sigmoid gate", samples=3)
        for one, target in zip(assert_complete(model, x, targets=[0, 4, 9]), (0, 4, 9), strict=True):
            assert one.target == target
            assert one.score == float(one.logits[target])

    @pytest.mark.parametrize("target", [-1, 10])
    def test_a_target_out_of_range_is_refused(self, target):
        model, x = zoo.build("SiLU", samples=1)
        with pytest.raises(UnexplainableError, match=f"target: expected a class from 0 to 9, got {target}"):
            complete_gradients(model, x, [target])


class TestRefusals:
    def test_train_mode(self):
        model = ready(conv_head(nn.BatchNorm2d(8)))
        model[1].train()
        with pytest.raises(
            UnexplainableError, match=r"1: expected eval mode, got train mode\. Call eval\(\)"
        ):
            complete_gradients(model, images())
        model[1].eval()
        model[
            0
        ].train()  # a convolution is the same in both modes: a head that was exchanged after eval(), for example
        assert_complete(model)
        function = Between(lambda x: F.batch_norm(x, torch.zeros(8), torch.ones(8), training=True)).eval()
        with pytest.raises(UnexplainableError, match="batch norm: expected eval mode"):
            complete_gradients(function, images(size=8))

    @pytest.mark.parametrize(
        ("function", "reason"),
        [
            (lambda x: x.detach(), "for autograd they do not depend on it"),
            (lambda x: x * 0 + x.sign().exp(), None),
            (lambda x: x.exp(), "every path to it leads through a gate"),
        ],
    )
    def test_scores_that_do_not_depend_on_the_image(self, function, reason):
        model = Between(function).eval()
        if reason is None:
            assert_complete(model, images(size=8))
            return
        with pytest.raises(UnexplainableError, match=reason):
            complete_gradients(model, images(size=8))

    @pytest.mark.parametrize("shape", [(3, 8, 8), (1, 3, 8)])
    def test_images_of_another_shape(self, shape):
        with pytest.raises(UnexplainableError, match=r"images: expected floating point \(N, C, H, W\)"):
            complete_gradients(nn.Identity().eval(), torch.zeros(shape))

    def test_images_of_integers(self):
        with pytest.raises(UnexplainableError, match=r"got torch\.uint8"):
            complete_gradients(nn.Identity().eval(), torch.zeros(1, 3, 8, 8, dtype=torch.uint8))

    @pytest.mark.parametrize(
        "output", [lambda x: x.mean((2, 3))[0], lambda x: x, lambda x: "no tensor", lambda x: None]
    )
    def test_outputs_that_are_no_scores(self, output):
        with pytest.raises(UnexplainableError, match=r"expected (class scores \(N, K\)|\(1, K\))"):
            complete_gradients(Elementwise(output).eval(), images())


class TestNothingChanges:
    def test_flags_buffers_gradients_hooks_and_random_state(self):
        torch.manual_seed(5)
        model = ready(conv_head(nn.BatchNorm2d(8), nn.Dropout(), Noise()))
        model[0].weight.requires_grad_(False)
        model[1].weight.grad = torch.ones(8)
        calls = []
        handle = model[1].register_forward_hook(lambda *_: calls.append(1))
        before = copy.deepcopy(model.state_dict())
        flags = [(p.requires_grad, p.grad is None) for p in model.parameters()]
        state, tf32 = torch.get_rng_state(), torch.backends.cudnn.allow_tf32
        complete_gradients(model, images(2))
        assert [(p.requires_grad, p.grad is None) for p in model.parameters()] == flags
        assert torch.equal(model[1].weight.grad, torch.ones(8))
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not any(m.training for m in model.modules())
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.backends.cudnn.allow_tf32 == tf32
        hooks = [
            h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks, *m._backward_hooks)
        ]
        assert hooks == [handle.id]
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()

    def test_a_network_that_fails_is_restored(self):
        class Fails(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 3, 1)

            def forward(self, x):
                self.seen = self.conv(x)
                raise ArithmeticError("inside")

        model = Fails().eval()
        with pytest.raises(ArithmeticError, match="inside"):
            complete_gradients(model, images())
        assert all(p.requires_grad for p in model.parameters())
        assert not hasattr(model, "seen")

    def test_a_network_that_writes_into_its_buffers_runs_as_a_copy(self):
        class Counts(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = conv_head(nn.ReLU())
                self.register_buffer("calls", torch.zeros(1))
                self.last, self.number = None, 0

            def forward(self, x):
                self.number += 1
                self.calls += 1
                self.last = x
                return self.net(x)

        model = ready(Counts())
        state = (float(model.calls), model.number, model.last)
        assert_complete(model, images(3))
        assert (float(model.calls), model.number) == state[:2]
        assert model.last is state[2]

    def test_tf32_is_off_inside_and_restored(self):
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        try:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            with pytest.raises(ArithmeticError), cg.without_tf32():
                assert not torch.backends.cuda.matmul.allow_tf32
                assert not torch.backends.cudnn.allow_tf32
                raise ArithmeticError
            assert torch.backends.cuda.matmul.allow_tf32
            assert torch.backends.cudnn.allow_tf32
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before

    def test_live_requests_beside_it_get_the_same_answers(self):
        model = ready(conv_head(nn.BatchNorm2d(8), nn.SiLU(inplace=True)))
        x, stop, answers = images(2), threading.Event(), []
        with torch.inference_mode():
            expected = model(x)

        def live():
            with torch.inference_mode():
                while not stop.is_set():
                    answers.append(torch.equal(model(x), expected))

        threads = [threading.Thread(target=live) for _ in range(2)]
        for thread in threads:
            thread.start()
        results = []

        def explains():
            results.extend(complete_gradients(model, x) for _ in range(5))

        explaining = [threading.Thread(target=explains) for _ in range(2)]
        for thread in explaining:
            thread.start()
        for thread in explaining:
            thread.join()
        stop.set()
        for thread in threads:
            thread.join()
        assert len(results) == 10
        assert answers
        assert all(answers)
        assert all(one.complete for found in results for one in found)
        assert all(p.requires_grad for p in model.parameters())


class Noise(nn.Module):
    def forward(self, x):
        return x + 0 * torch.rand_like(x)


def test_the_rules_are_listed_in_the_documentation():
    rules = {case.rule for case in CASES.values()}
    listed = {line[:13].strip() for line in gradient_rules.__doc__.splitlines()}
    assert rules <= listed


def test_numbers_are_finite_at_the_edges():
    model, _ = zoo.build("sigmoid gate")
    for x in (torch.zeros(1, 3, 32, 32), torch.full((1, 3, 32, 32), 1e6)):
        (found,) = complete_gradients(model, x)
        assert np.isfinite([t.sum_abs for t in found.terms]).all()
