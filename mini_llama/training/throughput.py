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


# In float32, by its ordinary units; the tensor cores' TF32 is half of bfloat16 on all of these.
FLOAT32_PEAKS = {
    "A100": 19.5e12,
    "A10": 31.2e12,
    "L4": 30.3e12,
    "L40S": 91.6e12,
    "H100 PCIe": 51e12,
    "H100": 67e12,
    "H200": 67e12,
    "B200": 80e12,
}


def peak_flops(device: torch.device, dtype: str, tf32: bool = False) -> float | None:
    """Operations a second that the device could do at most, or None where it is unknown."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device), dtype, tf32)


def peak_of(card: str, dtype: str = "bfloat16", tf32: bool = False) -> float | None:
    """The peak of a card by its name; in float32 that of TF32 if that is used."""
    names = [name for name in PEAKS if name in card]
    if not names:
        return None
    name = max(names, key=len)
    if dtype == "bfloat16":
        return PEAKS[name]
    return PEAKS[name] / 2 if tf32 else FLOAT32_PEAKS[name]
