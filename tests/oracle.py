"""A float64 NumPy oracle of the small Llama, its greedy decoding and its AdamW.

The tests compare the torch code with this module. The forward pass is numpy_llama.py's; all of it
is written from the assignment's formulas alone and shares no code with the model, so that an error
in one is not repeated in the other.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mini_llama.diagnosis import numpy_llama
from mini_llama.diagnosis.numpy_llama import Arithmetic, Array, Record, Tensors, attend

__all__ = ["adamw", "attend", "forward", "greedy", "log_softmax"]


def forward(
    tensors: Tensors,
    *,
    tokens: ArrayLike,
    lengths: ArrayLike | None = None,
    record: Record | None = None,
    **arithmetic: Any,
) -> tuple[Array, Array]:
    """numpy_llama.forward; the other arguments are the fields of numpy_llama.Arithmetic."""
    return numpy_llama.forward(tensors, Arithmetic(**arithmetic), tokens, lengths, record)


def log_softmax(x: Array) -> Array:
    # The log of softmax would be -inf where a probability underflows.
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def greedy(
    tensors: Tensors,
    *,
    tokens: ArrayLike,
    max_new_tokens: int,
    max_seq_len: int,
    **arithmetic: Any,
) -> NDArray[np.int64]:
    """tokens (B, T) followed by max_new_tokens argmax tokens, with no cache at all."""
    tokens = np.asarray(tokens, dtype=np.int64)
    for _ in range(max_new_tokens):
        # Positions are counted from 0 in the cropped window.
        logits, _ = forward(tensors, tokens=tokens[:, -max_seq_len:], **arithmetic)
        chosen = logits[:, -1].argmax(axis=-1)  # (B,)
        tokens = np.concatenate([tokens, chosen[:, None]], axis=1)
    return tokens


def clip(gradients: Sequence[Array], max_grad_norm: float) -> list[Array]:
    """Gradients scaled so that their joint norm is at most max_grad_norm."""
    total = np.sqrt(sum((gradient**2).sum() for gradient in gradients))
    # torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm; its results include that.
    coefficient = min(1.0, max_grad_norm / (total + 1e-6))
    return [gradient * coefficient for gradient in gradients]


def adamw(
    weights: Sequence[ArrayLike],
    gradients: Sequence[Sequence[ArrayLike]],
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    correct_bias: bool = True,
    max_grad_norm: float | None = None,
) -> list[Array]:
    """The weights after one step for each entry of gradients, itself one array a weight."""
    beta1, beta2 = betas
    params = [np.asarray(weight, dtype=np.float64) for weight in weights]
    m = [np.zeros_like(param) for param in params]
    v = [np.zeros_like(param) for param in params]
    for t, raw in enumerate(gradients, start=1):
        step_gradients = [np.asarray(gradient, dtype=np.float64) for gradient in raw]
        if max_grad_norm is not None:
            step_gradients = clip(step_gradients, max_grad_norm)
        step = lr * np.sqrt(1 - beta2**t) / (1 - beta1**t) if correct_bias else lr
        for i, gradient in enumerate(step_gradients):
            m[i] = beta1 * m[i] + (1 - beta1) * gradient
            v[i] = beta2 * v[i] + (1 - beta2) * gradient**2
            params[i] = params[i] - step * m[i] / (np.sqrt(v[i]) + eps)
            # Decay acts on the weight that the gradient step has already moved.
            params[i] = params[i] - lr * weight_decay * params[i]
    return params
