"""Exactly the parts that break FullGrad's sum are found and named, anywhere in a forward pass."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zoo
from exactness import inexact
from glassbox.explanation import trace_format as names
from gradients import biased_modules, effective_bias, record, reduced


def found(model, image=None):
    model.eval().requires_grad_(False)
    image = torch.randn(2, 8, 12, 12) if image is None else image
    return inexact(model, biased_modules(model), image)


class Between(nn.Module):
    """A function between two convolutions."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Linear(8, 5)
        self.function = function

    def forward(self, x):
        return self.last(self.function(self.first(x)).mean((2, 3)))


def written(x, value):
    """A copy of ``x`` with ``value`` for its first channel."""
    x = x.clone()
    x[:, 0] = value
    return x


def residual(model, image):
    """The completeness error / Σ|terms|."""
    modules = biased_modules(model)
    recording = record(model, modules, image)
    stats = reduced(recording, {name: effective_bias(m) for name, m in modules.items()})["glassbox/stats"]
    logit = recording.logits.amax(1).double().numpy()
    return float((abs(stats[:, :, 3].sum(1) - logit) / stats[:, :, 4].sum(1)).max())


class Dropping(nn.Module):
    """A functional dropout, which eval() does not turn off."""

    def __init__(self, share):
        super().__init__()
        self.conv, self.fc, self.share = nn.Conv2d(8, 8, 3), nn.Linear(8, 5), share

    def forward(self, x):
        return self.fc(F.dropout(self.conv(x).relu(), self.share, training=True).mean((2, 3)))


NOT_LINEAR, NORMALISES = "is not piecewise linear", "normalises by the statistics of its own input"
CLIPS, CONSTANT = "adds a constant where it clips", "adds a constant that is the bias of no module"
TAKEN = "takes in a constant"
PRODUCT = "multiplies or divides by features"


class TestZoo:
    @pytest.mark.parametrize("name", list(zoo.ZOO))
    def test_agrees_with_the_completeness_error_of_every_network(self, name):
        model, image = zoo.build(name)
        reasons = found(model, image)
        assert (reasons == []) is zoo.ZOO[name].exact
        assert (residual(model, image) <= 5e-7) is zoo.ZOO[name].exact
        assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]

    def test_names_modules_and_functions(self):
        assert found(*zoo.build("sigmoid gate")) == [
            "gate.2: Sigmoid is not piecewise linear",
            "Gated: the function Mul multiplies or divides by features",
        ]
        assert found(*zoo.build("functional SiLU")) == [
            "Functional: the function Silu is not piecewise linear"
        ]


