"""Steps of normalizing flows on images, and their composition over scales.

Sources: L. Dinh et al., "Density estimation using Real NVP", 2016, arXiv 1605.08803 (coupling, eq. 7 and 8; masks, squeeze and
factoring out, §3.4 to 3.6; logit, §4.1); D. Kingma and P. Dhariwal, "Glow", 2018, arXiv 1807.03039 (actnorm, §3.1; invertible
1×1 convolution in its LU form, eq. 10 and 11).

Notation: y -> map (N, C, H, W) on its way from data to latent; z -> latent; s, t -> log-scale and translation; log_det -> each
element's share of log |det ∂f/∂y|, of a shape that broadcasts to the map's: summed over the map it is the log-determinant.
Shares that keep their elements let a likelihood be taken apart into pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomaly.errors import UsageError

REACH = 5.0
"""Where the soft bound of what a subnet sees lies, in deviations of the data"""


def squeeze(y: Tensor) -> Tensor:
    """Move each block of 2×2 positions to the channels, (N, C, H, W) to (N, 4C, H/2, W/2).

    The blocks' positions come in the order (0, 0), (1, 1), (0, 1), (1, 0), all channels of a position together: the halves of
    the channels are the two colours of a checkerboard.
    """
    rows, columns = (0, 1, 0, 1), (0, 1, 1, 0)
    return torch.cat([y[:, :, r::2, c::2] for r, c in zip(rows, columns, strict=True)], dim=1)


def unsqueeze(y: Tensor) -> Tensor:
    """Move the channels back to blocks of 2×2 positions, (N, 4C, H, W) to (N, C, 2H, 2W): the inverse of `squeeze`."""
    upper_left, lower_right, upper_right, lower_left = y.chunk(4, dim=1)
    rows = [
        torch.stack(pair, dim=-1).flatten(3) for pair in ((upper_left, upper_right), (lower_left, lower_right))
    ]  # each (N, C, H, 2W)
    return torch.stack(rows, dim=3).flatten(2, 3)


def checkerboard_mask(channels: int) -> Tensor:
    """Mark one colour of the checkerboard on a squeezed map, (channels,) bool: its first half."""
    return torch.arange(channels) < channels // 2


def channel_mask(channels: int) -> Tensor:
    """Mark every other channel, (channels,) bool: on a squeezed map it cuts across the colours of the checkerboard."""
    return torch.arange(channels) % 2 == 0


class Actnorm(nn.Module):
    """An offset and a scale that the first batch sets: after it each has zero mean and unit variance.

    Args:
        shape: (C, 1, 1) for one pair a channel, as the paper has it, or (C, H, W) for one at each position.
        shrinkage: share of the mean variance that is added to each, where few values tell it.
    """

    def __init__(self, shape: tuple[int, int, int], *, shrinkage: float) -> None:
        super().__init__()
        self.shrinkage = shrinkage
        self.offset = nn.Parameter(torch.zeros(1, *shape))
        self.log_scale = nn.Parameter(torch.zeros(1, *shape))

    @torch.no_grad()
    def initialize(self, y: Tensor) -> None:
        """Set offset and scale by data (N, C, H, W)."""
        dims = [dim for dim in range(y.dim()) if self.offset.shape[dim] == 1]
        mean = y.mean(dim=dims, keepdim=True)
        variance = ((y - mean) ** 2).mean(dim=dims, keepdim=True)
        self.offset.copy_(-mean)
        self.log_scale.copy_(-0.5 * torch.log(variance + self.shrinkage * variance.mean() + 1e-6))

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Map towards the latent: the map and log_det, which is the log-scale."""
        return (y + self.offset) * torch.exp(self.log_scale), self.log_scale

    def inverse(self, y: Tensor) -> Tensor:
        """Map back to data."""
        return y * torch.exp(-self.log_scale) - self.offset


