"""Low-rank adaptation of any module's linear layers (LoRA, Hu et al. 2021, section 4.1).

W x becomes W x + (alpha/rank)·B(A x), with W frozen; merging adds (alpha/rank)·B A to W.
"""

from collections.abc import Sequence

import torch
from torch import nn

from config import LORA_ALPHA, LORA_RANK, LORA_TARGETS
from mini_llama.bounds import check_bound

INIT_STD = 0.02


class LoRALayer(nn.Module):
    """A frozen linear layer and its low-rank update: lora_A (rank, in), lora_B (out, rank).

    lora_B starts at 0, so that wrapping changes nothing. Raises ValueError if rank is below 1, if
    alpha is not above 0 (with 0 nothing could be learnt), or if the layer is not linear.
    """

    def __init__(
        self, original_layer: nn.Linear, rank: int = LORA_RANK, alpha: float = LORA_ALPHA
    ) -> None:
        super().__init__()
        if not isinstance(original_layer, nn.Linear):
            raise ValueError(f"LoRA wraps nn.Linear, not {type(original_layer).__name__}")
        check_bound(f"lora_rank {rank}", rank >= 1, "at least 1")
        check_bound(f"lora_alpha {alpha}", 0 < alpha < float("inf"), "above 0, and finite")
        weight = original_layer.weight
        self.original_layer = original_layer.requires_grad_(False)
        self.rank, self.alpha = rank, alpha
        self.scaling = alpha / rank
        self.lora_A = nn.Parameter(weight.new_empty(rank, weight.shape[1]).normal_(0.0, INIT_STD))
        self.lora_B = nn.Parameter(weight.new_zeros(weight.shape[0], rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (…, in) → (…, out)."""
        result = self.original_layer(x)
        # Scale the small product, and add it in one operation: no extra tensor of x's size.
        low = self.scaling * (x @ self.lora_A.T)  # (…, rank)
        rows = torch.addmm(result.flatten(0, -2), low.flatten(0, -2), self.lora_B.T)
        return rows.view(result.shape)

    def merged_weight(self) -> torch.Tensor:
        """W + (alpha/rank)·B A, (out, in), as a new tensor."""
        return self.original_layer.weight + self.scaling * (self.lora_B @ self.lora_A)


def apply_lora(
    model: nn.Module,
    rank: int = LORA_RANK,
    alpha: float = LORA_ALPHA,
    target_modules: Sequence[str] = LORA_TARGETS,
) -> nn.Module:
    """Freeze all of `model`, in place, and wrap its linear layers whose last name is in
    `target_modules`; return it.

    For a classifier, pass the backbone, so that its head stays trainable. A layer that is already
    wrapped is left unchanged. Raises ValueError if a target names no linear layer of the model.
    """
    # Lists, not sets: the order decides which random numbers each layer gets.
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    wrapped = [name for name, module in model.named_modules() if isinstance(module, LoRALayer)]
    known = {name.rpartition(".")[2] for name in linear + wrapped} - {"original_layer"}
    unknown = [target for target in target_modules if target not in known]
    if unknown or not target_modules:
        asked = ", ".join(unknown) or "nothing"
        found = ", ".join(sorted(known)) or "none, or quantized ones, which cannot be trained"
        raise ValueError(f"LoRA targets: {asked}; the linear layers are {found}")
    model.requires_grad_(False)
    for name in linear:
        parent_name, _, child_name = name.rpartition(".")
        if child_name in target_modules:
            parent = model.get_submodule(parent_name)
            setattr(parent, child_name, LoRALayer(getattr(parent, child_name), rank, alpha))
    for parameter in get_lora_optimizer_params(model):
        parameter.requires_grad_(True)
    return model


def get_lora_optimizer_params(model: nn.Module) -> list[nn.Parameter]:
    """All lora_A and lora_B of the model, in module order."""
    layers = [module for module in model.modules() if isinstance(module, LoRALayer)]
    return [parameter for layer in layers for parameter in (layer.lora_A, layer.lora_B)]


def count_lora_parameters(model: nn.Module) -> tuple[int, int, float]:
    """The number of LoRA parameters, of all trainable parameters, and the former as a percentage
    of the latter (0.0 if nothing is trainable).
    """
    lora = sum(parameter.numel() for parameter in get_lora_optimizer_params(model))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return lora, trainable, 100 * lora / trainable if trainable else 0.0


def merge_lora_weights(model: nn.Module) -> nn.Module:
    """Replace every LoRALayer, in place, with one equivalent linear layer; return model.

    A model without LoRA layers is left unchanged, so merging is idempotent.
    """
    wrapped = [
        (name, layer) for name, layer in model.named_modules() if isinstance(layer, LoRALayer)
    ]
    for name, layer in wrapped:
        parent_name, _, child_name = name.rpartition(".")
        merged = layer.original_layer
        # A new parameter: the old one may be tied to another layer, which is not adapted.
        merged.weight = nn.Parameter(layer.merged_weight().detach(), requires_grad=False)
        setattr(model.get_submodule(parent_name), child_name, merged)
    return model


def merged_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict that the model would have after merge_lora_weights; the model is unchanged."""
    state = {}
    for name, tensor in model.state_dict().items():
        parent, _, leaf = name.rpartition(".")
        if leaf in ("lora_A", "lora_B"):
            continue
        name = name.replace(".original_layer.", ".")
        if parent.endswith(".original_layer") and leaf == "weight":
            layer = model.get_submodule(parent.removesuffix(".original_layer"))
            assert isinstance(layer, LoRALayer)
            tensor = layer.merged_weight()
        state[name] = tensor.detach()
    return state


def lora_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """Only the adapter tensors, named as in the model's state dict."""
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.endswith((".lora_A", ".lora_B"))
    }


def load_lora_state_dict(model: nn.Module, adapters: dict[str, torch.Tensor]) -> None:
    """Load adapter tensors into a model wrapped by apply_lora.

    Raises ValueError if names or shapes are not exactly those of the model's own adapters.
    """
    own = {name: list(tensor.shape) for name, tensor in lora_state_dict(model).items()}
    given = {name: list(tensor.shape) for name, tensor in adapters.items()}
    for name in {**own, **given}:
        if own.get(name) != given.get(name):
            raise ValueError(
                f"adapter {name} is {given.get(name, 'missing')}, the model's is "
                f"{own.get(name, 'missing')}: rank and targets must be those it was saved with"
            )
    model.load_state_dict(adapters, strict=False)
