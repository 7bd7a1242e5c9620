"""Corruption of good images with synthetic defects, for models that learn to repair."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from anomaly.data.synthetic import DEFECTS, PASTED, draw_any_defect
from anomaly.errors import UsageError

KINDS = (*DEFECTS, *PASTED)
SIZES = (0.04, 0.4)
CONTRASTS = (0.2, 1.0)
MAX_DEFECTS = 3
"""Largest number of defects per image"""


def draw_defects(x: Tensor, *, generator: torch.Generator) -> Tensor:
    """Draw one to three defects with random kind, size and contrast onto each image, as `anomaly synthesize` does.

    Args:
        x: (N, 3, H, W) float in [0, 1].
        generator: random generator on the CPU.

    Returns:
        (N, 3, H, W) in [0, 1], rounded to 1/255 inside defects and equal to x elsewhere.
    """
    seed = int(torch.randint(2**31, (), generator=generator))
    rng = np.random.default_rng(seed)
    images = (x.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    everywhere = np.ones(images.shape[1:3], dtype=bool)
    drawn, changed = images.copy(), np.zeros(images.shape[:3], dtype=bool)
    for index in range(len(images)):
        source = images[int(rng.integers(len(images)))]
        for _ in range(int(rng.integers(1, MAX_DEFECTS + 1))):
            size = float(np.exp(rng.uniform(*np.log(SIZES))))
            try:
                drawn[index], mask = draw_any_defect(
                    drawn[index],
                    KINDS[int(rng.integers(len(KINDS)))],
                    size=size,
                    contrast=float(rng.uniform(*CONTRASTS)),
                    foreground=everywhere,
                    sources=[source],
                    rng=rng,
                )
            except UsageError:  # too faint at this position
                continue
            changed[index] |= mask
    corrupted = torch.from_numpy(drawn).permute(0, 3, 1, 2).to(x) / 255
    return torch.where(torch.from_numpy(changed)[:, None].to(x.device), corrupted, x)
