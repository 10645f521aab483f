"""Learning rate by step, and the optimizer."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from recommender.training.config import TrainSettings

TABLES = {"items", "positions", "wpe", "embed_positions"}


def learning_rate(step: int, total: int, settings: TrainSettings) -> float:
    """The rate of optimizer step `step` (0-based): linear warm-up, then a cosine to 0, or constant."""
    warmup = min(settings.warmup_steps, total // 10)  # a short run keeps nine tenths of its steps
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    progress = (step - warmup) / max(total - warmup, 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def make_optimizer(objective: nn.Module, settings: TrainSettings) -> Optimizer:
    """AdamW or SGD over what is trainable; weight decay falls on matrices, never on item tables, norms or
    biases.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and TABLES.isdisjoint(name.split("."))
            (decayed if matrix else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)


def set_rate(groups: Iterable[dict[str, object]], rate: float) -> None:
    """Give every parameter group the same learning rate."""
    for group in groups:
        group["lr"] = rate
