"""Mixture of Gaussians over the patches of an image, with weights per position.

C. Bishop, "Pattern Recognition and Machine Learning", 2006, chapter 9.2. Patches: D. Zoran and Y. Weiss, "From Learning
Models of Natural Image Patches to Whole Image Restoration", 2011. `anomaly.generation.mixture.MixtureLoop` samples and
inpaints.

Notation: x -> image; c -> cell of a grid without overlap; y -> the cell's patch as a vector of D values; U -> d orthonormal
directions (d, D); a = U (y - mu); r -> residual of y - mu; s2 -> variance of each value of r; k -> Gaussian.
p(x) = prod_c p(y_c), p(y_c) = N(r; 0, s2 I) sum_k pi_ck N(a; m_k, S_k): an exact density of x.

What differs, and why: D is several hundred. The Gaussians are full in d dimensions and spherical in the other D - d, of least
variance (M. Tipping and C. Bishop, "Mixtures of Probabilistic Principal Component Analysers", 1999, here with one subspace).
All cells share the Gaussians. The weights pi_ck are specific to a cell, so that sampled features lie at their
position on the part; one step of expectation maximisation computes them.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from anomaly.errors import UsageError
from anomaly.nn.preprocess import Resize
from anomaly.samplers._one_pass import OnePassSampler
from anomaly.samplers.base import Density, Score

ROUNDING = (1 / 255) ** 2 / 12
"""Variance of rounding to 8 bits, for images in [0, 1]"""
LOG_2_PI = math.log(2 * math.pi)
FLOOR = 0.001
"""Share of the common weights in each cell's weights"""
NO_LATENT = "the choice of a Gaussian per patch is discrete, not a continuous latent; take pca or vae"


