"""Probabilistic principal components: an image is a mean plus a few directions of variation plus noise.

M. Tipping and C. Bishop, "Probabilistic Principal Component Analysis", 1999, Journal of the Royal Statistical Society B 61
(eq. 3 to 8). `anomaly.generation.linear.LinearLoop` projects with missing pixels and robustly.

Notation: x -> image as a vector of D values; z -> latent, N(0, I_k); mu -> mean; U -> k orthonormal directions (k, D);
lambda_j -> variance of x along direction j; s2 -> noise variance, the mean of the other D - k variances.
x = mu + sum_j sqrt(lambda_j - s2) z_j u_j + noise, so that x has the covariance C of eigenvalues lambda_j and s2:
-log p(x) = (|r|² / s2 + sum_j a_j² / lambda_j + sum_j log lambda_j + (D - k) log s2 + D log 2 pi) / 2
with a = U (x - mu) and r the residual of x - mu (Woodbury's identity in the eigenbasis).

What differs, and why: `encode` is the orthogonal projection, so that the decoded image is the nearest one in the subspace. The
posterior mean would shrink it towards mu by s2 / lambda_j. All variances are maximum-likelihood estimates, and at least the
variance of rounding to 8 bits.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from anomaly.errors import UsageError
from anomaly.nn.preprocess import Resize
from anomaly.samplers._one_pass import OnePassSampler
from anomaly.samplers.base import Density, Score

ROUNDING = (1 / 255) ** 2 / 12
"""Variance of rounding to 8 bits, for images in [0, 1]"""
MAX_EXACT = 1000
"""Largest number of images for an exact decomposition; above, a randomised method is used"""


class Pca(OnePassSampler):
    """Probabilistic principal components of whole images, fitted in one pass.

    `anomaly_map` keeps the residual at its pixels and spreads the latent's share of -log p evenly; the map sums to -log p. The
    default score is the peak of the standardised map, for small defects. `mean` without `standardise` is the likelihood.

    Args:
        size: side of the network's square input in pixels.
        resize: resizing rule, `stretch` or `letterbox`.
        num_components: number k of components, less than the number of training images.
        robust: whether `reconstruct` ignores occluded or overpainted pixels (`LinearLoop.robust`).
        score: score of the detector form: `mean` or `peak` of the anomaly map, or `top`, the mean of its largest cells.
        smooth: side of the averaging window over the anomaly map in pixels, odd; 1 for no smoothing.
        standardise: scaling of each pixel of the anomaly map by its mean and deviation over the training images.
        batch_size: images per optimisation step.
        seed: seed of the randomised method.
    """

    density: ClassVar[Density] = "exact"
    loop: ClassVar[str] = "linear"

    mean: Tensor
    directions: Tensor
    scale_z: Tensor
    """(k,) sqrt(lambda_j - s2)"""
    noise_variance: Tensor

    def __init__(
        self,
        *,
        size: int = 64,
        resize: Resize = "stretch",
        num_components: int = 32,
        robust: bool = False,
        score: Score = "peak",
        smooth: int = 5,
        standardise: bool = True,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        if not 1 <= num_components < 3 * size * size:
            raise UsageError(f"num_components {num_components}: give 1 to {3 * size * size - 1}, e.g. 32")
        super().__init__(
            size=size,
            resize=resize,
            score=score,
            smooth=smooth,
            standardise=standardise,
            batch_size=batch_size,
        )
        self.save_hyperparameters()
        self.num_components, self.robust, self.seed = num_components, robust, seed
        self.register_buffer("mean", torch.full((3, size, size), 0.5))
        self.register_buffer("directions", torch.zeros(num_components, 3, size, size))
        self.register_buffer("scale_z", torch.ones(num_components))
        self.register_buffer("noise_variance", torch.ones(()))

    @torch.no_grad()
    def learn(self, x: Tensor) -> None:
        """Fit mean, directions and variances on images (N, 3, h, w) inside the region of interest.

        Raises:
            UsageError: images or values of the region not more than components, or equal images.
        """
        roi, k = self.preprocess.roi.cpu(), self.num_components
        seen = x.cpu()[:, :, roi].flatten(1).double().numpy()
        num, dimensions = seen.shape
        if min(num, dimensions) <= k:
            raise UsageError(
                f"{num} images of {dimensions} values cannot give {k} components:"
                f" set num_components to {min(num, dimensions) - 1} or less"
            )
        total = float(seen.var(axis=0).sum())
        if total == 0:
            raise UsageError(f"the {num} images are equal and have no direction of variation: give different images")
        solver = "full" if num <= MAX_EXACT else "randomized"
        model = PCA(k, svd_solver=solver, random_state=self.seed).fit(seen)
        variance = model.explained_variance_ * ((num - 1) / num)
        noise = max(ROUNDING, (total - float(variance.sum())) / (dimensions - k))
        # a small scale in place of 0, as divisor
        scale = np.sqrt(np.maximum(variance - noise, 1e-3 * noise))
        self.mean.zero_()[:, roi] = _as(self.mean, model.mean_.reshape(3, -1))
        self.directions.zero_()[:, :, roi] = _as(self.mean, model.components_.reshape(k, 3, -1))
        self.scale_z.copy_(_as(self.mean, scale))
        self.noise_variance.fill_(noise)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """One value per component."""
        return (self.num_components,)

    def decode(self, z: Tensor) -> Tensor:
        """Map latents (N, k) to images (N, 3, h, w) without noise, not clipped."""
        return self.mean + ((z * self.scale_z) @ self.directions.flatten(1)).view(-1, *self.mean.shape)

    def encode(self, x: Tensor) -> Tensor:
        """Project images (N, 3, h, w) on the directions, (N, k)."""
        return self._along(x - self.mean) / self.scale_z

    def _along(self, centred: Tensor) -> Tensor:
        return centred.flatten(1) @ self.directions.flatten(1).T

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Compute each pixel's share of -log p in nats, (N, h, w); 0 outside the region of interest."""
        centred = x - self.mean
        a = self._along(centred)
        r = centred - (a @ self.directions.flatten(1)).view(-1, *self.mean.shape)
        roi = self.preprocess.roi.to(x.dtype)
        num_pixels = roi.sum()
        variance = self.scale_z**2 + self.noise_variance
        left = 3 * num_pixels - self.num_components
        constant = variance.log().sum() + left * self.noise_variance.log() + 3 * num_pixels * math.log(2 * math.pi)
        spread = ((a * a / variance).sum(dim=1) + constant) / num_pixels
        share: Tensor = 0.5 * ((r * r).sum(dim=1) / self.noise_variance + spread[:, None, None]) * roi
        return share

    def log_prob(self, x: Tensor) -> Tensor:
        """Compute the log-density of images (N, 3, h, w) in [0, 1] inside the region of interest, in nats, (N,)."""
        return -self.anomaly_map(x).sum(dim=2).sum(dim=1)

    def loop_settings(self) -> dict[str, Any]:
        """Return the noise variance and the choice of the robust reconstruction."""
        return {"noise_variance": float(self.noise_variance), "robust": self.robust}


def _as(like: Tensor, values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=like.dtype, device=like.device)
