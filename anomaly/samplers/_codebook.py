"""`Codebook` of a VQ-VAE, with moving averages of its vectors.

A. van den Oord, O. Vinyals, K. Kavukcuoglu, "Neural Discrete Representation Learning", 2017, arXiv 1711.00937 (nearest vector,
eq. 1 and 2; moving averages, appendix A.1, eq. 6 to 8). `anomaly.samplers.vqvae` lists the notation and the differences.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SHARPNESS = 0.15
"""T in units of the mean distance between a cell and its nearest vector"""


class Codebook(nn.Module):
    """Codebook vectors e, moving averages of their nearest cells.

    Args:
        num_codes: number K of vectors.
        dimensions: number D of values per vector.
        decay: decay of the moving averages.
        min_use: least use of a vector before it restarts, as a share of even use.
    """

    vectors: Tensor
    use: Tensor
    total: Tensor
    usual: Tensor

    def __init__(self, *, num_codes: int, dimensions: int, decay: float, min_use: float) -> None:
        super().__init__()
        self.decay, self.min_use = decay, min_use
        self.register_buffer("vectors", torch.zeros(num_codes, dimensions))
        self.register_buffer("use", torch.zeros(num_codes))  # N_i of eq. 6, divided by even use
        self.register_buffer("total", torch.zeros(num_codes, dimensions))  # m_i of eq. 7
        self.register_buffer("usual", torch.ones(()))  # moving average of the mean of min d

    def distances(self, u: Tensor) -> Tensor:
        """Compute squared distances d (N, K, gh, gw) of u (N, D, gh, gw)."""
        # as a difference of squares, d loses the digits that decide near ties
        return ((u[:, None] - self.vectors[:, :, None, None]) ** 2).sum(dim=2)

    def nearest(self, u: Tensor) -> Tensor:
        """Return the number of each cell's nearest vector, (N, gh, gw) int64 (eq. 1)."""
        return self.distances(u).argmin(dim=1)

    def shares(self, u: Tensor) -> Tensor:
        """Compute weights softmax(-d / T), (N, K, gh, gw); about 1 for the nearest vector unless another is nearly as near."""
        d = self.distances(u)
        return torch.softmax((d.amin(dim=1, keepdim=True) - d) / (SHARPNESS * self.usual + 1e-6), dim=1)

    def look_up(self, code: Tensor) -> Tensor:
        """Return the vectors q (N, D, gh, gw) of codes (N, gh, gw) (eq. 2)."""
        vectors = self.vectors.index_select(0, code.flatten())
        return torch.unflatten(vectors, 0, code.shape).permute(0, 3, 1, 2)

    @torch.no_grad()
    def follow(self, u: Tensor, *, generator: torch.Generator) -> None:
        """Restart unused vectors, then move all vectors towards their cells of a batch (eq. 6 to 8)."""
        cells = u.permute(0, 2, 3, 1).flatten(0, 2)
        unused = self.use < self.min_use
        if unused.any():
            chosen = torch.randint(len(cells), (int(unused.sum()),), generator=generator).to(u.device)
            self.vectors[unused], self.total[unused], self.use[unused] = cells[chosen], cells[chosen], 1.0
        d = self.distances(u)
        assigned = functional.one_hot(d.argmin(dim=1).flatten(), len(self.vectors)).to(cells)
        scale = len(self.vectors) / len(cells)
        self.use.lerp_(scale * assigned.sum(dim=0), 1 - self.decay)
        self.total.lerp_(scale * (assigned.T @ cells), 1 - self.decay)
        self.usual.lerp_(d.amin(dim=1).mean(), 1 - self.decay)
        self.vectors.copy_(self.total / self.use[:, None].clamp(min=1e-4))
