"""Similarity maps of two images: SSIM and multi-scale gradient magnitude similarity.

Sources: Z. Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004 (SSIM, eq. 13);
W. Xue et al., "Gradient magnitude similarity deviation", 2013, arXiv 1308.3052 (GMS, eq. 4); V. Zavrtanik et al.,
"Reconstruction by inpainting for visual anomaly detection", 2021 (GMS at four scales, §3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Ssim(nn.Module):
    """SSIM map with a Gaussian window.

    Args:
        window: side of the window in pixels, odd.
        sigma: standard deviation of the Gaussian in pixels.
    """

    kernel: Tensor

    def __init__(self, *, window: int = 11, sigma: float = 1.5) -> None:
        super().__init__()
        at = torch.arange(window, dtype=torch.float32) - window // 2
        kernel = torch.exp(-(at**2) / (2 * sigma**2))
        self.register_buffer("kernel", kernel / kernel.sum())

    def _blur(self, maps: Tensor) -> Tensor:
        channels, reach = maps.shape[1], len(self.kernel) // 2
        padded = functional.pad(maps, (reach, reach, reach, reach), mode="reflect")
        across = self.kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
        down = self.kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
        return functional.conv2d(functional.conv2d(padded, across, groups=channels), down, groups=channels)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Compare images (N, C, H, W) with values in [0, 1].

        Returns:
            (N, H, W) in [-1, 1], the mean over channels; 1 for equal images.
        """
        c1, c2 = 0.01**2, 0.03**2
        channels = x.shape[1]
        level = x.mean(
            dim=(2, 3), keepdim=True
        )  # subtracted first, because the variance of a flat bright area would cancel
        x, y = x - level, y - level
        blurred = self._blur(torch.cat((x, y, x * x + y * y, x * y), dim=1))
        mean_x, mean_y, squares, product = torch.split(blurred, channels, dim=1)
        covariance, variances = product - mean_x * mean_y, squares - mean_x * mean_x - mean_y * mean_y
        mean_x, mean_y = mean_x + level, mean_y + level
        luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
        structure = (2 * covariance + c2) / (variances + c2)
        similarity: Tensor = (luminance * structure).mean(dim=1)
        return similarity


class GradientSimilarity(nn.Module):
    """Gradient magnitude similarity at several scales (MSGMS), averaged at full resolution.

    Args:
        num_scales: number of scales, each with half the resolution of the one before.
    """

    edges: Tensor

    def __init__(self, *, num_scales: int = 4) -> None:
        super().__init__()
        self.num_scales = num_scales
        across = torch.tensor([[1.0, 0.0, -1.0]] * 3) / 3  # Prewitt
        self.register_buffer("edges", torch.stack((across, across.T))[:, None])

    def _magnitude(self, grey: Tensor) -> Tensor:
        gradient = functional.conv2d(functional.pad(grey, (1, 1, 1, 1), mode="replicate"), self.edges)
        # at least 1e-6: the ONNX exporter treats an added 1e-8 as 0 and drops it
        return torch.sqrt((gradient * gradient).sum(dim=1, keepdim=True) + 1e-6)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Compare images (N, C, H, W) with values in [0, 1] by the gradients of their channel mean.

        Returns:
            (N, H, W) in [0, 1], 1 for equal gradients.
        """
        c = 0.0026
        size = x.shape[2:]
        x, y = x.mean(dim=1, keepdim=True), y.mean(dim=1, keepdim=True)
        total = torch.zeros((), device=x.device)
        for scale in range(self.num_scales):
            if scale:
                x, y = functional.avg_pool2d(x, 2), functional.avg_pool2d(y, 2)
            g, h = self._magnitude(x), self._magnitude(y)
            similarity = (2 * g * h + c) / (g * g + h * h + c)
            total = total + functional.interpolate(similarity, size, mode="bilinear", align_corners=False)
        return total[:, 0] / self.num_scales