class Gmm(OnePassSampler):
    """Mixture of Gaussians over patches, fitted in one pass by scikit-learn.

    `anomaly_map` keeps r at its pixels and spreads the rest of -log p over the patch; the map sums to -log p. The default
    score is the peak of the standardised map, for small defects. `mean` without `standardise` is the likelihood itself.

    Args:
        size: side of the network's square input in pixels.
        resize: resizing rule, `stretch` or `letterbox`.
        patch: side of a patch in pixels, a proper divisor of `size`.
        num_gaussians: number K of Gaussians.
        dimensions: number d of directions, up to 3 · patch².
        num_patches: number of random patches from all training images in the fit.
        score: score of the detector form: `mean` or `peak` of the anomaly map, or `top`, the mean of its largest cells.
        smooth: side of the averaging window over the anomaly map in pixels, odd; 1 for no smoothing.
        standardise: scaling of each pixel of the anomaly map by its mean and deviation over the training images.
        batch_size: images per optimisation step.
        seed: seed of the choice of patches and of the mixture's start.
    """

    density: ClassVar[Density] = "exact"
    loop: ClassVar[str] = "mixture"
    unsupported: ClassVar[dict[str, str]] = {
        "encode": NO_LATENT,
        "decode": NO_LATENT,
        "interpolate": NO_LATENT,
        "attribute": NO_LATENT,
        "reconstruct": "patches are independent, and the image has no code; take pca or vae",
    }

    mean: Tensor
    directions: Tensor
    noise_variance: Tensor
    centres: Tensor
    """(K, d), m_k"""
    factors: Tensor
    """(K, d, d), F_k with S_k = F_k F_kᵀ, lower triangular"""
    roots: Tensor
    """(K, d, d), F_k⁻¹"""
    log_weight: Tensor
    """(cells, K), log pi_ck"""

    def __init__(
        self,
        *,
        size: int = 64,
        resize: Resize = "stretch",
        patch: int = 8,
        num_gaussians: int = 64,
        dimensions: int = 64,
        num_patches: int = 20000,
        score: Score = "peak",
        smooth: int = 5,
        standardise: bool = True,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        D = 3 * patch * patch
        if patch >= size:
            raise UsageError(
                f"patch {patch}: a whole image of size {size} has {3 * size * size} dimensions, and its Gaussian"
                f" {3 * size * size * (3 * size * size + 3) // 2} parameters; give smaller patches, e.g. patch 8"
            )
        if patch < 1 or size % patch:
            raise UsageError(f"patch {patch}: it must divide the size {size}; give e.g. 8")
        if not 1 <= dimensions <= D:
            raise UsageError(f"dimensions {dimensions}: a patch has {D}; give 1 to {D}, e.g. {min(D, 64)}")
        if num_gaussians < 1:
            raise UsageError(f"num_gaussians {num_gaussians}: give 1 or more, e.g. 64")
        super().__init__(
            size=size,
            resize=resize,
            score=score,
            smooth=smooth,
            standardise=standardise,
            batch_size=batch_size,
        )
        self.save_hyperparameters()
        self.patch, self.num_gaussians, self.num_patches, self.seed = patch, num_gaussians, num_patches, seed
        self.cells = (size // patch) ** 2
        self.register_buffer("mean", torch.full((D,), 0.5))
        self.register_buffer("directions", torch.eye(dimensions, D))
        self.register_buffer("noise_variance", torch.ones(()))
        self.register_buffer("centres", torch.zeros(num_gaussians, dimensions))
        self.register_buffer("factors", torch.eye(dimensions).repeat(num_gaussians, 1, 1))
        self.register_buffer("roots", torch.eye(dimensions).repeat(num_gaussians, 1, 1))
        self.register_buffer("log_weight", torch.full((self.cells, num_gaussians), -math.log(num_gaussians)))

    @torch.no_grad()
    def learn(self, x: Tensor) -> None:
        """Fit the Gaussians and each cell's weights on images (N, 3, h, w), in cells inside the region of interest.

        Raises:
            UsageError: too few patches for the number of Gaussians.
        """
        device, (K, d) = self.mean.device, self.centres.shape
        inside = self._inside().cpu()
        y = self._patches(x.cpu()).double()[:, inside]  # (N, cells inside, D)
        drawn = torch.randperm(y[..., 0].numel(), generator=torch.Generator().manual_seed(self.seed))
        sample = y.flatten(0, 1)[drawn[: self.num_patches]]
        if len(sample) < 2 * K:
            raise UsageError(
                f"{len(sample)} patches cannot fit {K} Gaussians: set num_gaussians to {len(sample) // 2} or less,"
                " or raise num_patches"
            )
        mean = sample.mean(dim=0)
        variance, directions = torch.linalg.eigh((sample - mean).T @ (sample - mean) / len(sample))
        directions = directions.flip(1)[:, :d].T.contiguous()
        left = variance[: len(variance) - d]
        noise = max(ROUNDING, float(left.mean())) if len(left) else ROUNDING
        # the noise around the subspace is the least variance
        model = GaussianMixture(K, reg_covar=noise, random_state=self.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # more steps would change the likelihood little
            model.fit(((sample - mean) @ directions.T).numpy())
        shared = torch.as_tensor(model.weights_)
        self.mean.copy_(mean)
        self.directions.copy_(directions)
        self.noise_variance.fill_(noise)
        self.centres.copy_(torch.as_tensor(model.means_))
        factors = torch.linalg.cholesky(torch.as_tensor(model.covariances_))
        self.factors.copy_(factors)
        self.roots.copy_(torch.linalg.solve_triangular(factors, torch.eye(d).double().expand(K, d, d), upper=False))
        self.log_weight.copy_(shared.log().expand(self.cells, K))
        responsibility = torch.zeros(len(inside), K, dtype=torch.float64)
        for start in range(0, len(x), self.batch_size):
            joint = self._joint(self._patches(x[start : start + self.batch_size].to(device)))[0]
            responsibility += torch.softmax(joint, dim=2).sum(dim=0).double().cpu()
        self.log_weight.copy_(((1 - FLOOR) * responsibility / len(x) + FLOOR * shared).log())

    def _inside(self) -> Tensor:
        """Cells (cells,) bool with a pixel inside the region of interest; the density covers these cells."""
        roi = self.preprocess.roi.expand(1, 3, -1, -1)
        return self._patches(roi)[0].any(dim=1)

    def _patches(self, x: Tensor) -> Tensor:
        """Convert images (N, 3, h, w) to patches (N, cells, D)."""
        grid = self.preprocess.size[0] // self.patch
        parts = x.reshape(-1, 3, grid, self.patch, grid, self.patch).permute(0, 2, 4, 1, 3, 5)
        return parts.reshape(-1, self.cells, 3 * self.patch**2)

    def _images(self, y: Tensor) -> Tensor:
        """Convert patches (N, cells, D) to images (N, 3, h, w)."""
        grid = self.preprocess.size[0] // self.patch
        parts = y.reshape(-1, grid, grid, 3, self.patch, self.patch).permute(0, 3, 1, 4, 2, 5)
        return parts.reshape(-1, 3, *self.preprocess.size)

    def _joint(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Compute log(pi_ck N(a; m_k, S_k)), (N, cells, K), and r, (N, cells, D), of patches (N, cells, D)."""
        centred = y - self.mean
        a = centred @ self.directions.T
        r = centred - a @ self.directions
        constant = torch.diagonal(self.roots, dim1=1, dim2=2).log().sum(dim=1) - 0.5 * a.shape[2] * LOG_2_PI
        logs = []
        for m, root in zip(self.centres, self.roots, strict=True):
            logs.append(-0.5 * ((a - m) @ root.T).square().sum(dim=2))
        return torch.stack(logs, dim=2) + self.log_weight + constant, r

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Compute each pixel's share of -log p in nats, (N, h, w); 0 outside the region of interest."""
        joint, r = self._joint(self._patches(x))
        D, d = self.directions.shape[1], self.directions.shape[0]
        constant = 0.5 * (D - d) * (torch.log(self.noise_variance) + LOG_2_PI)
        squares = 0.5 / self.noise_variance * (r * r).view(-1, self.cells, 3, self.patch**2).sum(dim=2)
        roi = self._patches(self.preprocess.roi.expand(1, 3, -1, -1))[:, :, : self.patch**2].to(x.dtype)
        outside = (squares * (1 - roi)).sum(dim=2)
        spread = (constant - torch.logsumexp(joint, dim=2) + outside) / roi.sum(dim=2).clamp(min=1.0)
        share = (squares + spread[:, :, None]) * roi
        return self._images(share.repeat(1, 1, 3))[:, 0]

    def log_prob(self, x: Tensor) -> Tensor:
        """Compute the log-density of images (N, 3, h, w) in [0, 1] over the cells of the region of interest, in nats, (N,)."""
        return -self.anomaly_map(x).sum(dim=2).sum(dim=1)

    def draw(self, indicator: Tensor, noise: Tensor) -> Tensor:
        """Draw images (N, 3, h, w): y = mu + Uᵀ(m_k + F_k U e) + sqrt(s2) (e - Uᵀ U e); not clipped.

        Args:
            indicator: (N, cells, K), 1 at each cell's Gaussian, 0 elsewhere.
            noise: e (N, cells, D) from N(0, I).
        """
        inner = noise @ self.directions.T
        a = indicator @ self.centres
        for k, factor in enumerate(self.factors):
            a = a + indicator[:, :, k : k + 1] * (inner @ factor.T)
        outer = noise - inner @ self.directions
        return self._images(self.mean + a @ self.directions + torch.sqrt(self.noise_variance) * outer)

    def loop_settings(self) -> dict[str, Any]:
        """Return the side of a patch and the weights (cells, K), 0 in cells outside the region of interest."""
        weights = (self.log_weight.double().exp() * self._inside()[:, None]).tolist()
        return {"patch": self.patch, "weights": [[float(f"{value:.6g}") for value in row] for row in weights]}

    def functions(self) -> dict[str, tuple[Tensor, ...]]:
        """Name `draw` only."""
        K, D = self.num_gaussians, len(self.mean)
        return {"draw": (torch.zeros(2, self.cells, K), torch.zeros(2, self.cells, D))}
