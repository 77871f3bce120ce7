"""Muon for the matrices of the layers, and AdamW for all else (Jordan et al. 2024).

Muon is torch's, with the step sizes of Liu et al. 2025 ("Muon is Scalable for LLM Training",
section 2.2), so that the learning rate and weight decay of AdamW serve both.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from optimizer import AdamW


class MuonAndAdamW:
    """Two optimizers in the form of one. Embeddings, the output layer, norms and biases are
    AdamW's: Muon's updates are orthogonal matrices, and an embedding's rows are separate vectors.
    """

    def __init__(self, network: nn.Module, lr: float, weight_decay: float, eps: float) -> None:
        trained = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
        hidden = [p for name, p in trained if p.ndim == 2 and "layers." in name]
        if not hidden:
            raise ValueError("no layer has a matrix to train: --optimizer muon has nothing to do")
        matrices = [p for name, p in trained if p.ndim == 2 and "layers." not in name]
        vectors = [p for _, p in trained if p.ndim < 2]
        self.muon = torch.optim.Muon(
            hidden, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        groups = [
            {"params": matrices, "weight_decay": weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.adamw = AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=eps)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [*self.muon.param_groups, *self.adamw.param_groups]

    def zero_grad(self) -> None:
        self.muon.zero_grad()
        self.adamw.zero_grad()

    def step(self) -> None:
        self.muon.step()
        self.adamw.step()

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])