class Invertible1x1(nn.Module):
    """Mixes the channels of each position by a matrix W = P L (U + diag(s)), at first a random rotation.

    P stays; L is lower triangular with ones on its diagonal, U strictly upper triangular, and the signs of s stay.

    Args:
        channels: C of the map.
    """

    permutation: Tensor
    sign: Tensor
    below: Tensor
    identity: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        rotation, _ = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))
        permutation, lower, upper = torch.linalg.lu(rotation)
        s = upper.diagonal()
        self.register_buffer("permutation", permutation.float())
        self.register_buffer("sign", torch.sign(s).float())
        self.register_buffer("below", torch.ones(channels, channels).tril(-1), persistent=False)
        self.register_buffer("identity", torch.eye(channels), persistent=False)
        self.lower = nn.Parameter(lower.tril(-1).float())
        self.upper = nn.Parameter(upper.triu(1).float())
        self.log_s = nn.Parameter(s.abs().log().float())

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Map towards the latent: the map and log_det (1, C, 1, 1), which is log |s|."""
        with torch.autocast(y.device.type, enabled=False):  # the inverse must find back what rounding would lose
            lower = self.lower * self.below + self.identity
            upper = self.upper * self.below.T + torch.diag(self.sign * torch.exp(self.log_s))
            mixed = functional.conv2d(y, (self.permutation @ lower @ upper)[:, :, None, None])
        return mixed, self.log_s.view(1, -1, 1, 1)

    def inverse(self, y: Tensor) -> Tensor:
        """Map back to data, by W⁻¹ = (U + diag(s))⁻¹ L⁻¹ Pᵀ from plain products."""
        with torch.autocast(y.device.type, enabled=False):
            s = self.sign.double() * torch.exp(self.log_s.double())
            lower = self._inverse_of_unit(-self.lower.double() * self.below)
            upper = self._inverse_of_unit(-self.upper.double() * self.below.T / s[:, None]) / s
            inverse = (upper @ lower @ self.permutation.T.double()).to(y.dtype)
            return functional.conv2d(y, inverse[:, :, None, None])

    def _inverse_of_unit(self, nilpotent: Tensor) -> Tensor:
        """(I - N)⁻¹ = (I + N)(I + N²)(I + N⁴)…, which ends because N^C = 0 for a strictly triangular N.

        In float64: the powers of a large N rise before they fall, and leave their rounding behind.
        """
        inverse, power = self.identity + nilpotent, nilpotent
        for _ in range(math.ceil(math.log2(len(nilpotent))) - 1):
            power = power @ power
            inverse = inverse + inverse @ power
        return inverse


class CouplingNet(nn.Module):
    """Convolutions that say log-scale and translation; its last layer begins at zero, and so the coupling as the identity.

    A learned map is added to the first layer's output, so that the net knows where on a part in register it is. What it sees
    is softly bounded: an outlier must not throw its neighbours.

    Args:
        inputs: channels that it sees.
        outputs: channels that are changed.
        width: hidden channels.
        kernel: size of the residual convolution's kernel, odd.
        size: (H, W) of the map.
    """

    def __init__(self, inputs: int, outputs: int, *, width: int, kernel: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.place = nn.Parameter(torch.zeros(1, width, *size))
        self.hidden = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        self.last = nn.Conv2d(width, 2 * outputs, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, inputs, H, W) to an unbounded log-scale and a translation, each (N, outputs, H, W), in y's precision."""
        hidden = functional.relu(self.first(REACH * torch.tanh(y / REACH)) + self.place)
        hidden = functional.relu(hidden + self.hidden(hidden))
        s, t = self.last(hidden).to(y.dtype).chunk(2, dim=1)
        return s, t


