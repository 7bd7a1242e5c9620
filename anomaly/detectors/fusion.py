"""Fusion: the sum of the maps of several detectors, each in the unit of its good images.

J. Kittler et al., "On Combining Classifiers", IEEE Transactions on Pattern Analysis and Machine Intelligence 20, 1998,
section 4.2: the sum rule is the least sensitive to errors of the members.

Notation: s_k, a_k -> raw score (N,) and map (N, h_k, w_k) of member k, the map enlarged to the grid of the largest member;
m_k, d_k -> median and spread of its scores over good images outside its training set; m'_k, d'_k -> likewise of the maxima
of its maps; t_k, e_k -> mean and deviation of its maps over good images at each place.

    map    sum over k of (a_k - m'_k) / d'_k; with a position scale sum over k of (a_k - t_k) / e_k
    score  sum over k of (s_k - m_k) / d_k; with pooling `maximum` or `top` a pooled value of the map

A defect that two members find at one place adds up in the map, and their false peaks at different places do not. Each member
is trained by its own training. The fusion is calibrated like every detector.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from anomaly.detectors import DETECTORS
from anomaly.detectors.base import Anomaly, Detector, RawScores
from anomaly.detectors.tiling_support import WholeImages
from anomaly.errors import UsageError
from anomaly.nn.batch import Batch
from anomaly.nn.preprocess import Preprocess, Resize
from anomaly.nn.score_pooling import ScorePooling

CELLS = 64
"""Cells along the shorter side of the map for pooling `top`"""
PRIOR_IMAGES = 10.0
"""Weight, in images, of the deviation's mean over all places against the deviation at one place"""
SPREAD_QUANTILE = 0.95
"""Quantile of the good images' scores whose distance from the median is the spread"""


class RawImages(Preprocess):
    """Conversion of uint8 images into float32 grey levels at their own size; each member preprocesses them.

    Args:
        size: height and width of the fusion's map in pixels.
        resize: resizing rule of the members.
    """

    def __init__(self, *, size: tuple[int, int], resize: Resize) -> None:
        super().__init__(size=size, resize=resize, mean=(0.0,) * 3, std=(1.0,) * 3)

    def forward(self, image: Tensor | list[Tensor]) -> Tensor:
        """Compute (N, 3, H, W) float32 grey levels of images (N, H, W, 3) uint8."""
        if isinstance(image, list):
            image = torch.stack(image)
        return image.permute(0, 3, 1, 2).to(torch.float32)


