"""Devices that models are measured on, and the precision that each is fast at."""

from __future__ import annotations

import time
from functools import cache

import torch

from mapmerge_core.errors import MapMergeError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# On a CPU without bfloat16 instructions the ratio is below 1, with them 2 to 5: a wide gap, so the choice is
# stable.
_WORTHWHILE_SPEEDUP = 1.5


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of that name; ``"auto"`` is CUDA if there is one, else MPS, else the CPU.

    Raises:
        MapMergeError: There is no such device on this machine.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available[:0] = ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if name == "auto":
        return torch.device(available[0])
    if name not in available:
        raise MapMergeError(f"There is no device '{name}' here: choose auto or one of {', '.join(available)}.")
    return torch.device(name)


def choose_devices(names: str = "auto") -> list[torch.device]:
    """Return devices that share work: those that commas separate, or with ``"auto"`` every GPU there is.

    Raises:
        MapMergeError: One of them isn't there, or is named twice.
    """
    if names == "auto" and torch.cuda.device_count() > 1:
        return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    devices = [choose_device(name.strip()) for name in names.split(",")]
    chosen = [name_of(device) for device in devices]
    for device, name in zip(devices, chosen, strict=True):
        if chosen.count(name) > 1:
            raise MapMergeError(f"The device '{device}' is named twice: name each once.")
    return devices


def name_of(device: torch.device) -> str:
    """Return the one name of a device that has several, as ``cuda`` and ``cuda:0``."""
    return f"{device.type}:{device.index or 0}"


@cache
def choose_precision(device_type: str) -> str:
    """Return ``"bfloat16"`` where a type of device (``"cpu"``, ``"cuda"``) is fast at it, or ``"float32"``.

    A CPU is asked by timing one matrix product in both, once in a process.
    """
    if device_type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device_type != "cpu":
        return "float32"
    speedup = _seconds_of_product(torch.float32) / _seconds_of_product(torch.bfloat16)
    return "bfloat16" if speedup > _WORTHWHILE_SPEEDUP else "float32"


def _seconds_of_product(dtype: torch.dtype) -> float:
    a, b = torch.ones(256, 512, dtype=dtype), torch.ones(512, 2048, dtype=dtype)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def dtype_of(precision: str) -> torch.dtype:
    """Return the dtype of a precision.

    Raises:
        MapMergeError: There is none of that name.
    """
    if precision not in PRECISIONS:
        raise MapMergeError(f"There is no precision '{precision}': choose auto or one of {', '.join(PRECISIONS)}.")
    return PRECISIONS[precision]
