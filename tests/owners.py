"""Scripts of model owners, as the hook of an unchanged endpoint meets them. Run as a program by test_capture_hook.py.

    python owners.py CASE …

Each case answers the same image three times. At exit, after all traces, prints a JSON object: name of the case ->
the bytes of its answers, and a hash of everything that belongs to the owner.
"""

import atexit
import hashlib
import json
import sys
import threading
import time

RESULTS, NETWORKS = {}, {}


@atexit.register  # before torch is imported, so it runs after the hook's own
def report():
    for name, networks in NETWORKS.items():
        RESULTS[name]["state"] = [state(network) for network in networks]
    print(json.dumps(RESULTS))


import torch  # noqa: E402
from torch import nn  # noqa: E402


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))


def network(name, base=Net):
    """Return a network whose class has the name of its case."""
    torch.manual_seed(0)
    made = type(name, (base,), {})()
    for buffer in made.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return made.eval()


class KeywordNet(Net):
    def forward(self, pixel_values=None, labels=None):
        return {"version": torch.ones(1, dtype=torch.int64), "logits": super().forward(pixel_values)}


class WritingNet(Net):
    def forward(self, x):
        return super().forward(x.sub_(0.1).div_(1.1)).softmax(1)


class CountingNet(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.last = None

    def forward(self, x):
        self.calls.add_(1)
        self.last = super().forward(x)
        return self.last


class TwoImageNet(Net):
    def forward(self, x, other):
        return super().forward(x - other)


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return x - self.conv(x)


class InnerNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network("prepared_in_forward_inner")

    def forward(self, x):
        return self.net(x.permute(0, 3, 1, 2).float() / 255)


def no_grad(x):
    """Predict under no_grad, with a softmax of the scores."""
    net = network("no_grad")

    @torch.no_grad()
    def predict():
        return net(x.clone()).softmax(1)

    return predict, [net]


def traced_script(x):
    """Serve a network of torch.jit.trace."""
    net = torch.jit.trace(network("traced_script"), x)
    return lambda: net(x).detach(), [net]


def dict_in_inference_mode(x):
    """Keep the network in a dict and predict under inference_mode."""
    model = {"net": network("dict_in_inference_mode"), "labels": list("abcde")}

    def predict():
        with torch.inference_mode():
            return model["net"](x.clone()).softmax(1)[0]

    return predict, [model["net"]]


def writes_and_softmax(x):
    """Normalise the input in place, and return probabilities."""
    net = network("writes_and_softmax", WritingNet)
    return torch.no_grad()(lambda: net(x.clone())), [net]


def keyword_and_dict(x):
    """Take the image as a keyword and return a dict."""
    net = network("keyword_and_dict", KeywordNet)
    return torch.no_grad()(lambda: net(pixel_values=x.clone())["logits"]), [net]


def trains_nothing(x):
    """Predict without no_grad."""
    net = network("trains_nothing")
    return lambda: net(x).detach(), [net]


def several(x):
    """Average the probabilities of two networks."""
    nets = [network("several"), network("several")]
    return torch.no_grad()(lambda: torch.stack([net(x).softmax(1) for net in nets]).mean(0)), nets


def half(x):
    """Predict in bfloat16."""
    net = network("half").to(torch.bfloat16)
    return torch.no_grad()(lambda: net(x.to(torch.bfloat16)).float()), [net]


def parallel(x):
    """Wrap the network in DataParallel."""
    net = nn.DataParallel(network("parallel_inner"))
    return torch.no_grad()(lambda: net(x)), [net]


def made_in_inference_mode(x):
    """Make the network under inference_mode."""
    with torch.inference_mode():
        net = network("made_in_inference_mode")
    return torch.inference_mode()(lambda: net(x)), [net]


def forgot_eval(x):
    """Predict without eval()."""
    net = network("forgot_eval").train()
    return lambda: net(torch.cat([x, x.flip(3)])).detach(), [net]


def layer_by_layer(x):
    """Call the layers one by one, outside a forward."""
    net = network("layer_by_layer")
    return torch.no_grad()(lambda: net.fc(net.bn(net.conv(x)).relu().mean((2, 3)))), [net]


def quantized(x):
    """Serve a network with quantized linear layers."""
    made = torch.ao.quantization.quantize_dynamic(network("quantized"), {nn.Linear}, dtype=torch.qint8)
    return torch.no_grad()(lambda: made(x)), []


def numpy_only(x):
    """Predict with numpy."""
    pixels, weights = x.numpy().reshape(1, -1), torch.ones(x.numel(), 5).numpy()
    return lambda: torch.from_numpy(pixels @ weights), []


def writes_to_itself(x):
    """Count the calls in a buffer and keep the last output."""
    net = network("writes_to_itself", CountingNet)
    return torch.no_grad()(lambda: net(x)), [net]


def prepared_in_forward(x):
    """Take uint8 pixels (N, H, W, C) and prepare them in forward."""
    net = InnerNet().eval()
    pixels = (x.abs() * 50).to(torch.uint8).permute(0, 2, 3, 1)
    return torch.no_grad()(lambda: net(pixels)), [net]


def compiled(x):
    """Serve a network of torch.compile."""
    net = torch.compile(network("compiled"), backend="eager")
    return torch.no_grad()(lambda: net(x)), []


def autocast(x):
    """Predict under autocast in bfloat16."""
    net = network("autocast")

    @torch.no_grad()
    def predict():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return net(x).float()

    return predict, [net]


def two_images(x):
    """Compare two images of one call."""
    net = network("two_images", TwoImageNet)
    return torch.no_grad()(lambda: net(x, x.flip(3))), [net]


def batch_of_64(x):
    """Predict a batch of 64 images."""
    net = network("batch_of_64")
    return torch.no_grad()(lambda: net(x.repeat(64, 1, 1, 1))), [net]


def two_in_a_row(x):
    """Clean the image by another network first."""
    torch.manual_seed(0)
    nets = [Denoiser().eval(), network("two_in_a_row")]
    return torch.no_grad()(lambda: nets[1](nets[0](x))), nets


CASES = (
    no_grad,
    traced_script,
    dict_in_inference_mode,
    writes_and_softmax,
    keyword_and_dict,
    trains_nothing,
    several,
    half,
    parallel,
    made_in_inference_mode,
    forgot_eval,
    layer_by_layer,
    quantized,
    numpy_only,
    writes_to_itself,
    prepared_in_forward,
    compiled,
    autocast,
    two_images,
    batch_of_64,
    two_in_a_row,
)


def state(net):
    """A hash of the parameters, buffers, gradients, flags, hooks and attributes of a network."""
    parts = []
    for name, module in net.named_modules():
        parts.append((name, module.training, len(module._forward_hooks), len(module._forward_pre_hooks)))
        if not isinstance(module, torch.jit.ScriptModule):
            parts.append(sorted(vars(module)))
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        parts.append((name, tensor.requires_grad, tensor.grad is None, tensor.float().tolist()))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def main():
    torch.set_num_threads(1)
    torch.set_grad_enabled(True)
    image = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for case in [case for case in CASES if case.__name__ in sys.argv[1:]]:
        predict, NETWORKS[case.__name__] = case(image)
        torch.manual_seed(2)
        answers = []
        for _ in range(3):
            answers.append(predict().contiguous().numpy().tobytes().hex())
            # The hook connects to S3 beside the first answer.
            while any(thread.name == "trace-connect" for thread in threading.enumerate()):
                time.sleep(0.01)
        RESULTS[case.__name__] = {"answers": answers, "random": torch.rand(2).tolist()}


if __name__ == "__main__":
    main()
