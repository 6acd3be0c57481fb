"""The memory that an explanation may take on the endpoint, and errors of a memory that is full.

Needs torch and the standard library; runs on Python 3.8 or later.
"""

from __future__ import annotations

from pathlib import Path

import torch

SHARE = 0.5
"""Of the available memory, which an explanation may take by default."""

_CGROUPS = (  # of a container: limit, usage, statistics, and the entry of pages that the kernel can drop
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def allowed_bytes(device: torch.device) -> int | None:
    """Return the bytes that an explanation may take, or None where the system names none."""
    available = available_bytes(device)
    return None if available is None else int(SHARE * available)


def available_bytes(device: torch.device, root: Path = Path("/")) -> int | None:
    """Return the available bytes of a device's memory, or None where the system names none.

    On a CPU these are the bytes that the container and the machine have left, the smaller number; on CUDA those that
    the device and torch's own cache have left.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = [
        left
        for left in (_machine(root), *(_container(root, *names) for names in _CGROUPS))
        if left is not None
    ]
    return min(found, default=None)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the memory of the device or of the host is full."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("t allocate memory" in text or "not enough memory" in text)


def _machine(root: Path) -> int | None:
    kilobytes = _entry(root / "proc/meminfo", "MemAvailable:")
    return None if kilobytes is None else 1024 * kilobytes


def _container(root: Path, limit: str, usage: str, statistics: str, droppable: str) -> int | None:
    folder = root / "sys/fs/cgroup"
    numbers = [_number(folder / limit), _number(folder / usage)]
    if numbers[0] is None or numbers[1] is None:
        return None
    return max(0, numbers[0] - numbers[1] + (_entry(folder / statistics, droppable) or 0))


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None  # no limit is the text "max"


def _entry(path: Path, name: str) -> int | None:
    for line in _text(path).splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == name and words[1].isdecimal():
            return int(words[1])
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:  # another system, or another version of the kernel's groups
        return ""
