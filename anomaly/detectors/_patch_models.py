"""Classical models of patch features, fitted by scikit-learn and scored by torch (sources: `frozen_features`).

Notation: y -> standardised and projected feature of a patch, (d,); s -> its score, higher is more anomalous.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.svm import OneClassSVM
from torch import Tensor, nn

from anomaly.inference.core_set import core_set

Method = Literal["one_class_svm", "nearest_neighbour", "gmm", "pca"]
Matrix = NDArray[np.float64]
MAX_ROWS = 2048
"""Stored rows per comparison: 128 MiB for 16 images of 1024 patches"""


class PatchModel(nn.Module, ABC):
    """Model of patches. Its buffers have data-dependent sizes and are empty before `fit`."""

    def __init__(self, *names: str, min_patches: int) -> None:
        super().__init__()
        self.min_patches = min_patches
        """Smallest number of patches for a fit"""
        for name in names:
            self.register_buffer(name, torch.zeros(0))

    @abstractmethod
    def fit(self, y: Matrix, *, seed: int) -> None:
        """Fit the model to patches (P, d)."""

    @abstractmethod
    def forward(self, y: Tensor) -> Tensor:
        """Score patches (P, d), (P,)."""

    @property
    def is_fitted(self) -> bool:
        """Whether the model is fitted."""
        return all(buffer.numel() for buffer in self.buffers())

    def _store(self, **values: Matrix) -> None:
        for name, value in values.items():
            setattr(self, name, torch.as_tensor(value, dtype=torch.float32).contiguous())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, buffer in list(self.named_buffers(recurse=False)):
            if prefix + name in state_dict:
                setattr(self, name, buffer.new_zeros(state_dict[prefix + name].shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class SupportVectors(PatchModel):
    """One-class SVM with k(y, y_i) = exp(-gamma |y - y_i|²): s = -log(sum_i a_i k(y, y_i) / rho)."""

    vectors: Tensor
    log_weight: Tensor
    gamma: Tensor

    def __init__(self, *, nu: float) -> None:
        super().__init__("vectors", "log_weight", "gamma", min_patches=2)
        self._nu = nu

    def fit(self, y: Matrix, *, seed: int) -> None:
        """Store the support vectors y_i, log(a_i / rho) and gamma = 1 / (d · variance)."""
        gamma = 1 / (y.shape[1] * y.var())  # scikit-learn's "scale"
        model = OneClassSVM(kernel="rbf", gamma=gamma, nu=self._nu, cache_size=500).fit(y)
        weight = model.dual_coef_[0] / model.offset_[0]  # a_i / rho
        self._store(vectors=model.support_vectors_, log_weight=np.log(weight), gamma=np.array([gamma]))

    def forward(self, y: Tensor) -> Tensor:
        """Score patches; 0 is the SVM's boundary."""
        logs = []
        for vectors, log_weight in zip(
            torch.split(self.vectors, MAX_ROWS), torch.split(self.log_weight, MAX_ROWS), strict=True
        ):
            squares = (y * y).sum(dim=1, keepdim=True) + (vectors * vectors).sum(dim=1) - 2 * y @ vectors.T
            logs.append(torch.logsumexp(log_weight - self.gamma * squares, dim=1))
        return -torch.logsumexp(torch.stack(logs, dim=1), dim=1)


class Bank(PatchModel):
    """Nearest neighbour: s = min_i |y - y_i|.

    Args:
        size: number of rows, a greedy core set of the patches; all patches if there are no more.
    """

    rows: Tensor
    patch: Tensor
    """(M,) int64, number of each row among the patches of the fit"""

    def __init__(self, *, size: int) -> None:
        super().__init__("rows", min_patches=1)
        self._size = size
        self.patch = torch.zeros(0, dtype=torch.int64)

    def fit(self, y: Matrix, *, seed: int) -> None:
        """Store the core set."""
        chosen = core_set(y.astype(np.float32), self._size, seed=seed)
        self.patch = torch.from_numpy(chosen)
        self._store(rows=y[chosen])

    def forward(self, y: Tensor) -> Tensor:
        """Find the nearest row by |y_i|² - 2 y·y_i, then compute its distance from differences, which keeps all digits."""
        return self.nearest(y, self.rows)

    @staticmethod
    def nearest(y: Tensor, stored: Tensor) -> Tensor:
        """Distance of patches (P, d) to the nearest of the stored rows (M, d), (P,)."""
        distances = []
        for rows in torch.split(stored, MAX_ROWS):
            nearest = ((rows * rows).sum(dim=1) - 2 * y @ rows.T).argmin(dim=1)
            distances.append((y - rows.index_select(0, nearest)).square().sum(dim=1))
        return torch.stack(distances, dim=1).amin(dim=1).sqrt()


class Mixture(PatchModel):
    """Gaussian mixture: s = -log sum_k w_k N(y; m_k, S_k) in nats, by Cholesky factors of the precisions."""

    log_weight: Tensor
    means: Tensor
    roots: Tensor

    def __init__(self, *, num_gaussians: int) -> None:
        super().__init__("log_weight", "means", "roots", min_patches=max(2, num_gaussians))
        self._num_gaussians = num_gaussians

    def fit(self, y: Matrix, *, seed: int) -> None:
        """Store m_k, L_k with S_k⁻¹ = L_k L_kᵀ, and log w_k + log det L_k - d/2 log 2π."""
        model = GaussianMixture(self._num_gaussians, reg_covar=1e-3, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # an unconverged likelihood is usable
            model.fit(y)
        roots = model.precisions_cholesky_  # (K, d, d)
        log_det = np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(axis=1)
        log_weight = np.log(model.weights_) + log_det - y.shape[1] / 2 * math.log(2 * math.pi)
        self._store(log_weight=log_weight, means=model.means_, roots=roots)

    def forward(self, y: Tensor) -> Tensor:
        """Compute the negative log-likelihood of patches."""
        logs = []
        for log_weight, mean, root in zip(self.log_weight, self.means, self.roots, strict=True):
            logs.append(log_weight - 0.5 * ((y - mean) @ root).square().sum(dim=1))
        return -torch.logsumexp(torch.stack(logs, dim=1), dim=1)


class Subspace(PatchModel):
    """Principal components v_j: s = |r|² with r = (y - m) - sum_j v_j v_jᵀ (y - m)."""

    mean: Tensor
    components: Tensor

    def __init__(self, *, num_components: int) -> None:
        super().__init__("mean", "components", min_patches=num_components + 1)
        self._num_components = num_components

    def fit(self, y: Matrix, *, seed: int) -> None:
        """Store m and v_j."""
        model = PCA(self._num_components, svd_solver="covariance_eigh").fit(y)
        self._store(mean=model.mean_, components=model.components_)

    def forward(self, y: Tensor) -> Tensor:
        """Compute the squared reconstruction error of patches."""
        centred = y - self.mean
        return (centred - centred @ self.components.T @ self.components).square().sum(dim=1)


def patch_model(method: Method, *, nu: float, num_gaussians: int, num_components: int, bank_size: int) -> PatchModel:
    """Build the model of a method; the options are those of `FrozenFeatures`."""
    if method == "one_class_svm":
        return SupportVectors(nu=nu)
    if method == "nearest_neighbour":
        return Bank(size=bank_size)
    if method == "gmm":
        return Mixture(num_gaussians=num_gaussians)
    return Subspace(num_components=num_components)
