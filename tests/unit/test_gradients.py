"""The recorded gradients are what autograd computes, and no hook stays on the model."""

import numpy as np
import pytest
import torch
from torch import nn

import gradients
import zoo
from glassbox.explanation import trace_format as names
from resnet import ResNet18


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def same(found, expected):
    """Whether two passes gave the same logits; with gradients, other kernels may run, and kernels round differently."""
    return found.shape == expected.shape and torch.allclose(
        found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
    )


def images(n=1, seed=0):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def hooks_of(model):
    return [
        h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks, *m._backward_hooks)
    ]


def recorded(model, image, target=None):
    """The recording of a network of the zoo, and its terms by autograd in float64."""
    model.requires_grad_(False)
    modules = gradients.biased_modules(model)
    recording = gradients.record(model, modules, image, target)
    return recording, {name: gradients.effective_bias(module) for name, module in modules.items()}


class TestRecord:
    @pytest.mark.parametrize("name", list(zoo.ZOO))
    def test_returns_the_plain_logits(self, name):
        model, image = zoo.build(name)
        with torch.inference_mode():
            plain = model(image)
        recording, _ = recorded(model, image)
        assert same(recording.logits, plain)
        assert torch.equal(recording.target, recording.logits.argmax(1))

    @pytest.mark.parametrize("name", list(zoo.ZOO))
    def test_reduced_tensors_equal_autograds(self, name):
        model, image = zoo.build(name, samples=3)
        terms = zoo.autograd_terms(model, image)
        recording, biases = recorded(model, image, terms.target)
        found = gradients.reduced(recording, biases)

        expected = {names.INPUT: terms.image * terms.image_gradient}
        for key, (bias, gradient) in terms.modules.items():
            expected[key] = bias.view(-1, *[1] * (gradient.ndim - 2)) * gradient
        assert set(recording.gradients) == set(terms.modules)
        stats = found.pop(names.STATS_TENSOR)
        assert stats.dtype == np.float64
        assert stats.shape == (3, 1 + len(terms.modules), len(names.STATS))
        for row, key in zip(stats.transpose(1, 0, 2), [names.INPUT, *recording.gradients], strict=True):
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
    def test_terms_sum_to_the_logit(self, seed):
        """Of any class, with random BatchNorms that have channels of tiny variance and of none."""
        model, image = zoo.build("ResNet18 (BasicBlock)", seed, samples=10)
        recording, biases = recorded(model, image, torch.arange(10))
        stats = gradients.reduced(recording, biases)[names.STATS_TENSOR]
        logits = recording.logits.double().gather(1, torch.arange(10)[:, None])[:, 0].numpy()
        residual = np.abs(stats[:, :, 3].sum(1) - logits)
        assert (residual <= 5e-7 * stats[:, :, 4].sum(1)).all()

    def test_bias_of_batchnorm_includes_eps(self):
        """Without it, a variance of 0 gives no number; with another eps, another number."""
        norm = nn.BatchNorm2d(2, eps=1e-3)
        norm.running_mean[:], norm.running_var[:] = torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])
        expected = torch.tensor([-2 / 1e-3**0.5, -3 / 1.001**0.5])
        assert torch.equal(gradients.effective_bias(norm), expected)

    @pytest.mark.parametrize("parameters", [True, False])
    def test_bias_equals_the_modules_output_for_zeros(self, parameters):
        torch.manual_seed(0)
        for module in (
            nn.BatchNorm2d(6, affine=parameters),
            nn.BatchNorm1d(6, affine=parameters),
            nn.SyncBatchNorm(6, affine=parameters),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.ConvTranspose2d(6, 6, 3, padding=1),
            nn.Conv1d(6, 6, 3, padding=1),
        ):
            if isinstance(module, gradients.BATCH_NORM):
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var)
                for parameter in module.parameters():
                    nn.init.normal_(parameter)
            ndim = 3 if type(module).__name__.endswith("1d") else 4
            zeros = torch.zeros(1, 6, *[4] * (ndim - 2))
            answer = module.eval()(zeros).detach().flatten(2)[0, :, 0]
            torch.testing.assert_close(gradients.effective_bias(module), answer)

    def test_records_only_modules_with_a_bias(self):
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, track_running_stats=False), nn.GroupNorm(2, 4),
            nn.LayerNorm(4), nn.InstanceNorm2d(4, affine=True), nn.Linear(4, 4, bias=False),
            nn.Linear(4, 4), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 4, 1),
        )  # fmt: skip
        assert list(gradients.biased_modules(model)) == ["6", "7", "8"]

    def test_numbers_calls_of_modules_used_twice_or_named_input(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.input, self.twice = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
                self.ignored, self.never = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
                self.fc = nn.Linear(4, 5)

            def forward(self, x):
                x = self.twice(self.twice(self.input(x)).relu())
                self.ignored(x)
                return self.fc(x.mean((2, 3)))

        recording, biases = recorded(Net().eval(), images(2))
        assert list(recording.gradients) == ["input#0", "twice#0", "twice#1", "ignored", "fc"]
        assert recording.head == "fc"
        found = gradients.reduced(recording, biases)
        stats = found[names.STATS_TENSOR]
        logit = recording.logits.amax(1).double().numpy()
        np.testing.assert_allclose(stats[:, :, 3].sum(1), logit, rtol=1e-5)
        assert (stats[:, 4] == [4, 0, 0, 0, 0]).all()
        assert not found[names.abs_map("ignored")].any()
        assert found[names.abs_map("input")].shape == (2, 32, 32)
        assert found[names.abs_map("input#0")].shape == (2, 30, 30)

    def test_moves_the_channels_of_a_linear_layer_over_maps_first(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.pixels, self.fc = nn.Linear(3, 8), nn.Linear(8, 5)

            def forward(self, x):
                return self.fc(self.pixels(x.permute(0, 2, 3, 1)).relu().mean((1, 2)))

        recording, biases = recorded(Net().eval(), images(2)[..., :20])
        gradient = recording.gradients["pixels"]
        assert gradient.shape == (2, 8, 32, 20)
        found = gradients.reduced(recording, biases)
        np.testing.assert_allclose(
            found[names.STATS_TENSOR][:, :, 3].sum(1), recording.logits.amax(1).double(), rtol=1e-5
        )
        map_ = (biases["pixels"].view(-1, 1, 1) * gradient).abs().sum(1)
        np.testing.assert_allclose(found[names.abs_map("pixels")], map_, rtol=1e-5)

    def test_memory_format_does_not_matter(self):
        model, image = zoo.build("ResNet18 (BasicBlock)")
        expected = gradients.reduced(*recorded(model, image))
        model = model.to(memory_format=torch.channels_last)
        found = gradients.reduced(*recorded(model, image.contiguous(memory_format=torch.channels_last)))
        for name, tensor in expected.items():
            np.testing.assert_allclose(found[name], tensor, rtol=1e-3, atol=1e-5 * np.abs(tensor).max())

    def test_ignores_outputs_that_are_not_tensors_or_do_not_depend_on_the_input(self):
        class Pair(nn.Conv2d):
            def forward(self, x):
                return super().forward(x), x

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.pair, self.constant, self.fc = Pair(3, 4, 1), nn.Linear(2, 5), nn.Linear(4, 5)

            def forward(self, x):
                return self.fc(self.pair(x)[0].mean((2, 3))) + self.constant(torch.ones(2))

        model = Net().eval()
        recording, _ = recorded(model, images())
        assert list(recording.gradients) == ["fc"]
        with torch.no_grad():
            assert same(recording.logits, model(images()))

    @pytest.mark.parametrize("image", [torch.zeros(1, 3, 48, 48), torch.full((1, 3, 48, 48), 1e6)])
    def test_terms_are_finite_for_extreme_inputs(self, image):
        model, _ = zoo.build("ResNet18 (BasicBlock)")
        recording, biases = recorded(model, image)
        assert all(np.isfinite(tensor).all() for tensor in gradients.reduced(recording, biases).values())

    def test_removes_all_hooks(self):
        class Raises(nn.Module):
            def forward(self, x):
                raise ArithmeticError("in the middle")

        model = ResNet18(num_classes=5, width=4).eval().requires_grad_(False)
        modules = gradients.biased_modules(model)
        gradients.record(model, modules, images())
        assert not hooks_of(model)
        for target in (torch.tensor([5]), torch.tensor([-1])):
            with pytest.raises(RuntimeError, match="out of bounds"):
                gradients.record(model, modules, images(), target)
            assert not hooks_of(model)
        model.layer4 = Raises()
        with pytest.raises(ArithmeticError, match="in the middle"):
            gradients.record(model, modules, images())
        assert not hooks_of(model)
