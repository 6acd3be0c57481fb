import pytest
import torch
from torch import nn

from glassbox.errors import BadInputError
from resnet import ResNet18, from_state_dict

BATCH_NORM = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


def torchvision_keys():
    """The keys of torchvision.models.resnet18().state_dict(), 122 in this order."""
    keys = ["conv1.weight", *(f"bn1.{k}" for k in BATCH_NORM)]
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            at = f"layer{stage}.{block}"
            for i in (1, 2):
                keys += [f"{at}.conv{i}.weight", *(f"{at}.bn{i}.{k}" for k in BATCH_NORM)]
            if stage > 1 and block == 0:
                keys += [f"{at}.downsample.0.weight", *(f"{at}.downsample.1.{k}" for k in BATCH_NORM)]
    return [*keys, "fc.weight", "fc.bias"]


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def randomised(**sizes):
    """Every entry away from its initial value, so that one that is not loaded shows."""
    torch.manual_seed(0)
    network = ResNet18(**sizes)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.05, 0.15)
    return network.eval()


def test_has_the_parameters_and_key_names_of_torchvision():
    network = ResNet18(num_classes=1000, width=64)
    assert parameters(network) == 11_689_512
    assert list(network.state_dict()) == torchvision_keys()


@pytest.mark.parametrize(("channels", "count"), [(1, 11_683_240), (3, 11_689_512)])
def test_only_the_first_convolution_depends_on_the_input(channels, count):
    assert parameters(ResNet18(num_classes=1000, in_channels=channels)) == count


def test_reduces_the_image_32_times_before_the_average():
    network = ResNet18(num_classes=5, width=8).eval()
    shapes = {}
    for name in ("maxpool", "layer1", "layer2", "layer3", "layer4", "fc"):
        network.get_submodule(name).register_forward_hook(
            lambda _module, _args, out, name=name: shapes.update({name: tuple(out.shape)})
        )
    network(torch.zeros(2, 3, 96, 64))
    assert shapes == {
        "maxpool": (2, 8, 24, 16),
        "layer1": (2, 8, 24, 16),
        "layer2": (2, 16, 12, 8),
        "layer3": (2, 32, 6, 4),
        "layer4": (2, 64, 3, 2),
        "fc": (2, 5),
    }


def test_a_block_adds_its_input_before_the_last_relu():
    block = ResNet18(width=8).layer1[0].eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(block(x), x.clamp(min=0))


@pytest.mark.parametrize("sizes", [{"num_classes": 7, "width": 8, "in_channels": 1}, {"width": 16}])
def test_takes_every_size_from_the_shapes(sizes):
    network = randomised(**sizes)
    again = from_state_dict(network.state_dict())
    x = torch.rand(2, network.conv1.in_channels, 48, 48)
    assert not again.training
    with torch.inference_mode():
        torch.testing.assert_close(again(x), network(x))


def test_loads_torchvisions_weights(shared):
    weights = torch.load(shared / "models" / "resnet18_w16_gtsrb.pt", weights_only=True)
    network = from_state_dict(weights)
    assert (network.conv1.out_channels, network.fc.out_features) == (16, 43)
    assert all(torch.equal(network.state_dict()[k], v) for k, v in weights.items())


def prefixed(prefix, state_dict):
    return {f"{prefix}{key}": value for key, value in state_dict.items()}


CHECKPOINTS = {
    "DataParallel": lambda weights: prefixed("module.", weights),
    "torch.compile": lambda weights: prefixed("_orig_mod.", weights),
    "torch.compile in DataParallel": lambda weights: prefixed("module._orig_mod.", weights),
    "a compiled part": lambda weights: {
        k.replace("layer1.", "layer1._orig_mod."): v for k, v in weights.items()
    },
    "a training loop": lambda weights: {"epoch": 3, "model_state_dict": weights, "optimizer_state_dict": {}},
    "Lightning": lambda weights: {
        "state_dict": prefixed("model.", weights),
        "hyper_parameters": {},
        "epoch": 1,
    },
    "torchvision's references": lambda weights: {"model": weights, "optimizer": {}, "args": None},
    "half precision": lambda weights: {
        k: v.half() if v.is_floating_point() else v for k, v in weights.items()
    },
    "double precision": lambda weights: {
        k: v.double() if v.is_floating_point() else v for k, v in weights.items()
    },
    "bfloat16": lambda weights: {k: v.bfloat16() if v.is_floating_point() else v for k, v in weights.items()},
}


@pytest.mark.parametrize("saved", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_reads_checkpoints_of_training_loops(saved):
    weights = randomised(num_classes=5, width=8).state_dict()
    network = from_state_dict(saved(weights))
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, weights[key], rtol=1e-2, atol=1e-2)


def without(key):
    return {k: v for k, v in ResNet18(width=8).state_dict().items() if k != key}


@pytest.mark.parametrize(
    ("state_dict", "names"),
    [
        ([1, 2], "list"),
        ({"epoch": 3, "loss": []}, "got something else under epoch, loss"),
        ({}, "conv1.weight"),
        (nn.Linear(3, 4).state_dict(), "conv1.weight"),
        (
            {f"module.{k}": v for k, v in nn.Linear(3, 4).state_dict().items()},
            "keys: module.weight, module.bias",
        ),
        ({"net": {}, "model": {}}, "expected one state dict, got several: model, net"),
        (without("fc.bias") | {1: torch.zeros(43)}, "got something else under 1"),
        (without("fc.bias") | {"fc.bias": torch.zeros(43).to_sparse()}, "got something else under fc.bias"),
        (
            without("fc.bias") | {"fc.bias": torch.zeros(43, device="meta")},
            "got something else under fc.bias",
        ),
        (
            without("fc.bias") | {"fc.bias": torch.zeros(43, dtype=torch.complex64)},
            "something else under fc.bias",
        ),
        (
            without("fc.bias") | {"fc.bias": torch.quantize_per_tensor(torch.zeros(43), 1.0, 0, torch.qint8)},
            "got something else under fc.bias",
        ),
        (without("fc.bias") | {"fc.bias": torch.full((43,), torch.nan)}, "got NaN or infinity in fc.bias"),
        (without("bn1.bias") | {"bn1.bias": torch.full((8,), torch.inf)}, "got NaN or infinity in bn1.bias"),
        (without("fc.weight") | {"fc.weight": torch.zeros(0, 64)}, r"\(0, 64\)"),
        ({"a\n\x1b[31m": 1}, r"under 'a\\n\\x1b\[31m'$"),
        ({"k" * 5000: 1}, r"under k{200}$"),
        (without("layer2.0.downsample.0.weight"), "layer2.0.downsample.0.weight"),
        (
            ResNet18(width=8).state_dict() | {"layer1.2.conv1.weight": torch.zeros(8, 8, 3, 3)},
            "layer1.2.conv1.weight",
        ),
        (ResNet18(width=8).state_dict() | {"conv1.weight": torch.zeros(8, 3, 3, 3)}, r"got \(8, 3, 3, 3\)"),
        (ResNet18(width=8).state_dict() | {"conv1.weight": torch.zeros(16, 3, 7, 7)}, "and 95 more"),
    ],
)
def test_names_the_differences_of_another_state_dict(state_dict, names):
    with pytest.raises(BadInputError, match=names):
        from_state_dict(state_dict)
