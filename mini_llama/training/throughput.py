"""How fast a run is, beside what its processor could do: model FLOPs utilization (MFU).

Chowdhery et al. 2022 (PaLM), appendix B: the operations of the model, without recomputation, a
second, as a share of the processor's peak.
"""

import torch

# Dense bfloat16 products a second on tensor cores, of NVIDIA's data sheets. The longest name that
# occurs in the card's is its own.
PEAKS = {
    "A100": 312e12,
    "A10": 125e12,
    "L4": 121e12,
    "L40S": 362e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}


def peak_flops(device: torch.device, dtype: str) -> float | None:
    """Operations a second that the device could do at most, or None where it is unknown."""
    if device.type != "cuda" or dtype != "bfloat16":
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(card: str) -> float | None:
    names = [name for name in PEAKS if name in card]
    return PEAKS[max(names, key=len)] if names else None
