"""How a format's module describes itself, and the plan that its writers are given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from config import LlamaConfig
from mini_llama.checkpoints.lazy_tensors import StreamedTensors
from mini_llama.checkpoints.record import Checkpoint

SHARED = {"output.weight": "tok_embeddings.weight"}  # of a tied model: one tensor, two names


@dataclass
class Plan:
    """A conversion that can be done. `notes` are lines for the user."""

    source: Path
    destination: Path
    target: "Target"
    config: LlamaConfig
    model_args: dict[str, Any]
    tensors: StreamedTensors
    max_shard_bytes: int
    notes: list[str]
    adapters: Mapping[str, Any] | None = None  # adapters.Adapters, of targets that write these

    @property
    def shared(self) -> dict[str, str]:
        """Names of tensors that are the same as another: alias → name."""
        return SHARED if self.config.tie_word_embeddings else {}

    def stored(self) -> list[torch.Tensor]:
        """Shapes and dtypes of the tensors that are written, each once."""
        return [t for name, t in self.tensors.meta.items() if name not in self.shared]

    @property
    def bytes_to_read(self) -> int:
        return sum(tensor.nbytes for tensor in self.stored())

    @property
    def bytes_to_write(self) -> int:
        """Of the tensors alone."""
        if self.target.of_adapters:
            return 0
        return int(sum(self.target.bytes_of(tensor, self.config) for tensor in self.stored()))

    def write(self, on_read: Callable[[int], object] = lambda _: None) -> None:
        """Write the destination, whole or not at all. `on_read` is called with the bytes of every
        tensor.

        Raises OSError, or ValueError where the format cannot hold the model.
        """
        self.tensors.on_read = on_read
        self.target.write(self)


@dataclass(frozen=True)
class Target:
    """A format to write. `is_llama` means that it can only be RMSNorm and causal attention,
    `is_float32` that weights of other dtypes are converted, `of_adapters` that it holds adapters
    alone.
    """

    name: str
    write: Callable[[Plan], None]
    bytes_of: Callable[[torch.Tensor, LlamaConfig], float]
    is_folder: bool = False
    is_llama: bool = True
    is_float32: bool = False
    of_adapters: bool = False
    hint: str = ""  # what the file's reader must know


@dataclass(frozen=True)
class Format:
    """A format to read. Its `name` is what errors call it by: of a format of folders the file that
    makes a folder one ("config.json"), else what its one file is ("a torch checkpoint").

    `recognises` says whether a path that exists is of this format, and raises OSError if it cannot
    be read. `check` raises ValueError for what read would refuse, where a look at its configuration
    is enough. `read` raises OSError, or ValueError of one line with the file, what is wrong with it
    and a remedy.
    """

    name: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path], Checkpoint]
    is_folder: bool = False
    targets: tuple[Target, ...] = ()
    check: Callable[[Path], object] = lambda _: None


def own_bytes(tensor: torch.Tensor, _: LlamaConfig) -> float:
    """Of a tensor that is written as it is."""
    return tensor.nbytes
