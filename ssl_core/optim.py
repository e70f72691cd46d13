"""The optimiser: parameter groups, learning rate, and its state under parameters' names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear warm-up over a share of the steps, then cosine to zero."""
    ramp = max(1, round(warmup * steps))
    if step < ramp:
        return peak * (step + 1) / ramp
    return peak * 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, steps - ramp)))


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Biases, norms and other 1-D parameters are not decayed."""
    live = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in live if p.ndim > 1], "weight_decay": weight_decay, "decays": True},
        {"params": [p for p in live if p.ndim <= 1], "weight_decay": 0.0, "decays": False},
    ]


def create(
    module: nn.Module, name: str, lr: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    """``adamw``, ``sgd`` or ``lars``; of ``betas`` the last two take the first as momentum."""
    groups = parameter_groups(module, weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=betas[0])
    from timm.optim.lars import Lars  # arXiv 1708.03888; it leaves undecayed parameters unscaled

    return Lars(groups, lr=lr, momentum=betas[0])


def state(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """Its tensors as ``<parameter>.<key>``.

    By name and not by number as in ``state_dict``: so the state fits parameters that are laid
    out over another number of ranks.
    """
    return {
        f"{name}.{key}": value
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def prepare(
    optimizer: torch.optim.Optimizer, module: nn.Module, shapes: Mapping[str, Iterable[int]]
) -> dict[str, Tensor]:
    """Give ``optimizer`` zeros where :func:`state` had tensors of ``shapes``; returns them."""
    made: dict[str, Tensor] = {}
    parameters = dict(module.named_parameters())
    optimizer.state.clear()
    for full, shape in shapes.items():
        name, _, key = full.rpartition(".")
        parameter = parameters[name]
        if tuple(shape) == tuple(parameter.shape):
            made[full] = torch.zeros_like(parameter, requires_grad=False)
        else:  # a count of steps
            made[full] = torch.zeros(tuple(shape), device=parameter.device)
        optimizer.state[parameter][key] = made[full]
    return made
