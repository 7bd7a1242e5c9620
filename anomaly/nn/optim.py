"""Adam with the two learning-rate schedules of the models here: a cosine to zero, and a short rise before it."""

from __future__ import annotations

import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch.optim.optimizer import ParamsT


def cosine_adam(
    parameters: ParamsT,
    *,
    num_steps: int | float,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> OptimizerLRSchedulerConfig:
    """Adam whose learning rate follows one cosine to zero (I. Loshchilov and F. Hutter, 2016, arXiv 1608.03983, eq. 5).

    Args:
        parameters: parameters or parameter groups.
        num_steps: optimisation steps of the training, `trainer.estimated_stepping_batches`.
        learning_rate: learning rate of the first step.
        betas: decay rates of Adam's two moments.
        weight_decay: L2 penalty of Adam.
    """
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, betas=betas, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, int(num_steps)))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def one_cycle_adam(
    parameters: ParamsT,
    *,
    num_steps: int | float,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> OptimizerLRSchedulerConfig:
    """Adam whose learning rate rises over 15 % of the steps, then falls (L. Smith and N. Topin, 2017, arXiv 1708.07120).

    Args:
        parameters: parameters or parameter groups.
        num_steps: optimisation steps of the training, `trainer.estimated_stepping_batches`.
        learning_rate: highest learning rate.
        betas: decay rates of Adam's two moments.
        eps: constant in Adam's denominator.
        weight_decay: L2 penalty of Adam.
    """
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, betas=betas, eps=eps, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=max(2, int(num_steps)), pct_start=0.15, cycle_momentum=False
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
