"""Duplicate images: equal pixels, and copies that were recompressed, rescaled, brightened or shifted by a pixel.

Aligned images of one product look similar, and a hash of the whole image would report every pair. The
residual from the mean image of the set distinguishes two parts. Two images are near-duplicates if their residuals
correlate:

    R_i  = H_σ(I_i − mean)           H_σ x = x − G_σ ∗ x, the fine structure: brightness and shading drop out
    c_ij = ⟨R_i, R_j⟩ / |R_i| |R_j|

1. Coarse: c at 64 × 64 for all pairs, as matrix products. The 3 nearest above 0.6 of each image are candidates.
2. Fine: c at 192 × 192 of the candidates, aligned by phase correlation to a fraction of a pixel.
3. A pair is a near-duplicate if the fine c is at least min(0.88, 0.72 + 0.35 q). q is the median coarse correlation
   with the fifth nearest image. It measures the similarity of different parts: 0 for textures, 0.5 for aligned objects.

Measured on different parts: a fine c up to 0.86 (MVTec AD bottle, screw, capsule); a coarse c up to 0.24 (textures of
KolektorSDD and PIPED, cookies). Measured on copies: a fine c above 0.91 after JPEG of quality 70, reduction by 2 %, 10
grey levels of brightness, or a shift by one pixel. JPEG copies of textures of 128 pixels stayed above 0.78.
Phase correlation: Kuglin & Hines, "The phase correlation image alignment method", 1975.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.imaging.image_file import decode_stored, read_file
from anomaly.system.files import as_path

SIDE = 192
COARSE_SIDE = 64
SIGMA = 2.0
NUM_NEAREST = 3
COARSE_THRESHOLD = 0.6
MAX_SHIFT = 0.015
"""Largest alignment shift, as a share of a side"""
_EDGE = SIDE // 40
"""Width in pixels of the border that an alignment may have filled"""


@dataclass(frozen=True)
class Fingerprint:
    """Fingerprint of an image: the SHA-256 of its pixels and a grey thumbnail (192, 192) uint16."""

    sha256: str
    thumbnail: NDArray[np.uint16]


@dataclass(frozen=True)
class Duplicate:
    """A pair of images by their indices in the list; `similarity` in [−1, 1] is 1 for equal pixels."""

    first: int
    second: int
    similarity: float
    exact: bool


def fingerprint(stored: NDArray[Any]) -> Fingerprint:
    """Compute the fingerprint of a stored image (H, W, 3), uint8 or uint16."""
    digest = hashlib.sha256(f"{stored.shape} {stored.dtype}".encode() + np.ascontiguousarray(stored).tobytes())
    grey = cv2.cvtColor(stored, cv2.COLOR_RGB2GRAY)
    if grey.dtype == np.uint8:
        grey = grey.astype(np.uint16) * 257
    method = cv2.INTER_AREA if min(grey.shape) >= SIDE else cv2.INTER_LINEAR
    thumbnail = cv2.resize(grey, (SIDE, SIDE), interpolation=method).astype(np.uint16, copy=False)
    return Fingerprint(digest.hexdigest(), thumbnail)


def find_duplicates(fingerprints: Sequence[Fingerprint]) -> list[Duplicate]:
    """Find the pairs of equal and of nearly equal images of one product, ordered by index.

    Each copy with equal pixels is paired with the first such image only, and the copies are not compared further.
    The pairs therefore connect all copies, but do not list every pair. Near-duplicates need at least 3 different
    images, because the mean of fewer does not distinguish parts.
    """
    indices: dict[str, list[int]] = defaultdict(list)
    for index, image in enumerate(fingerprints):
        indices[image.sha256].append(index)
    found = [Duplicate(first, copy, 1.0, True) for first, *copies in indices.values() for copy in copies]
    firsts = [first for first, *_ in indices.values()]
    if len(firsts) >= 3:
        pairs = _near_duplicates([fingerprints[first].thumbnail for first in firsts])
        found += [Duplicate(firsts[i], firsts[j], similarity, False) for i, j, similarity in pairs]
    return sorted(found, key=lambda pair: (pair.first, pair.second))


def duplicate_files(
    paths: Sequence[str | Path], *, max_pixels: int, progress: Callable[[int, int], None] | None = None
) -> list[tuple[Path, Path]]:
    """Find duplicates among image files; a split keeps each pair on one side.

    Args:
        paths: image files of one product.
        max_pixels: largest width × height that is decoded.
        progress: function called after each file with the number of files read and their total.

    Returns:
        The pairs of `find_duplicates`, as paths.

    Raises:
        ImageError: an invalid file, as in `anomaly.imaging.image_file.decode_stored`.
        UsageError: a path of another type.
    """
    files = [as_path(path, name="path") for path in paths]
    fingerprints = []
    for file in files:
        data = read_file(file, max_pixels=max_pixels)
        fingerprints.append(fingerprint(decode_stored(data, name=str(file), max_pixels=max_pixels)))
        if progress is not None:
            progress(len(fingerprints), len(files))
    return [(files[pair.first], files[pair.second]) for pair in find_duplicates(fingerprints)]


def _near_duplicates(thumbnails: Sequence[NDArray[np.uint16]]) -> list[tuple[int, int, float]]:
    """Find the near-duplicates among different thumbnails, as (lower index, higher index, similarity)."""
    candidates, typical = _candidates(thumbnails)
    threshold = min(0.88, 0.72 + 0.35 * max(typical, 0.0))
    mean = np.zeros((SIDE, SIDE), dtype=np.float32)
    for thumbnail in thumbnails:
        mean += thumbnail / np.float32(len(thumbnails))
    window: NDArray[Any] = cv2.createHanningWindow((SIDE, SIDE), cv2.CV_32F)
    common = _fine_structure(mean)
    near = []
    for i, j in candidates:
        similarity = _aligned_similarity(thumbnails[i], thumbnails[j], common=common, window=window)
        if similarity >= threshold:
            near.append((i, j, similarity))
    return near


def _candidates(thumbnails: Sequence[NDArray[np.uint16]]) -> tuple[list[tuple[int, int]], float]:
    """Find the pairs for the fine comparison, and the median correlation with the fifth nearest thumbnail."""
    size = (COARSE_SIDE, COARSE_SIDE)
    coarse = np.stack([cv2.resize(p.astype(np.float32), size, interpolation=cv2.INTER_AREA) for p in thumbnails])
    coarse -= coarse.mean(axis=0)
    x = np.stack([_unit(_fine_structure(residual)).ravel() for residual in coarse])
    num_others = len(x) - 1
    pairs: set[tuple[int, int]] = set()
    fifth: list[float] = []
    for start in range(0, len(x), 512):
        correlation = x[start : start + 512] @ x.T
        rows = np.arange(len(correlation))
        correlation[rows, start + rows] = -2  # a thumbnail is not its own neighbour
        order = np.argsort(-correlation, axis=1)[:, : min(5, num_others)]
        fifth += correlation[rows, order[:, -1]].tolist()
        for row, nearest in zip(rows, order[:, :NUM_NEAREST], strict=True):
            alike = nearest[correlation[row, nearest] > COARSE_THRESHOLD]
            pairs.update((min(int(start + row), int(other)), max(int(start + row), int(other))) for other in alike)
    return sorted(pairs), float(np.median(fifth))


def _aligned_similarity(
    one: NDArray[np.uint16], other: NDArray[np.uint16], *, common: NDArray[np.float32], window: NDArray[Any]
) -> float:
    """Correlate the residuals of two thumbnails, the second shifted onto the first by up to 1.5 % of a side."""
    structure = _fine_structure(one.astype(np.float32))
    moving: NDArray[Any] = other.astype(np.float32)
    (dx, dy), _ = cv2.phaseCorrelate(structure * window, _fine_structure(moving) * window)
    if max(abs(dx), abs(dy)) <= MAX_SHIFT * SIDE:
        shift = np.array([[1, 0, dx], [0, 1, dy]], dtype=np.float32)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        moving = cv2.warpAffine(moving, shift, (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    inner = slice(_EDGE, -_EDGE)
    return float(
        np.vdot(_unit((structure - common)[inner, inner]), _unit((_fine_structure(moving) - common)[inner, inner]))
    )


def _fine_structure(image: Any) -> NDArray[np.float32]:
    structure: NDArray[np.float32] = image - cv2.GaussianBlur(image, (0, 0), SIGMA)
    return structure


def _unit(residual: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale a residual to mean 0 and length 1; a constant residual becomes 0."""
    centred: NDArray[np.float32] = residual - residual.mean()
    length = float(np.linalg.norm(centred))
    return centred * np.float32(1 / max(length, 1e-6))