class TestModules:
    @pytest.mark.parametrize(
        ("module", "reason"),
        [
            *[
                (module, NOT_LINEAR)
                for module in (
                    nn.GELU(), nn.SiLU(), nn.SiLU(inplace=True), nn.Mish(), nn.ELU(), nn.SELU(), nn.CELU(),
                    nn.Sigmoid(), nn.Tanh(), nn.Softplus(), nn.Softmax(1), nn.LogSoftmax(1), nn.Hardswish(),
                    nn.Hardsigmoid(), nn.Softshrink(), nn.Hardshrink(), nn.GLU(1),
                )
            ],
            *[
                (module, NORMALISES)
                for module in (
                    nn.GroupNorm(2, 8), nn.LayerNorm([12, 12]), nn.InstanceNorm2d(8, affine=True),
                    nn.BatchNorm2d(8, track_running_stats=False),
                )
            ],
            (nn.ReLU6(), CLIPS),
            (nn.ReLU6(inplace=True), CLIPS),
            (nn.Hardtanh(), CLIPS),
            (nn.ConstantPad2d(1, 3.0), TAKEN),
            (nn.LocalResponseNorm(2), PRODUCT),
            (nn.Softsign(), PRODUCT),
        ],
        ids=repr,
    )  # fmt: skip
    def test_names_modules_that_break_the_sum(self, module, reason):
        model = nn.Sequential(nn.Conv2d(8, 8, 1), module, nn.Flatten(), nn.LazyLinear(5))
        model(torch.zeros(2, 8, 12, 12))
        assert found(model) == [f"1: {type(module).__name__} {reason}"]

    @pytest.mark.parametrize(
        "module",
        [
            nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(), nn.LeakyReLU(inplace=True), nn.PReLU(), nn.RReLU(),
            nn.Identity(), nn.Dropout(), nn.Dropout2d(), nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False),
            nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(3),
            nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Upsample(scale_factor=2),
            nn.Upsample(scale_factor=2, mode="bilinear"), nn.ZeroPad2d(1), nn.ReflectionPad2d(1),
            nn.ReplicationPad2d(1), nn.CircularPad2d(1), nn.PixelShuffle(2), nn.PixelUnshuffle(2),
            nn.ChannelShuffle(2), nn.Conv2d(8, 4, 3, groups=4), nn.Conv2d(8, 4, 3, padding=1, padding_mode="circular"),
            nn.ConvTranspose2d(8, 4, 3, 2), nn.Linear(12, 7), nn.Linear(12, 7, bias=False),
            nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 4, 3)),
        ],
        ids=repr,
    )  # fmt: skip
    def test_accepts_modules_that_keep_the_sum(self, module):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(8, 8, 1), module, nn.Flatten(), nn.LazyLinear(5))
        model(torch.zeros(2, 8, 12, 12))
        assert found(model) == []
        assert residual(model, torch.randn(2, 8, 12, 12)) <= 5e-7

    def test_ignores_modules_that_are_not_called(self):
        model = Between(nn.Identity())
        model.forgotten = nn.GELU()
        assert found(model) == []

    def test_names_modules_whose_bias_is_left_out(self):
        class Constant(Between):
            def __init__(self):
                super().__init__(nn.Identity())
                self.position = nn.Linear(3, 5)

            def forward(self, x):
                return super().forward(x) + self.position(torch.ones(3))

        assert found(Constant()) == [
            "position: Linear returns no tensor that depends on the input, so its bias is left out",
            f"Constant: the function Add {CONSTANT}",
        ]

    def test_names_custom_modules(self):
        class Scale(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale, self.shift = nn.Parameter(torch.ones(8, 1, 1)), nn.Parameter(torch.ones(8, 1, 1))

            def forward(self, x):
                return x * self.scale + self.shift

        assert found(Between(Scale())) == [f"function: Scale {CONSTANT}"]


class TestFunctions:
    @pytest.mark.parametrize(
        ("function", "flaw"),
        [
            (lambda x: x + 1, f"Add {CONSTANT}"),
            (lambda x: 1 - x, f"Rsub {CONSTANT}"),
            (lambda x: x - torch.ones(8, 1, 1), f"Sub {CONSTANT}"),
            (lambda x: x * x.mean(), f"Mul {PRODUCT}"),
            (lambda x: x / x.abs().sum(), f"Div {PRODUCT}"),
            (lambda x: x @ x, f"Bmm {PRODUCT}"),
            (lambda x: F.conv2d(x, torch.ones(8, 8, 1, 1), torch.ones(8)), f"Convolution {CONSTANT}"),
            (lambda x: F.linear(x, torch.ones(4, 12), torch.ones(4)), f"Addmm {CONSTANT}"),
            (lambda x: F.batch_norm(x, None, None, training=True), f"NativeBatchNorm {NORMALISES}"),
            (lambda x: x.clamp(0, 1), f"Clamp {CLIPS}"),
            (lambda x: x.clamp(min=1), f"Clamp {CLIPS}"),
            (F.relu6, f"Hardtanh {CLIPS}"),
            (lambda x: torch.cat([x[:, :6], torch.ones(len(x), 2, 12, 12)], 1), f"Cat {TAKEN}"),
            (lambda x: torch.stack([x, torch.ones_like(x)]).sum(0), f"Stack {TAKEN}"),
            (lambda x: F.pad(x, (1, 1), value=3), f"ConstantPadNd {TAKEN}"),
            (lambda x: torch.maximum(x, torch.ones(1)), f"Maximum {TAKEN}"),
            (lambda x: torch.minimum(torch.ones(1), x), f"Minimum {TAKEN}"),
            (lambda x: torch.max(x, x.detach()), f"Maximum {TAKEN}"),
            (lambda x: x.masked_fill(x < 0, 5), f"MaskedFill {TAKEN}"),
            (lambda x: x.clone().masked_fill_(x < 0, torch.tensor(5.0)), f"MaskedFill {TAKEN}"),
            (lambda x: torch.where(x > 0, x, 2), f"Where {TAKEN}"),
            (lambda x: torch.where(x > 0, torch.ones(8, 1, 1), x), f"Where {TAKEN}"),
            (lambda x: written(x, 2), f"CopySlices {TAKEN}"),
            (lambda x: written(x, torch.ones(12, 12)).relu_(), f"CopySlices {TAKEN}"),
            (torch.sigmoid, f"Sigmoid {NOT_LINEAR}"),
            (torch.exp, f"Exp {NOT_LINEAR}"),
            (lambda x: x**2, f"Pow {NOT_LINEAR}"),
        ],
    )
    def test_names_functions_that_break_the_sum(self, function, flaw):
        torch.manual_seed(0)
        model = Between(function)
        assert found(model) == [f"Between: the function {flaw}"]
        assert residual(model, 20 * torch.randn(2, 8, 12, 12)) > 1e-5

    @pytest.mark.parametrize(
        "function",
        [
            F.relu, lambda x: F.relu_(x), torch.abs, lambda x: x.clamp(min=0), lambda x: x * 2 / 3, lambda x: -x,
            lambda x: x + x.relu(), lambda x: x - x.relu(), lambda x: torch.maximum(x, 2 * x),
            lambda x: torch.cat([x, x.relu()], 1)[:, 4:12], lambda x: torch.stack([x, x]).sum(0),
            lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
            lambda x: x @ torch.ones(12, 4), lambda x: F.conv2d(x, torch.ones(8, 8, 1, 1)),
            lambda x: F.interpolate(x, size=7, mode="bilinear"), lambda x: F.pad(x, (1, 1)), lambda x: x.flip(1),
            lambda x: x.double().float(), lambda x: torch.where(x > 0, x, -x), lambda x: x.masked_fill(x < 0, 0.0),
            lambda x: torch.cat([x[:, :6], torch.zeros(len(x), 2, 12, 12)], 1), lambda x: torch.where(x > 0, x, 0),
            lambda x: torch.maximum(x, torch.zeros(1)), lambda x: written(x, 0), lambda x: written(x, x[:, 1]),
            lambda x: written(torch.zeros(len(x), 8, 12, 12), x[:, 1]),
        ],
    )  # fmt: skip
    def test_accepts_functions_that_keep_the_sum(self, function):
        torch.manual_seed(0)
        model = Between(function)
        assert found(model) == []
        assert residual(model, torch.randn(2, 8, 12, 12)) <= 5e-7

    def test_names_the_function_before_an_in_place_or_idle_module(self):
        for module in (nn.ReLU(inplace=True), nn.Dropout(), nn.Identity()):

            class Net(nn.Module):
                def __init__(self, module=module):
                    super().__init__()
                    self.first, self.module = nn.Conv2d(8, 5, 3), module

                def forward(self, x):
                    return self.module(F.silu(self.first(x))).mean((2, 3))

            assert found(Net()) == ["Net: the function Silu is not piecewise linear"]


def test_ignores_plain_requests_of_other_threads():
    class Meanwhile(nn.Module):
        def forward(self, x):
            if torch.is_grad_enabled():
                thread = threading.Thread(target=plain)
                thread.start()
                thread.join()
            return x

    def plain():
        with torch.inference_mode():
            model(torch.randn(1, 8, 12, 12))

    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Sequential(nn.BatchNorm2d(8), Meanwhile()), nn.ReLU())
    model = nn.Sequential(model, nn.Flatten(), nn.Linear(8 * 12 * 12, 5))
    assert found(model) == []