class Fusion(Detector):
    """Sum of the standardised maps and scores of several detectors.

    Args:
        members: detectors, each as `{"detector": NAME, "options": {...}, "brightness": "kept"}`; the last two are optional.
        scales: median and spread of the scores, then of the maps' maxima, four numbers for each member. None measures them
            in the training: on each image without it where the member supports this, else on a fifth of the images.
        pooling: `sum` adds the members' scores; `maximum` and `top` pool the map, `top` by the mean of its largest cells.
        top: share of the cells that `top` averages, in (0, 1].
        position_scale: whether the members' maps are standardised at each place. A member that can leave images out is
            measured on each training image without it, other members on the training images as they are.
        batch_size: images per step.
        weights: source of the backbones' weights: None leaves it to the members' options, `none` takes random ones.
    """

    tiling = WholeImages("its members resize the image each in their own way")
    scale: Tensor
    typical: Tensor
    deviation: Tensor
    variance: Tensor
    num_measured: Tensor

    def __init__(
        self,
        *,
        members: Sequence[Mapping[str, Any]],
        scales: Sequence[Sequence[float]] | None = None,
        pooling: Literal["sum", "maximum", "top"] = "sum",
        top: float = 0.01,
        position_scale: bool = False,
        batch_size: int = 8,
        weights: str | None = None,
    ) -> None:
        if len(members) < 2:
            raise UsageError(f"a fusion of {len(members)} detectors: give two or more members")
        if scales is not None and (len(scales) != len(members) or any(len(row) != 4 for row in scales)):
            raise UsageError(f"scales {scales}: give four numbers for each of the {len(members)} members")
        built = [build_member(member, weights=weights) for member in members]
        if len({member.preprocess.resize for member in built}) > 1:
            raise UsageError("the members of a fusion resize differently: give all of them one value of resize")
        height, width = max((member.preprocess.size for member in built), key=lambda size: size[0] * size[1])
        super().__init__(
            preprocess=RawImages(size=(height, width), resize=cast("Resize", built[0].preprocess.resize)),
            epochs=1,
            batch_size=batch_size,
        )
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.members = nn.ModuleList(built)
        self.register_buffer(
            "scale", torch.tensor(scales if scales is not None else [[0.0, 1.0, 0.0, 1.0]] * len(built))
        )
        self.register_buffer("typical", torch.zeros(len(built), height, width))
        self.register_buffer("deviation", torch.ones(len(built), height, width))
        self.register_buffer("variance", torch.ones(len(built), height, width))
        self.register_buffer("num_measured", torch.zeros(len(built), dtype=torch.int64))
        self.has_scales, self.position_scale = scales is not None, position_scale
        self.map_pooling = None
        if pooling != "sum":
            self.map_pooling = ScorePooling(pooling, top=top, cell=max(1, min(height, width) // CELLS))
        self.supports_leave_one_out = all(member.supports_leave_one_out for member in built)
        self.provenance = {
            key: "; ".join(member.provenance.get(key, "-") for member in built)
            for key in {key: None for member in built for key in member.provenance}
        }

    @property
    def leave_one_out_is_exact(self) -> bool:
        """Whether leave-one-out is exact for every member."""
        return all(member.leave_one_out_is_exact for member in self._members())

    def training_step(self, batch: Batch, index: int) -> None:
        """Refuse: the members are trained one by one.

        Raises:
            UsageError: always.
        """
        raise UsageError("a fusion has no training of its own: train its members, as `anomaly fit` does")

    def configure_optimizers(self) -> None:
        """No optimiser: the members are trained one by one."""

    def set_scale(self, number: int, raw: RawScores) -> None:
        """Set median and spread of a member.

        Args:
            number: number of the member.
            raw: its raw scores of good images outside its training set.
        """
        self.scale[number] = torch.tensor([*spread_of(raw.score), *spread_of(raw.peak)])

    @torch.no_grad()
    def set_position_scale(self, number: int, maps: Iterable[Tensor]) -> None:
        """Set mean and deviation of a member's map at each place.

        Args:
            number: number of the member.
            maps: its raw maps (h, w) of good images.
        """
        num = 0
        mean, squares = (torch.zeros(self.preprocess.size, dtype=torch.float64) for _ in range(2))
        for anomaly_map in maps:
            enlarged = self._enlarged(anomaly_map[None])[0].double().cpu()
            num += 1
            change = enlarged - mean
            mean = mean + change / num
            squares = squares + change * (enlarged - mean)
        self.typical[number] = mean.float()
        self.variance[number] = (squares / num).float()
        self.deviation[number] = self._shrunk(squares / num, num).float()
        self.num_measured[number] = num

    def _shrunk(self, variance: Tensor, num: int) -> Tensor:
        """Deviation (h, w) from a variance over images, drawn towards its mean: few images estimate it badly."""
        deviation = variance.clamp(min=0.0).sqrt()
        usual = deviation[self.preprocess.roi].mean().clamp(min=1e-12)
        return (num * deviation + PRIOR_IMAGES * usual) / (num + PRIOR_IMAGES)

    def _position_scale(self, number: int, own: Tensor, without: Collection[int]) -> tuple[Tensor, Tensor]:
        """Mean and deviation of a member's map at each place, as if left-out images had not been measured.

        Args:
            number: number of the member.
            own: the member's map (1, h, w) of a left-out image. The others belong to the same part and count as alike.
            without: numbers of the left-out images.

        Raises:
            UsageError: fewer than two images remain.
        """
        if not without:
            return self.typical[number], self.deviation[number]
        num = int(self.num_measured[number])
        kept = num - len(without)
        if kept < 2:
            raise UsageError(f"{len(without)} of {num} images are left out: give images of more parts")
        mean, a = self.typical[number].double(), own[0].double()
        rest = (num * mean - len(without) * a) / kept
        squares = num * (self.variance[number].double() + mean.square()) - len(without) * a.square()
        return rest.float(), self._shrunk(squares / kept - rest.square(), kept).float()

    def anomaly(self, x: Tensor) -> Anomaly:
        """Add the standardised scores and maps of the members.

        Args:
            x: images (N, 3, H, W) float32 in grey levels, from `preprocess`.
        """
        return self._sum(x, lambda member, inner: member.anomaly(inner))

    def anomaly_without(self, x: Tensor, images: Collection[int]) -> Anomaly:
        """Compute the sum as if some training images, of one part, were missing in the training of every member.

        Raises:
            UsageError: a member that cannot leave images out.
        """
        return self._sum(x, lambda member, inner: member.anomaly_without(inner, images), without=images)

    def dependence(self, x: Tensor) -> Tensor:
        """Compute the sum of the members' maps."""
        return self._sum(
            x, lambda member, inner: Anomaly(inner.mean(dim=(1, 2, 3)), member.dependence(inner))
        ).anomaly_map

    def forward(self, image: Tensor | list[Tensor]) -> Anomaly:
        """Score images; a list may hold different sizes."""
        if isinstance(image, list):
            each = [self(single[None]) for single in image]
            return Anomaly(torch.cat([raw.score for raw in each]), torch.cat([raw.anomaly_map for raw in each]))
        return super().forward(image)

    @torch.no_grad()
    def raw_scores(self, batches: Iterable[Batch]) -> RawScores:
        """Score batches of images without the calibration, in eval mode; images of a list are scored one by one."""
        return super().raw_scores(one for batch in batches for one in _equal_sizes(batch))

    def _members(self) -> list[Detector]:
        return cast("list[Detector]", list(self.members))

    def _enlarged(self, anomaly_map: Tensor) -> Tensor:
        """Enlarge maps (N, h, w) to the size of the fusion's map."""
        return functional.interpolate(anomaly_map[:, None], self.preprocess.size, mode="bilinear", align_corners=False)[
            :, 0
        ]

    def _sum(
        self, x: Tensor, score: Callable[[Detector, Tensor], Anomaly], *, without: Collection[int] = ()
    ) -> Anomaly:
        scores, maps = [], []
        for number, member in enumerate(self._members()):
            raw = score(member, member.preprocess(x.permute(0, 2, 3, 1)))
            offset, scale, map_offset, map_scale = self.scale[number].unbind()
            scores.append((raw.score - offset) / scale)
            enlarged = self._enlarged(raw.anomaly_map)
            if self.position_scale:
                typical, deviation = self._position_scale(number, enlarged, without)
                maps.append((enlarged - typical) / deviation)
            else:
                maps.append((enlarged - map_offset) / map_scale)
        total_map = self.inside_roi(torch.stack(maps).sum(dim=0))
        if self.map_pooling is None:
            return Anomaly(torch.stack(scores).sum(dim=0), total_map)
        inside = self.preprocess.roi if self.preprocess.has_roi else None
        return Anomaly(self.map_pooling(total_map, inside=inside), total_map)


def build_member(member: Mapping[str, Any], *, weights: str | None) -> Detector:
    """Build a member of a fusion, untrained.

    Args:
        member: its name and options, as in `Fusion`.
        weights: source of its backbone's weights; None leaves it to its options.

    Raises:
        UsageError: an unknown detector, or an unknown key or option.
    """
    unknown = sorted(set(member) - {"detector", "options", "brightness"})
    if unknown or "detector" not in member:
        raise UsageError(f"member {dict(member)}: give `detector`, and `options` or `brightness` if needed")
    name, options = member["detector"], dict(member.get("options", {}))
    if name not in DETECTORS:
        raise UsageError(f"member {name!r} of a fusion is unknown; give one of {', '.join(DETECTORS)}")
    module, _, found = DETECTORS[name].partition(":")
    detector: type[Detector] = getattr(importlib.import_module(module), found)
    parameters = inspect.signature(detector).parameters
    if set(options) - set(parameters):
        raise UsageError(f"member {name!r} has no option {sorted(set(options) - set(parameters))[0]!r}")
    if weights is not None and "weights" in parameters:
        options["weights"] = weights
    return detector(**options)


def spread_of(values: NDArray[np.float64]) -> tuple[float, float]:
    """Median of values (n,), and the distance of their 95 % quantile from it."""
    median = float(np.median(values))
    return median, max(float(np.quantile(values, SPREAD_QUANTILE)) - median, 1e-6 * max(abs(median), 1e-30))


def _equal_sizes(batch: Batch) -> list[Batch]:
    if not isinstance(batch.image, list):
        return [batch]
    return [
        Batch(image[None], batch.mask[n][None], batch.label[n : n + 1], [batch.path[n]])
        for n, image in enumerate(batch.image)
    ]
