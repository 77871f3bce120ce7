"""Preallocated key/value cache for causal decoding.

The cache knows how much of it is filled and nothing of the network. It is exact only where
attention is causal: there a position's keys and values never change once later tokens come.

Shapes: B batch, T new positions, H_kv key/value heads, D head_dim.
"""

import torch


class KVCache:
    """Keys and values of `n_layers` layers for up to `max_len` positions of a batch."""

    def __init__(
        self,
        n_layers: int,
        batch_size: int,
        n_kv_heads: int,
        max_len: int,
        head_dim: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (n_layers, batch_size, n_kv_heads, max_len, head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.max_len = max_len
        self.position = 0

    def update(
        self, layer_id: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store key and value (B, H_kv, T, D) behind the `position` tokens that are there.

        Returns the layer's keys and values so far, (B, H_kv, position + T, D), as views. The
        position moves only with `advance`, once every layer has stored its part.
        Raises ValueError if they do not fit.
        """
        end = self.position + key.shape[2]
        if end > self.max_len:
            raise ValueError(f"{end} positions do not fit a cache of {self.max_len}: reset it")
        self.keys[layer_id, :, :, self.position : end] = key
        self.values[layer_id, :, :, self.position : end] = value
        return self.keys[layer_id, :, :, :end], self.values[layer_id, :, :, :end]

    def advance(self, count: int) -> None:
        """Count `count` positions as filled."""
        self.position += count

    def reset(self) -> None:
        """Forget everything; the memory is kept."""
        self.position = 0

    def rewind(self, position: int) -> None:
        """Forget what is behind the first `position` positions. Raises ValueError if the cache does
        not hold as many.
        """
        if not 0 <= position <= self.position:
            raise ValueError(f"{position} is not one of the {self.position} positions held")
        self.position = position
