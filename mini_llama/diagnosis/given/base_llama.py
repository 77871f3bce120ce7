"""The base class of the course's network: configuration, initial weights, dtype."""

from typing import Any

import torch
from torch import nn

from config import LlamaConfig

__all__ = ["LlamaConfig", "LlamaPreTrainedModel"]


class LlamaPreTrainedModel(nn.Module):
    """Linear and embedding weights start as N(0, 0.02), biases at 0."""

    config_class = LlamaConfig
    base_model_prefix = "llama"

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.n_layers = config.n_layers

    def init_weights(self) -> None:
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype
