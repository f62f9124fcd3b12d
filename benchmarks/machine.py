"""What a benchmark says of the machine that it ran on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from mapmerge_core.tasks.devices import choose_device


def described(device: str = "auto") -> str:
    """Such as "AMD EPYC (2 of 2 cores), torch 2.14.1".

    Args:
        device: As for `choose_device`.
    """
    chosen = choose_device(device)
    if chosen.type == "cuda":
        return f"{torch.cuda.get_device_name(chosen)}, torch {torch.__version__}"
    name = platform.processor() or platform.machine()
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        lines = (line.partition(":") for line in listed.read_text(encoding="utf-8").splitlines())
        name = next((value.strip() for key, _, value in lines if key.strip() == "model name"), name)
    return f"{name} ({torch.get_num_threads()} of {os.cpu_count()} cores), torch {torch.__version__}"
