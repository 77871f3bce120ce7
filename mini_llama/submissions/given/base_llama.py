"""The base class of a student's Llama."""

import torch
from torch import nn

from config import LlamaConfig as LlamaConfig  # llama.py imports it from here


class LlamaPreTrainedModel(nn.Module):
    """A module with a configuration and weights initialized from N(0, 0.02²)."""

    config_class = LlamaConfig
    base_model_prefix = "llama"

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.n_layers = config.n_layers

    def init_weights(self) -> None:
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype
