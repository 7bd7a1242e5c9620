"""Gated masked convolutions: the distribution of each value of a grid, given the earlier values in raster order.

A. van den Oord et al., "Conditional Image Generation with PixelCNN Decoders", 2016, arXiv 1606.05328 (the gate, eq. 2; the
vertical and the horizontal stack, figure 2; a condition on the position, eq. 5); A. van den Oord et al., "Pixel
Recurrent Neural Networks", 2016, arXiv 1601.06759 (masks A and B over the colours of a pixel, section 3.4).

Notation: v -> vertical stack, features of the rows above; h -> horizontal stack, features of the rows above and of the pixels
to the left; group -> features that depend on a pixel's values up to the group's own; link -> term that v adds to h's gates.
What differs, and why: the first vertical layer skips its own row, so that no later layer needs a shift. The condition is a
learned map of the position, because industrial parts are aligned. v depends only on the rows above, and h only on one row
and the links. Sampling therefore computes v once per row and h once per value.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def _allowed(inputs: int, outputs: int, *, num_groups: int, own: bool) -> Tensor:
    """Mask (outputs, inputs) bool within a pixel: an output depends on earlier groups and, if `own`, on its own group."""
    of_input = torch.arange(inputs) * num_groups // inputs
    of_output = torch.arange(outputs) * num_groups // outputs
    return of_output[:, None] >= of_input + (not own)


class _RowConvolution(nn.Conv2d):
    """Convolution over the pixels to the left and, group by group, over the pixel itself.

    Args:
        inputs: number of input channels, ordered by group.
        outputs: number of channels of each of the `num_parts` results.
        num_parts: number of results, stacked along the channels, each ordered by group.
        num_groups: number of values per pixel.
        left: number of visible pixels to the left.
        own: whether a group depends on its own input at the pixel itself (mask B), or only on earlier groups (mask A).
    """

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, *, num_parts: int, num_groups: int, left: int, own: bool) -> None:
        super().__init__(inputs, num_parts * outputs, (1, left + 1))
        self.left = left
        mask = torch.ones_like(self.weight)
        mask[..., 0, -1] = _allowed(inputs, outputs, num_groups=num_groups, own=own).repeat(num_parts, 1).to(mask)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        return functional.conv2d(functional.pad(h, (self.left, 0, 0, 0)), self.weight * self.mask, self.bias)


def _gate(y: Tensor) -> Tensor:
    """tanh(a) · sigmoid(b) of the two halves of the channels (eq. 2)."""
    a, b = torch.chunk(y, 2, dim=1)
    return torch.tanh(a) * torch.sigmoid(b)


class _Layer(nn.Module):
    """One layer of both stacks."""

    def __init__(
        self, inputs: tuple[int, int], width: int, *, place: int, num_groups: int, kernel: int, first: bool
    ) -> None:
        super().__init__()
        self.reach, self.first = kernel // 2, first
        rows = self.reach if first else self.reach + 1  # the first layer skips its own row
        self.down = nn.Conv2d(inputs[0], 2 * width, (rows, kernel), padding=(0, self.reach))
        self.link = nn.Conv2d(2 * width + place, 2 * width, 1)
        self.across = _RowConvolution(
            inputs[1], width, num_parts=2, num_groups=num_groups, left=self.reach, own=not first
        )
        self.out = _RowConvolution(width, width, num_parts=1, num_groups=num_groups, left=0, own=True)

    def vertical(self, v: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the next v and the link."""
        y = self.down(functional.pad(v, (0, 0, self.reach, 0)))[:, :, : v.shape[2]]
        return _gate(y), self.link(torch.cat((y, place), dim=1))

    def horizontal(self, h: Tensor, link: Tensor) -> Tensor:
        """Compute the next h."""
        y: Tensor = self.out(_gate(self.across(h) + link))
        return y if self.first else h + y


class GatedMaskedNetwork(nn.Module):
    """Logits of each value of a grid. Each logit depends only on earlier values in raster order.

    A pixel holds `num_groups` values; later values depend on the earlier ones.

    Args:
        size: height and width of the grid.
        num_groups: number of values per pixel, 3 for colours.
        inputs: number of input channels per value.
        num_classes: number of classes of one value.
        width: number of channels of both stacks, a multiple of `num_groups`.
        num_layers: number of layers of both stacks.
        kernel: side of the convolutions in pixels, odd.
        place: number of channels of the learned map of the position.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        num_groups: int,
        inputs: int,
        num_classes: int,
        width: int,
        num_layers: int,
        kernel: int,
        place: int,
    ) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.place = nn.Parameter(0.1 * torch.randn(place, *size))
        channels = num_groups * inputs
        self.layers = nn.ModuleList(
            _Layer(
                (width, width) if number else (channels + place, channels),
                width,
                place=place,
                num_groups=num_groups,
                kernel=kernel,
                first=number == 0,
            )
            for number in range(num_layers)
        )
        self.head = nn.Sequential(
            nn.ReLU(),
            _RowConvolution(width, 2 * width, num_parts=1, num_groups=num_groups, left=0, own=True),
            nn.ReLU(),
            _RowConvolution(2 * width, num_groups * num_classes, num_parts=1, num_groups=num_groups, left=0, own=True),
        )
        self.reach = num_layers * (kernel // 2)
        """Receptive field: rows above, and columns on each side"""

    def forward(self, values: Tensor) -> Tensor:
        """Map grids (N, num_groups · inputs, h, w) to logits (N, num_groups, num_classes, h, w)."""
        first = torch.zeros(values.shape[0], dtype=torch.int64, device=values.device)
        return self.along_row(values, self.from_above(values, first))

    def from_above(self, rows: Tensor, first: Tensor) -> Tensor:
        """Compute the links of all layers: the terms that the rows above add to the gates.

        Args:
            rows: (N, num_groups · inputs, R, w), successive rows of the grid.
            first: (N,) int64, index of the first of these rows.

        Returns:
            The links (N, num_layers · 2 · width, R, w). They are valid in rows at least `reach` below the first, and in all
            rows if the first is row 0.
        """
        number = first[:, None] + torch.arange(rows.shape[2], device=rows.device)
        place = torch.unflatten(self.place.index_select(1, number.flatten()), 1, number.shape).transpose(0, 1)
        v, links = torch.cat((rows, place), dim=1), []
        for layer in self.layers:
            v, link = layer.vertical(v, place)  # type: ignore[operator]
            links.append(link)
        return torch.cat(links, dim=1)

    def along_row(self, rows: Tensor, links: Tensor) -> Tensor:
        """Compute the logits of successive columns of rows.

        Args:
            rows: (N, num_groups · inputs, R, C).
            links: (N, num_layers · 2 · width, R, C), at the same positions.

        Returns:
            (N, num_groups, num_classes, R, C). They are valid in columns at least `reach` right of the first, and in all
            columns if the first is column 0.
        """
        h = rows
        for layer, link in zip(self.layers, torch.chunk(links, len(self.layers), dim=1), strict=True):
            h = layer.horizontal(h, link)  # type: ignore[operator]
        logits: Tensor = self.head(h)
        return torch.unflatten(logits, 1, (self.num_groups, -1))
