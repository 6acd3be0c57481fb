"""The memory of the machine and of its container, and the bound of an explanation."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from complete_gradients import complete_gradients
from gradient_rules import UnexplainableError
from trace_memory import SHARE, allowed_bytes, available_bytes, is_out_of_memory

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
MACHINE = {"proc/meminfo": "MemTotal:  9000 kB\nMemFree:   10 kB\nMemAvailable:   4000 kB\n"}
GROUP = "sys/fs/cgroup/"
VERSION_1 = {
    "memory/memory.limit_in_bytes": "3000000\n",
    "memory/memory.usage_in_bytes": "2500000\n",
    "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 700000\n",
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        (MACHINE, 4_096_000),
        ({"proc/meminfo": "MemTotal:  9000 kB\nMemAvailable: many kB\n"}, None),
        (MACHINE | {GROUP + "memory.max": "max\n", GROUP + "memory.current": "7\n"}, 4_096_000),
        (MACHINE | {GROUP + "memory.max": "5000\n", GROUP + "memory.current": "3000\n"}, 2000),
        (MACHINE | {GROUP + "memory.max": "5000\n", GROUP + "memory.current": "6000\n"}, 0),
        (MACHINE | {GROUP + "memory.max": "9000000000\n", GROUP + "memory.current": "6000\n"}, 4_096_000),
        (
            {
                GROUP + "memory.max": "5000\n",
                GROUP + "memory.current": "3000\n",
                GROUP + "memory.stat": "anon 2\ninactive_file 600\nactive_file 9\n",
            },
            2600,
        ),
        ({GROUP + "memory.max": "5000\n"}, None),
        (MACHINE | {GROUP + name: text for name, text in VERSION_1.items()}, 1_200_000),
    ],
)
def test_available_memory(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_bytes(CPU, tmp_path) == expected


@pytest.mark.skipif(not Path("/proc/meminfo").is_file(), reason="needs Linux")
def test_of_this_machine():
    available, allowed = available_bytes(CPU), allowed_bytes(CPU)
    assert available > 1 << 20
    assert 0.8 * SHARE * available < allowed < 1.2 * SHARE * available


def test_errors_of_a_full_memory():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60)
    assert is_out_of_memory(raised.value)
    assert not is_out_of_memory(RuntimeError("CUDA error: no kernel image is available"))
    assert not is_out_of_memory(ValueError("not enough memory"))


def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 30 * 30, 5)).eval()


class TestBound:
    def test_is_refused_after_the_operator_that_exceeds_it(self):
        """The convolution returns 28,800 bytes, and 8 gradients of that size may follow."""
        x = torch.ones(1, 3, 32, 32)
        with pytest.raises(
            UnexplainableError,
            match=r"at most 0\.2 MiB for an explanation, got 0\.2 MiB for the first \d+ op",
        ):
            complete_gradients(net(), x, memory=9 * 28_800 - 1)
        assert complete_gradients(net(), x, memory=20 * 28_800)[0].complete

    def test_a_kept_term_counts(self):
        x, limit = torch.ones(1, 3, 32, 32), 12 * 28_800
        assert complete_gradients(net(), x, memory=limit)[0].complete
        with pytest.raises(UnexplainableError, match=r"expected at most 0\.3 MiB"):
            complete_gradients(net(), x, memory=limit, keep_values=True)

    def test_a_copy_of_the_network_counts(self):
        with pytest.raises(UnexplainableError, match=r"got 0\.1 MiB for a copy of the network"):
            complete_gradients(net().half(), torch.ones(1, 3, 32, 32), memory=1 << 16)

    @pytest.mark.skipif(not Path("/proc/self/clear_refs").is_file(), reason="needs Linux")
    @pytest.mark.parametrize("network", ["ResNet18(num_classes=5, width=32)", "tokens()"])
    def test_is_above_what_a_pass_takes(self, network):
        """Measured by the kernel in a process of its own, and compared with the largest estimate of the pass."""
        ran = subprocess.run(
            [sys.executable, "-c", PEAK.replace("NETWORK", network)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={"PYTHONPATH": "model_code:layers/core/python", "OPENBLAS_NUM_THREADS": "1"},
            timeout=300,
        )
        assert ran.returncode == 0, ran.stderr
        peak, estimate = map(int, ran.stdout.split())
        assert peak <= estimate <= 2 * peak


# Prints the growth of the process in an explanation, and the largest estimate.
PEAK = """
import torch
from torch import nn
import complete_gradients as cg
from complete_gradients import complete_gradients
from resnet import ResNet18

class tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 192, 16, 16)
        layer = nn.TransformerEncoderLayer(192, 3, 768, batch_first=True, activation="gelu", norm_first=True)
        self.layers, self.head = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False), nn.Linear(192, 9)
    def forward(self, x):
        return self.head(self.layers(self.patches(x).flatten(2).transpose(1, 2)).mean(1))

def status(name):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))

torch.set_num_threads(1)
network, x = NETWORK.eval(), torch.randn(1, 3, 448, 448)
estimates = []
cg._must_fit = lambda needed, *_: estimates.append(needed)
complete_gradients(network, torch.randn(1, 3, 32, 32))
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
complete_gradients(network, x, memory=0)
peak = status("VmHWM") - before
print(peak, max(estimates))
"""
