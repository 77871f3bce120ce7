"""Whether PyTorch merely computes an operation, or also records, transforms or traces it; and for
which operations a GPU has one kernel.
"""

import torch
from torch.autograd import forward_ad

PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter)


def has_tangent(tensor: torch.Tensor) -> bool:
    """Whether forward-mode derivatives are asked for, by torch.func.jvp or by make_dual.

    Not asked of a compiler, which has its own ways.
    """
    if torch.compiler.is_compiling():
        return False
    return forward_ad.unpack_dual(tensor).tangent is not None


def is_transformed(*tensors: torch.Tensor) -> bool:
    """Whether torch.func's transforms (grad, jvp, vmap, …) are at work, or one of the tensors has a
    forward-mode tangent or is a batch of gradients (is_grads_batched of torch.autograd.grad).
    """
    if torch._C._are_functorch_transforms_active():
        return True
    is_batch = torch._C._functorch.is_legacy_batchedtensor
    return any(has_tangent(tensor) or is_batch(tensor) for tensor in tensors)


def is_eager(*tensors: torch.Tensor) -> bool:
    """Whether operations on these tensors are only computed, now and with numbers.

    Not so while a compiler, an exporter or torch.jit.trace reads them, where is_transformed, in a
    mode that sees every operation (FlopCounterMode, FakeTensorMode, …), and for subclasses of
    Tensor. What PyTorch has no rule for, a private operation or one with gradients of its own, is
    then silently wrong or an error; and a tensor that is made then must not be kept for later.
    """
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    if torch._C._len_torch_dispatch_stack() or is_transformed(*tensors):
        return False
    return all(type(tensor) in PLAIN_TYPES for tensor in tensors)


def has_fused_norm(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether PyTorch's own RMSNorm is to be used: on CUDA, where it is one kernel, and in float32,
    where it is the same formula. A compiler fuses the formula itself.
    """
    is_float32 = x.dtype == weight.dtype == torch.float32
    return x.is_cuda and is_float32 and is_eager(x, weight)


def shares_heads(query: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Whether PyTorch's blockwise attention lets query heads share a key/value head. On CUDA, only
    what takes half precision without a mask does; elsewhere T×S matrices would be materialized.
    """
    return query.device.type != "cuda" or (mask is None and query.dtype != torch.float32)


def with_own_heads(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """key and value (B, H_kv, S, D), repeated for the heads of query (B, H, T, D) if they must."""
    repeats = query.shape[1] // key.shape[1]
    if repeats == 1 or shares_heads(query, mask):
        return key, value
    return key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
