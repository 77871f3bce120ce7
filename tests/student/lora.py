import torch
from torch import nn


class LoRALayer(nn.Module):
    def __init__(self, original_layer, rank=4, alpha=1.0):
        super().__init__()
        self.original_layer = original_layer
        self.scaling = alpha / rank
        self.lora_A = nn.Parameter(0.02 * torch.randn(rank, original_layer.in_features))
        self.lora_B = nn.Parameter(torch.zeros(original_layer.out_features, rank))
        for parameter in self.original_layer.parameters():
            parameter.requires_grad = False

    def forward(self, x):
        low = torch.matmul(x, self.lora_A.t())
        return self.original_layer(x) + torch.matmul(low, self.lora_B.t()) * self.scaling


def apply_lora(model, rank=4, alpha=1.0):
    for name, child in model.named_children():
        if isinstance(child, nn.Linear) and name.startswith("compute_"):
            setattr(model, name, LoRALayer(child, rank, alpha))
            print("wrapped", name)
        else:
            apply_lora(child, rank, alpha)
    return model


def merge_lora_weights(model):
    for name, child in model.named_children():
        if isinstance(child, LoRALayer):
            linear = child.original_layer
            linear.weight.data += child.scaling * torch.mm(child.lora_B, child.lora_A).data
            setattr(model, name, linear)
        else:
            merge_lora_weights(child)
    return model
