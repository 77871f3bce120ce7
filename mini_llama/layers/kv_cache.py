"""Preallocated key/value cache for causal decoding.

It is exact only for causal attention: there later tokens never change a position's keys and
values.

Shapes: B rows of a batch, T new positions, H_kv key/value heads, D head_dim.
"""

from collections.abc import Iterator

import torch

from config import LlamaConfig

FIRST_LENGTH = 1024  # of a cache that grows


class KVCache:
    """Keys and values of all layers of a model for B = `rows` and up to `max_len` positions.

    Where the system does not grant the memory of so many at once, as for the windows of 128,000
    positions that YaRN made usual, the cache starts with a few and doubles when they are full.
    """

    def __init__(
        self,
        config: LlamaConfig,
        rows: int,
        max_len: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.max_len = max_len
        self.position = 0
        try:
            self.keys, self.values = (
                self._allocate(config, rows, max_len, device, dtype) for _ in range(2)
            )
        except RuntimeError:
            if max_len <= FIRST_LENGTH:
                raise
            self.keys, self.values = (
                self._allocate(config, rows, FIRST_LENGTH, device, dtype) for _ in range(2)
            )

    @staticmethod
    def _allocate(
        config: LlamaConfig,
        rows: int,
        length: int,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        shape = (config.n_layers, rows, config.n_kv_heads, length, config.head_dim)
        return torch.empty(shape, device=device, dtype=dtype)

    @property
    def capacity(self) -> int:
        """The positions that there is memory for now."""
        return self.keys.shape[3]

    def _make_room(self, end: int) -> None:
        """Allocate at least `end` positions, and keep those that are held."""
        held = self.capacity
        if end <= held:
            return
        length = min(self.max_len, max(end, 2 * held))
        with torch.inference_mode(self.keys.is_inference()):
            for name in ("keys", "values"):
                old = getattr(self, name)
                new = old.new_empty((*old.shape[:3], length, old.shape[4]))
                new[:, :, :, :held] = old
                setattr(self, name, new)

    def update(
        self, layer_id: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store key and value (B, H_kv, T, D) after the `position` cached tokens.

        Returns the layer's keys and values so far, (B, H_kv, position + T, D), as views. The
        position moves only with `advance`, once every layer has stored its part.
        Raises ValueError if they do not fit.
        """
        end = self.position + key.shape[2]
        if end > self.max_len:
            raise ValueError(f"{end} positions do not fit a cache of {self.max_len}: reset it")
        self._make_room(end)
        self.keys[layer_id, :, :, self.position : end] = key
        self.values[layer_id, :, :, self.position : end] = value
        return self.keys[layer_id, :, :, :end], self.values[layer_id, :, :, :end]

    def extended(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """Of each layer, views with room for one more position: keys and values (B, H_kv,
        position + 1, D), and the last column of each.

        What `update` gives, of all layers at once. Raises ValueError if there is no room.
        """
        if self.position >= self.max_len:
            raise ValueError(f"{self.position + 1} positions do not fit a cache of {self.max_len}")
        self._make_room(self.position + 1)
        whole = [t.narrow(3, 0, self.position + 1) for t in (self.keys, self.values)]
        last = [t.narrow(3, self.position, 1) for t in (self.keys, self.values)]
        return zip(*(t.unbind(0) for t in (*whole, *last)), strict=True)

    def advance(self, count: int) -> None:
        """Count `count` more positions as filled."""
        self.position += count

    def reset(self) -> None:
        """Empty the cache; the memory is kept."""
        self.position = 0

    def rewind(self, position: int) -> None:
        """Keep only the first `position` positions. Raises ValueError if the cache holds fewer."""
        if not 0 <= position <= self.position:
            raise ValueError(f"{position} is not one of the {self.position} positions held")
        self.position = position