class MaskedCoupling(nn.Module):
    """Scales and moves the channels outside a mask by what a net says of those within: y ⊙ exp(s) + t.

    Args:
        mask: (C,) bool, True for channels that stay and are seen.
        width: hidden channels of the net.
        kernel: of its hidden convolution.
        clamp: bound of |s|.
        size: (H, W) of the map.
    """

    seen: Tensor
    moved: Tensor
    order: Tensor

    def __init__(self, mask: Tensor, *, width: int, kernel: int, clamp: float, size: tuple[int, int]) -> None:
        super().__init__()
        seen, moved = mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]
        self.register_buffer("seen", seen, persistent=False)
        self.register_buffer("moved", moved, persistent=False)
        self.register_buffer("order", torch.argsort(torch.cat((seen, moved))), persistent=False)
        self.net = CouplingNet(len(seen), len(moved), width=width, kernel=kernel, size=size)
        self.clamp = clamp

    def _said(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self.net(seen)
        return self.clamp * torch.tanh(s / self.clamp), t

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Map towards the latent: the map and log_det (N, C, H, W), which is s, and 0 for what stays."""
        seen, moved = y.index_select(1, self.seen), y.index_select(1, self.moved)
        s, t = self._said(seen)
        after = torch.cat((seen, moved * torch.exp(s) + t), dim=1).index_select(1, self.order)
        return after, torch.cat((torch.zeros_like(seen), s), dim=1).index_select(1, self.order)

    def inverse(self, y: Tensor) -> Tensor:
        """Map back to data."""
        seen, moved = y.index_select(1, self.seen), y.index_select(1, self.moved)
        s, t = self._said(seen)
        return torch.cat((seen, (moved - t) * torch.exp(-s)), dim=1).index_select(1, self.order)


Step = Actnorm | Invertible1x1 | MaskedCoupling


class MultiScale(nn.Module):
    """A flow over scales: each squeezes, runs its steps, and hands one half of the channels over to the latent.

    Before the first scale each element is standardised by an offset and a scale of its own, which the first batch sets: on
    parts in register this is the mean image.

    Args:
        scales: the steps of each scale, which act on maps of the shapes that `scale_shapes` says.
        shape: (C, H, W) of the data.
        mixes: whether the steps mix the channels, so that an element's share belongs to its block and not to its position.
    """

    is_initialized: Tensor
    """() bool, whether a batch has set what data set"""

    def __init__(self, scales: Sequence[Sequence[Step]], *, shape: tuple[int, int, int], mixes: bool) -> None:
        super().__init__()
        self.enter = Actnorm(shape, shrinkage=0.01)
        self.scales = nn.ModuleList(nn.ModuleList(steps) for steps in scales)
        self.mixes = mixes
        self.register_buffer("is_initialized", torch.zeros((), dtype=torch.bool))
        squeezed = scale_shapes(shape, num_scales=len(scales))
        self.latent_shapes = [(c // 2, h, w) for c, h, w in squeezed[:-1]] + squeezed[-1:]

    def _steps(self) -> list[list[Step]]:
        return [
            [step for step in steps if isinstance(step, Step)]
            for steps in self.scales
            if isinstance(steps, nn.ModuleList)
        ]

    @torch.no_grad()
    def initialize(self, y: Tensor) -> None:
        """Set every actnorm in turn by data (N, C, H, W)."""
        self.enter.initialize(y)
        y, _ = self.enter(y)
        for number, steps in enumerate(self._steps()):
            y = squeeze(y if not number else y.chunk(2, dim=1)[1])
            for step in steps:
                if isinstance(step, Actnorm):
                    step.initialize(y)
                y, _ = step(y)
        self.is_initialized.fill_(True)

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to the latent.

        Args:
            y: (N, C, H, W) float.

        Returns:
            z (N, C·H·W), and each element's share of -log p(y) under z ~ N(0, I), (N, C, H, W).
        """
        y, entered = self.enter(y)
        parts, log_dets = [], []
        for number, steps in enumerate(self._steps()):
            y = squeeze(y if not number else y.chunk(2, dim=1)[1])
            log_det = torch.zeros_like(y)
            for step in steps:
                y, share = step(y)
                log_det = log_det + share
            parts.append(y.chunk(2, dim=1)[0] if number < len(self.scales) - 1 else y)
            log_dets.append(log_det)
        shares = y.new_zeros(0)
        for number, (part, log_det) in reversed(list(enumerate(zip(parts, log_dets, strict=True)))):
            own = 0.5 * part * part + 0.5 * math.log(2 * math.pi)
            shares = (torch.cat((own, shares), dim=1) if number < len(parts) - 1 else own) - log_det
            if self.mixes:
                shares = shares.mean(dim=1, keepdim=True).expand_as(shares)
            shares = unsqueeze(shares)
        return torch.cat([part.flatten(1) for part in parts], dim=1), shares - entered

    def inverse(self, z: Tensor) -> Tensor:
        """Map the latent back to data: the inverse of `forward`, (N, C·H·W) to (N, C, H, W)."""
        ends = list(itertools.accumulate(math.prod(shape) for shape in self.latent_shapes))
        starts = [0, *ends[:-1]]
        y = z.new_zeros(0)
        for number, steps in reversed(list(enumerate(self._steps()))):
            part = z[:, starts[number] : ends[number]].reshape(-1, *self.latent_shapes[number])
            y = part if number == len(self.scales) - 1 else torch.cat((part, y), dim=1)
            for step in reversed(steps):
                y = step.inverse(y)
            y = unsqueeze(y)
        return self.enter.inverse(y)


def scale_shapes(shape: tuple[int, int, int], *, num_scales: int) -> list[tuple[int, int, int]]:
    """Give the shape (C, H, W) on which the steps of each scale act: squeezed, half of the last one's channels gone.

    Args:
        shape: (C, H, W) of the data.
        num_scales: how often it is squeezed.

    Raises:
        UsageError: a height or width that cannot be halved so often.
    """
    channels, height, width = shape
    block = 2**num_scales
    if num_scales < 1 or height % block or width % block:
        raise UsageError(
            f"size {height}, num_scales {num_scales}: each scale halves the image; give 1 scale or more, and a multiple of"
            f" {block} as size, e.g. {max(1, height // block) * block}"
        )
    return [(channels * 4 * 2**k, height // 2 ** (k + 1), width // 2 ** (k + 1)) for k in range(num_scales)]


class Logit(nn.Module):
    """From images with grey levels to unbounded values and back: v = logit(margin + (1 - 2 margin) x').

    x' = ((levels - 1) x + u) / levels lies in [0, 1] for x in [0, 1]; u in [0, 1) is the place within the bin of a grey level,
    0.5 being its centre. x need not lie on the levels: resized images do not.

    Args:
        levels: grey levels.
        margin: keeps the logit finite at black and white; the RealNVP paper's is 0.05.
    """

    def __init__(self, *, levels: int, margin: float) -> None:
        super().__init__()
        self.levels, self.margin = levels, margin

    def forward(self, x: Tensor, u: Tensor | float) -> tuple[Tensor, Tensor]:
        """Map images (N, 3, h, w) in [0, 1] to v, with log_det of each element from x' to v."""
        inner = self.margin + (1 - 2 * self.margin) * ((self.levels - 1) * x + u) / self.levels
        log, log_rest = torch.log(inner), torch.log(1 - inner)
        return log - log_rest, math.log(1 - 2 * self.margin) - log - log_rest

    def inverse(self, v: Tensor) -> Tensor:
        """Map v back to images in [0, 1], at the bins' centres; what lies beyond is cut off."""
        dequantised = (torch.sigmoid(v) - self.margin) / (1 - 2 * self.margin)
        return ((self.levels * dequantised - 0.5) / (self.levels - 1)).clamp(0, 1)
