"""Base class of the network: its configuration, its dtype, and weights from scratch.

Initialisation follows GPT-2 (Radford et al. 2019, section 2.3): N(0, 0.02), and for the two
projections that write into the residual stream N(0, 0.02 / sqrt(2 · n_layers)).
"""

import contextlib
import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from config import Arithmetic, LlamaConfig
from utils import get_parameter_dtype

INIT_STD = 0.02
RESIDUAL_PROJECTIONS = ("compute_output.weight", "w2.weight")
NO_ATTENTION = (
    "LlamaConfig says no attention, and the default edition's is bidirectional: trained on next "
    'tokens, each position reads its own answer; set attention="causal", or "bidirectional" if it '
    "is meant"
)


class _SkipInitialisation(TorchFunctionMode):
    """Makes torch.nn.init's functions return their tensor unchanged."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Modules made in this context have shapes but no values; weights must be loaded afterwards.

    Nothing is initialised or allocated. The meta device alone would do, but initialising a meta
    tensor makes torch import its compiler, which takes two seconds.
    """
    with torch.device("meta"), _SkipInitialisation():
        yield


class LlamaPreTrainedModel(nn.Module):
    """Everything of the network but its formulas; the subclass builds the modules declared here.

    `arithmetic` says which norm and attention load_pretrained chose, and why; `quantization` how
    the linear layers are quantized, if they are. Set `checkpoint_activations` to train in less
    memory and a third more time: the same gradients from layers that are computed twice.
    """

    config_class = LlamaConfig
    base_model_prefix = "llama"
    tok_embeddings: nn.Embedding
    layers: nn.ModuleList
    norm: nn.Module
    output: nn.Module

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        has_values = torch.get_default_device().type != "meta"
        if has_values and getattr(config, "lacks_attention", False):
            warnings.warn(NO_ATTENTION, stacklevel=3)
        self.config = config
        self.vocab_size = config.vocab_size
        self.n_layers = config.n_layers
        self.arithmetic: Arithmetic | None = None
        self.quantization: str | None = None
        self.checkpoint_activations = False

    def through(self, layer: nn.Module, h: torch.Tensor, *args: Any) -> torch.Tensor:
        """layer(h, *args). With `checkpoint_activations` the backward pass finds h alone kept, and
        computes the layer again, with the same dropout (Chen et al. 2016, section 3).
        """
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(layer, h, *args, use_reentrant=False)
        return layer(h, *args)

    def tie_weights(self) -> None:
        """Share one parameter between input and output embedding if the configuration says so."""
        if self.config.tie_word_embeddings:
            self.output.weight = self.tok_embeddings.weight

    def init_weights(self) -> None:
        """Initialise all weights from torch's global generator; norm weights 1, biases 0."""
        self.apply(self._init_weights)
        residual_std = INIT_STD / math.sqrt(2 * self.n_layers)
        for name, parameter in self.named_parameters():
            if name.endswith(RESIDUAL_PROJECTIONS):
                nn.init.normal_(parameter, mean=0.0, std=residual_std)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, mean=0.0, std=INIT_STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @property
    def dtype(self) -> torch.dtype:
        return get_parameter_dtype(self)

    @property
    def device(self) -> torch.device:
        return self.tok_embeddings.weight.device
