import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

EQUALS = 12


def batch_loss(model, x, y):
    logits, _ = model(x, y)
    each = F.cross_entropy(
        logits.reshape(-1, logits.size(-1)), y.reshape(-1), reduction="none", ignore_index=-1
    )
    first = (x == EQUALS).int().argmax(dim=1, keepdim=True)
    wanted = (torch.arange(x.size(1), device=x.device) >= first) & (y != -1)
    return (each * wanted.reshape(-1)).sum() / wanted.sum()


def train_one_epoch(model, dataloader, optim, device):
    model.train()
    total, count = 0.0, 0
    for x, y in dataloader:
        x, y = x.to(device), y.to(device)
        optim.zero_grad(set_to_none=True)
        loss = batch_loss(model, x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optim.step()
        total, count = total + loss.item() * len(x), count + len(x)
    return total / count


@torch.no_grad()
def evaluate_loss(model, dataloader, device):
    was_training = model.training
    model.eval()
    losses = torch.stack([batch_loss(model, x.to(device), y.to(device)) for x, y in dataloader])
    model.train(was_training)
    return losses.mean()


def plot(losses):
    plt.plot(losses)
    plt.savefig("loss_curve.png")
