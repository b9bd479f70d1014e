"""Peak speeds of known GPUs."""

from __future__ import annotations

import torch

# Dense bfloat16 operations a second, from the makers' data sheets.
_PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "MI300X": 1307e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Return the operations a second that a device can do at most; None where that is not known."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_of(name: str) -> float | None:
    """Return the same of a GPU by its name, which the table holds a part of."""
    return next((peak for part, peak in _PEAKS.items() if part in name), None)
