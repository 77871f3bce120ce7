"""TF32: float32 products on the tensor cores of an NVIDIA card, their inputs cut to 10 bits of
mantissa (NVIDIA 2020). Off unless --tf32 asks for it; float32 then means float32.
"""

from typing import TYPE_CHECKING

from mini_llama.command_line import argument, check_option
from mini_llama.warning import warn

if TYPE_CHECKING:
    import torch  # imported in the functions that use it: options and help start at once

TF32_ARGUMENT_TEXT = "float32 products in TF32 on CUDA: faster, and to 3 digits instead of 7"
FIRST_CAPABILITY = (8, 0)  # Ampere


def tf32_argument() -> bool:
    """The option --tf32, which belongs to --use_gpu."""
    return argument(False, TF32_ARGUMENT_TEXT)


def check_tf32(options: object, use_gpu: bool) -> None:
    """Raise UsageError for --tf32 without --use_gpu."""
    is_asked = getattr(options, "tf32", False)
    check_option(options, "tf32", use_gpu or not is_asked, "left out without --use_gpu")


def use_tf32(device: "torch.device", is_asked: bool) -> None:
    """Multiply float32 matrices on a CUDA device in TF32, or exactly.

    Warns where the device has no TF32; elsewhere than on CUDA nothing changes.
    """
    import torch

    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if is_asked else "highest")
    if is_asked and not has_tf32(device):
        warn("--tf32 changes nothing here: it is for NVIDIA cards from Ampere (2020) on")


def has_tf32(device: "torch.device") -> bool:
    """Whether the device's tensor cores multiply TF32."""
    import torch

    if device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= FIRST_CAPABILITY
