"""Distances between drawn and real images, computed on feature vectors of both.

Fréchet distance: M. Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017, arXiv 1706.08500 (eq. 6). Kernel
distance: M. Bińkowski et al., "Demystifying MMD GANs", 2018, arXiv 1801.01401 (§3, cubic kernel, unbiased estimate).
Precision and recall: T. Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", 2019,
arXiv 1904.06991 (eq. 1 and 2).

Notation: a -> features of real images (n, D); b -> features of drawn images (m, D). The values depend on the features:
report the network with them. With fewer images than features the Fréchet distance is biased upwards; the kernel distance
is not biased.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import UsageError

Features = NDArray[Any]


def frechet_distance(a: Features, b: Features) -> float:
    """Compute the squared Fréchet distance of Gaussians fitted to a and b: |m_a - m_b|² + tr(C_a + C_b - 2 (C_a C_b)^½).

    Raises:
        UsageError: the features have different lengths, or a set has fewer than two images.
    """
    a, b = _checked(a, b)
    covariance_a, covariance_b = (np.cov(side, rowvar=False).reshape(side.shape[1], -1) for side in (a, b))
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    # the eigenvalues of C_a C_b are those of the symmetric C_a^½ C_b C_a^½
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariance_b @ root).clip(min=0)).sum()
    shift = a.mean(axis=0) - b.mean(axis=0)
    return float(shift @ shift + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross)


def kernel_distance(a: Features, b: Features) -> float:
    """Estimate the squared maximum mean discrepancy for k(u, v) = (u·v / D + 1)³, without bias; it can be below 0.

    Raises:
        UsageError: see `frechet_distance`.
    """
    a, b = _checked(a, b)

    def kernel(u: Features, v: Features) -> Features:
        return np.asarray((u @ v.T / u.shape[1] + 1) ** 3)

    aa, bb = kernel(a, a), kernel(b, b)
    within_a = (aa.sum() - np.trace(aa)) / (len(a) * (len(a) - 1))
    within_b = (bb.sum() - np.trace(bb)) / (len(b) * (len(b) - 1))
    return float(within_a + within_b - 2 * kernel(a, b).mean())


def precision_recall(a: Features, b: Features, *, k: int = 3) -> tuple[float, float]:
    """Compute precision and recall: the share of drawn images in the manifold of real images, and the reverse.

    The manifold of a set is the union of balls around its members; each radius is the distance to the k-th nearest member.

    Args:
        a: (n, D) features of real images.
        b: (m, D) features of drawn images.
        k: number of the neighbour that sets the radius.

    Returns:
        Precision and recall, in [0, 1].

    Raises:
        UsageError: see `frechet_distance`; or a set has k or fewer images.
    """
    a, b = _checked(a, b)
    if min(len(a), len(b)) <= k:
        raise UsageError(f"{len(a)} real and {len(b)} drawn images: the {k}-th neighbour needs more than {k} of each")
    radius_a, radius_b = (np.sort(distances(side, side), axis=1)[:, k] for side in (a, b))
    between = distances(a, b)
    return float((between <= radius_a[:, None]).any(axis=0).mean()), float((between <= radius_b).any(axis=1).mean())


def distances(a: Features, b: Features) -> NDArray[np.float64]:
    """Compute the Euclidean distances (n, m) from every row of a (n, D) to every row of b (m, D)."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * a @ b.T
    return np.asarray(np.sqrt(squares.clip(min=0)))


def _checked(a: Features, b: Features) -> tuple[Features, Features]:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise UsageError(
            f"the features have the shapes {a.shape} and {b.shape}: give two tables (images, D) with the same D"
        )
    if min(len(a), len(b)) < 2:
        raise UsageError(f"{len(a)} real and {len(b)} drawn images: give at least 2 of each")
    return np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
