"""Affine couplings on vectors that update both halves, with the inverse and a hand-written derivative.

Sources: L. Dinh et al., "Density estimation using Real NVP", 2016, arXiv 1605.08803 (affine coupling, eq. 7 and 8); D. Kingma
and P. Dhariwal, "Glow", 2018, arXiv 1807.03039; M. Rudolph et al., "Same Same But DifferNet", WACV 2021, arXiv 2008.12577
(both halves in turn, three hidden layers, the soft clamp of the scale).

Notation: x -> input vector, x1 and x2 -> its halves after the permutation; y -> output; a, t -> log-scale and translation;
log_det -> log |det dy/dx|; g_v -> derivative of one scalar per row with respect to v. A pullback maps g of the outputs to g
of the input by plain operations. It can be exported, and it records no graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

NUM_HIDDEN_LAYERS = 3
LARGEST = 1e6
"""Bound of a coupling's output, so that it stays finite"""
SLOPE = 0.636
"""About 2/π: the log-scale clamp · SLOPE · atan(s / clamp) lies within ±clamp"""

REACH = 5.0
"""Soft bound of a subnet's inputs, in standard deviations of the data"""
SHRINKAGE = 0.01
"""Share of the mean variance that whitening adds to each variance"""

Pullback = Callable[[Tensor, Tensor], Tensor]


class _Subnet(nn.Module):
    """Log-scale a and translation t of one half, computed from the other half.

    The input is softly bounded. Without the bound, eight couplings amplify inputs far from the data until rounding errors
    dominate. The activation is x · sigmoid(x), not ReLU, so that the derivative of the flow is continuous.
    """

    def __init__(self, num_in: int, num_out: int, *, hidden: int, clamp: float) -> None:
        super().__init__()
        sizes = [num_in, *[hidden] * NUM_HIDDEN_LAYERS, 2 * num_out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.clamp = clamp

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Pullback]:
        *inner, last = (layer for layer in self.layers if isinstance(layer, nn.Linear))
        bounded = torch.tanh(x / REACH)
        hidden, slopes = REACH * bounded, []
        for layer in inner:
            linear = layer(hidden)
            gate = torch.sigmoid(linear)
            slopes.append(gate * (1 + linear * (1 - gate)))
            hidden = linear * gate
        s, t = last(hidden).to(x.dtype).chunk(2, dim=1)  # autocast lowers the precision of the products only
        ratio = s / self.clamp
        a = self.clamp * SLOPE * torch.atan(ratio)

        def pullback(g_a: Tensor, g_t: Tensor) -> Tensor:
            g = torch.cat((g_a * SLOPE / (1 + ratio * ratio), g_t), dim=1) @ last.weight
            for layer, slope in zip(reversed(inner), reversed(slopes), strict=True):
                g = (g * slope) @ layer.weight
            return g * (1 - bounded * bounded)

        return a, t, pullback