def test_removes_all_hooks_when_the_model_fails():
    class Raises(nn.Module):
        def forward(self, x):
            raise ArithmeticError("in the middle")

    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), Raises())
    with pytest.raises(ArithmeticError, match="in the middle"):
        found(model)
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


class TestRandomness:
    """What is random in eval mode is named, by two passes over the same image."""

    def test_names_active_dropout(self):
        assert found(Dropping(0.5)) == [
            "Dropping: gives different logits for the same image (bernoulli in eval mode)"
        ]
        assert found(nn.Sequential(nn.Conv2d(8, 4, 3), nn.Dropout2d(), nn.Flatten(), nn.Linear(400, 5))) == []

    def test_names_added_noise(self):
        model = Between(lambda x: x + torch.randn_like(x))
        assert (
            found(model)[0] == "Between: gives different logits for the same image (randn_like in eval mode)"
        )

    def test_ignores_random_numbers_without_effect(self):
        assert names.RANDOM not in str(found(Between(lambda x: x + 0 * torch.rand_like(x).sum())))
        assert found(Between(lambda x: F.rrelu(x, training=False))) == []

    def test_random_network_keeps_a_small_residual(self):
        torch.manual_seed(0)
        model = Dropping(0.5).eval().requires_grad_(False)
        assert residual(model, torch.randn(2, 8, 12, 12)) <= 5e-7