class VectorCoupling(nn.Module):
    """One step on vectors: permute, scale and shift x1 by a function of x2, then x2 by a function of the new x1.

    Args:
        dim: length D of the vectors.
        hidden: units in each of the three hidden layers of a subnet.
        clamp: upper bound of |a|.
        seed: random seed of the fixed permutation.
    """

    order: Tensor
    inverse_order: Tensor

    def __init__(self, dim: int, *, hidden: int, clamp: float, seed: int) -> None:
        super().__init__()
        self.halves = [dim // 2, dim - dim // 2]
        self.for_first = _Subnet(self.halves[1], self.halves[0], hidden=hidden, clamp=clamp)
        self.for_second = _Subnet(self.halves[0], self.halves[1], hidden=hidden, clamp=clamp)
        order = torch.randperm(dim, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("order", order)
        self.register_buffer("inverse_order", torch.argsort(order))

    def with_pullback(self, x: Tensor) -> tuple[Tensor, Tensor, Pullback]:
        """Map data towards the latent, with the derivative of the step.

        Args:
            x: (N, D) float.

        Returns:
            y (N, D), log_det (N,), and the pullback that maps g_y (N, D) and g_log_det (N, 1) to g_x (N, D).
        """
        x1, x2 = torch.split(x.index_select(1, self.order), self.halves, dim=1)
        a1, t1, first_back = self.for_first(x2)
        y1 = torch.exp(a1) * x1 + t1
        a2, t2, second_back = self.for_second(y1)
        free = torch.cat((y1, torch.exp(a2) * x2 + t2), dim=1)

        def pullback(g_y: Tensor, g_log_det: Tensor) -> Tensor:
            g1, g2 = torch.split(g_y * (free.abs() <= LARGEST), self.halves, dim=1)
            g1 = g1 + second_back(g2 * torch.exp(a2) * x2 + g_log_det, g2)
            g2 = g2 * torch.exp(a2) + first_back(g1 * torch.exp(a1) * x1 + g_log_det, g1)
            return torch.cat((g1 * torch.exp(a1), g2), dim=1).index_select(1, self.inverse_order)

        return free.clamp(-LARGEST, LARGEST), a1.sum(dim=1) + a2.sum(dim=1), pullback

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map data (N, D) towards the latent: y (N, D) and log_det (N,)."""
        y, log_det, _ = self.with_pullback(x)
        return y, log_det

    def inverse(self, y: Tensor) -> Tensor:
        """Map the latent back to data: the exact inverse of `forward`, (N, D) to (N, D)."""
        y1, y2 = torch.split(y, self.halves, dim=1)
        a2, t2, _ = self.for_second(y1)
        x2 = (y2 - t2) * torch.exp(-a2)
        a1, t1, _ = self.for_first(x2)
        return torch.cat(((y1 - t1) * torch.exp(-a1), x2), dim=1).index_select(1, self.inverse_order)


class VectorFlow(nn.Module):
    """A whitening linear step, then a sequence of couplings, with permutations seeded by their index.

    Args:
        dim: length D of the vectors.
        num_steps: number of couplings.
        hidden: units in each hidden layer of their subnets.
        clamp: upper bound of |a| in each coupling.
    """

    mean: Tensor
    whitening: Tensor
    whitening_log_det: Tensor
    is_initialized: Tensor
    """() bool, whether `initialize` has set the linear step"""

    def __init__(self, dim: int, *, num_steps: int, hidden: int, clamp: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("whitening", torch.eye(dim))
        self.register_buffer("whitening_log_det", torch.zeros(()))
        self.register_buffer("is_initialized", torch.zeros((), dtype=torch.bool))
        self.steps = nn.ModuleList(
            VectorCoupling(dim, hidden=hidden, clamp=clamp, seed=step) for step in range(num_steps)
        )

    @torch.no_grad()
    def initialize(self, y: Tensor) -> None:
        """Set the linear step from data: zero mean and unit covariance, symmetric (as in Glow's first layer, §3.1).

        `SHRINKAGE` times the mean variance is added to each variance, so that directions with little data stay bounded.

        Args:
            y: (n, D) float, n at least 2; n may be less than D.
        """
        exact = y.double()
        centred = exact - exact.mean(dim=0)
        covariance = centred.T @ centred / len(y)
        floor = SHRINKAGE * covariance.diagonal().mean() + 1e-12
        variances, directions = torch.linalg.eigh(covariance)
        variances = variances.clamp(min=0) + floor
        self.mean.copy_(exact.mean(dim=0))
        self.whitening.copy_((directions / variances.sqrt()) @ directions.T)
        self.whitening_log_det.copy_(-0.5 * variances.log().sum())
        self.is_initialized.fill_(True)

    def _couplings(self) -> list[VectorCoupling]:
        return [step for step in self.steps if isinstance(step, VectorCoupling)]

    def _coupled(self, white: Tensor) -> tuple[Tensor, Tensor, Pullback]:
        z, log_det = white, self.whitening_log_det
        backs = []
        for step in self._couplings():
            z, share, back = step.with_pullback(z)
            log_det = log_det + share
            backs.append(back)

        def pullback(g_z: Tensor, g_log_det: Tensor) -> Tensor:
            for back in reversed(backs):
                g_z = back(g_z, g_log_det)
            return g_z

        return z, log_det, pullback

    def with_pullback(self, y: Tensor) -> tuple[Tensor, Tensor, Pullback]:
        """Map data to the latent, with the derivative of the flow (see `VectorCoupling.with_pullback`)."""
        z, log_det, back = self._coupled((y - self.mean) @ self.whitening)
        return z, log_det, lambda g_z, g_log_det: back(g_z, g_log_det) @ self.whitening

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Map data (N, D) to the latent: z (N, D) and log_det (N,)."""
        with torch.autocast(y.device.type, enabled=False):  # whitening divides by small deviations
            white = (y - self.mean) @ self.whitening
        z, log_det, _ = self._coupled(white)
        return z, log_det

    def inverse(self, z: Tensor) -> Tensor:
        """Map the latent back to data: the exact inverse of `forward`, (N, D) to (N, D)."""
        for step in reversed(self._couplings()):
            z = step.inverse(z)
        white: Tensor = torch.linalg.solve(self.whitening, z.T).T
        return white + self.mean
