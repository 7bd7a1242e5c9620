"""Published figures for MVTec AD, by category in %, with their sources and caveats.

They are shown beside measured rows. They were not measured here. All were measured on the original images. A recalled row was
checked against its published mean only. Methods without a published table (f-AnoGAN, STFPM) have no row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MVTEC_AD = (
    "carpet", "grid", "leather", "tile", "wood", "bottle", "cable", "capsule", "hazelnut", "metal_nut", "pill", "screw",
    "toothbrush", "transistor", "zipper",
)  # fmt: skip
"""The 15 categories, in the order of the figures below"""

RECALLED = "recalled from the literature and checked against the published mean only"
STOPPED_ON_TEST = "early stopping on the AUROC of the test images, patience 3"


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """A published row of MVTec AD."""

    method: str
    detector: str
    """detector for comparison, of this package or of anomalib"""
    source: str
    setting: str
    image_auroc: Mapping[str, float]
    """category -> %; empty where none was published"""
    image_mean: float | None
    """published mean; None where none was published"""
    pixel_auroc: Mapping[str, float]
    pixel_mean: float | None
    caveats: tuple[str, ...]
    """known leaks and doubts"""


def _by_category(figures: str) -> dict[str, float]:
    return dict(zip(MVTEC_AD, map(float, figures.split()), strict=True))


PUBLISHED = (
    PublishedRow(
        method="RIAD, paper",
        detector="riad",
        source="Zavrtanik et al. 2020, as printed in DRAEM (ICCV 2021) tables 1 and 2",
        setting="256 × 256, one model per category, 12 passes per image",
        image_auroc=_by_category("84.2 99.6 100 98.7 93.0 99.9 81.9 88.4 83.3 88.5 83.8 84.5 100 90.9 98.1"),
        image_mean=91.7,
        pixel_auroc=_by_category("96.3 98.8 99.4 89.1 85.8 98.4 84.2 92.8 96.1 92.5 95.7 98.8 98.9 87.7 97.8"),
        pixel_mean=94.2,
        caveats=(),
    ),
    PublishedRow(
        method="GANomaly, as compared by others",
        detector="ganomaly",
        source="ARNet, and DifferNet (WACV 2021) table 1",
        setting="one model per category",
        image_auroc=_by_category("69.9 70.8 84.2 79.4 83.4 89.2 75.7 73.2 78.5 70.0 74.3 74.6 65.3 79.2 74.5"),
        image_mean=76.1,
        pixel_auroc={},
        pixel_mean=None,
        caveats=(RECALLED, "GANomaly's own code keeps the epoch with the best AUROC on test"),
    ),
    PublishedRow(
        method="GANomaly, anomalib",
        detector="ganomaly",
        source="anomalib, README of the model",
        setting="256 × 256, seed 42",
        image_auroc=_by_category("20.3 40.4 41.3 40.8 74.4 25.1 45.7 68.2 53.7 27.0 47.2 23.1 37.2 44.0 43.4"),
        image_mean=42.1,
        pixel_auroc={},
        pixel_mean=None,
        caveats=("below 50 on 12 of 15 categories, worse than chance: not representative of the method",),
    ),
    PublishedRow(
        method="DifferNet, paper",
        detector="differnet",
        source="Rudolph et al., WACV 2021, table 1",
        setting="448 × 448, AlexNet, 3 scales, 64 rotations at test",
        image_auroc=_by_category("92.9 84.0 97.1 99.4 99.8 99.0 95.9 86.9 99.3 96.1 88.8 96.3 98.6 91.1 95.1"),
        image_mean=94.9,
        pixel_auroc={},
        pixel_mean=None,
        caveats=(
            "recalled from the literature; the mean of the figures is 94.7, the paper states 94.9, so one may be wrong",
            "the original code prints the best AUROC on test over all epochs beside the last one",
        ),
    ),
    PublishedRow(
        method="FastFlow R18, anomalib",
        detector="fastflow",
        source="anomalib, README of the model",
        setting="256 × 256, ResNet-18, seed 0",
        image_auroc=_by_category("97.9 98.8 100 96.7 97.8 100 89.1 90.0 84.6 96.3 91.6 52.1 84.4 93.8 87.8"),
        image_mean=90.7,
        pixel_auroc=_by_category("98.3 98.5 99.6 94.4 95.6 98.3 95.4 98.5 95.3 97.2 97.2 92.6 97.9 96.4 96.5"),
        pixel_mean=96.8,
        caveats=(STOPPED_ON_TEST,),
    ),
    PublishedRow(
        method="FastFlow WRN50-2, anomalib",
        detector="fastflow",
        source="anomalib, README of the model",
        setting="256 × 256, Wide ResNet-50-2, seed 0",
        image_auroc=_by_category("99.4 100 99.9 100 99.2 100 96.2 96.3 99.4 99.5 94.2 83.9 83.6 97.9 95.1"),
        image_mean=96.3,
        pixel_auroc=_by_category("99.1 99.2 99.6 96.6 94.1 98.6 97.2 99.0 98.0 98.8 97.6 96.6 98.0 97.1 98.5"),
        pixel_mean=97.9,
        caveats=(STOPPED_ON_TEST,),
    ),
    PublishedRow(
        method="FastFlow R18, last of 500 epochs",
        detector="fastflow",
        source="gathierry/FastFlow, README",
        setting="256 × 256, ResNet-18, last epoch",
        image_auroc={},
        image_mean=None,
        pixel_auroc=_by_category("98.6 97.3 99.1 91.6 89.4 97.5 94.2 97.9 92.2 95.0 95.5 95.2 96.7 97.0 96.9"),
        pixel_mean=95.6,
        caveats=(),
    ),
    PublishedRow(
        method="FastFlow CaiT, paper",
        detector="fastflow",
        source="Yu et al. 2021, arXiv 2111.07677",
        setting="448 × 448, CaiT-M48",
        image_auroc=_by_category("100 99.7 100 100 100 100 100 100 100 100 99.4 97.8 94.4 99.8 99.5"),
        image_mean=99.4,
        pixel_auroc=_by_category("99.4 98.3 99.5 96.3 97.0 97.7 98.4 99.1 99.1 98.5 99.2 99.4 98.9 97.3 98.7"),
        pixel_mean=98.5,
        caveats=(RECALLED,),
    ),
    PublishedRow(
        method="PaDiM R18, anomalib",
        detector="padim",
        source="anomalib, README of the model",
        setting="256 × 256, ResNet-18",
        image_auroc=_by_category("94.5 85.7 98.2 95.0 97.6 99.4 84.4 90.1 75.0 96.1 86.3 75.9 88.9 92.0 78.0"),
        image_mean=89.1,
        pixel_auroc={},
        pixel_mean=None,
        caveats=(),
    ),
    PublishedRow(
        method="PatchCore R18, anomalib",
        detector="patchcore",
        source="anomalib, README of the model",
        setting="ResNet-18",
        image_auroc=_by_category("97.0 94.7 100 99.7 99.7 100 98.6 96.5 100 99.1 91.6 94.3 93.1 99.6 95.3"),
        image_mean=97.3,
        pixel_auroc={},
        pixel_mean=None,
        caveats=(),
    ),
    PublishedRow(
        method="PatchCore WRN50, official",
        detector="patchcore",
        source="amazon-science/patchcore-inspection, results.csv",
        setting="224 × 224, Wide ResNet-50, coreset 10 %",
        image_auroc=_by_category("98.6 97.9 100 99.5 99.1 100 99.7 97.9 100 99.9 96.7 98.8 100 99.9 99.5"),
        image_mean=99.2,
        pixel_auroc=_by_category("99.1 98.8 99.3 95.7 95.1 98.5 98.4 99.0 98.7 98.3 97.8 99.5 98.6 96.1 98.9"),
        pixel_mean=98.1,
        caveats=("evaluates the central 224 of 256 pixels, without borders",),
    ),
    PublishedRow(
        method="Reverse Distillation, anomalib",
        detector="reverse_distillation",
        source="anomalib, README of the model",
        setting="Wide ResNet-50-2",
        image_auroc=_by_category("98.4 100 100 100 99.7 100 96.6 97.4 100 100 97.2 98.5 95.3 97.0 97.8"),
        image_mean=98.5,
        pixel_auroc={},
        pixel_mean=None,
        caveats=(),
    ),
    PublishedRow(
        method="CFLOW, anomalib",
        detector="cflow",
        source="anomalib, README of the model",
        setting="Wide ResNet-50-2",
        image_auroc=_by_category("98.6 96.2 100 99.9 99.3 100 89.3 94.5 100 99.5 92.4 90.8 89.7 94.3 98.4"),
        image_mean=96.2,
        pixel_auroc={},
        pixel_mean=None,
        caveats=(),
    ),
    PublishedRow(
        method="EfficientAD-S, anomalib",
        detector="efficient_ad",
        source="anomalib, README of the model",
        setting="256 × 256, small",
        image_auroc=_by_category("98.2 100 99.7 100 98.6 100 95.2 95.0 95.2 97.9 98.7 96.0 99.7 99.9 99.4"),
        image_mean=98.2,
        pixel_auroc={},
        pixel_mean=None,
        caveats=(),
    ),
    PublishedRow(
        method="DRAEM, paper",
        detector="draem",
        source="Zavrtanik et al., ICCV 2021, tables 1 and 2",
        setting="256 × 256, one model per category",
        image_auroc=_by_category("97.0 99.9 100 99.6 99.1 99.2 91.8 98.5 100 98.7 98.9 93.9 100 93.1 100"),
        image_mean=98.0,
        pixel_auroc=_by_category("95.5 99.7 98.6 99.2 96.4 99.1 94.7 94.3 99.7 99.5 97.6 97.6 98.1 90.9 98.8"),
        pixel_mean=97.3,
        caveats=(),
    ),
    PublishedRow(
        method="Dinomaly, anomalib",
        detector="dinomaly",
        source="anomalib, README of the model",
        setting="one model per category, 5,000 steps of 16 images",
        image_auroc=_by_category("99.9 99.9 100 100 99.6 100 100 98.6 100 100 99.5 98.6 100 99.7 100"),
        image_mean=99.7,
        pixel_auroc=_by_category("99.3 99.4 99.2 97.6 97.7 99.0 98.5 98.6 99.4 96.6 98.0 99.7 98.9 95.1 99.1"),
        pixel_mean=98.4,
        caveats=("evaluates the central 392 of 448 pixels, without defects at the border",),
    ),
    PublishedRow(
        method="AE-SSIM",
        detector="autoencoder",
        source="Bergmann et al., CVPR 2019, pixel AUROC",
        setting="128 × 128 patches of textures, whole objects",
        image_auroc={},
        image_mean=None,
        pixel_auroc=_by_category("87 94 78 59 73 93 82 94 97 89 91 96 92 90 88"),
        pixel_mean=87,
        caveats=(RECALLED, "some later tables print these pixel figures as image AUROC"),
    ),
    PublishedRow(
        method="AE-L2",
        detector="autoencoder",
        source="Bergmann et al., CVPR 2019, pixel AUROC",
        setting="128 × 128 patches of textures, whole objects",
        image_auroc={},
        image_mean=None,
        pixel_auroc=_by_category("59 90 75 51 73 86 86 88 95 86 85 96 93 86 77"),
        pixel_mean=82,
        caveats=(RECALLED,),
    ),
    PublishedRow(
        method="AnoGAN",
        detector="fanogan",
        source="Bergmann et al., CVPR 2019, pixel AUROC",
        setting="predecessor of f-AnoGAN, which has no published table",
        image_auroc={},
        image_mean=None,
        pixel_auroc=_by_category("54 58 64 50 62 86 78 84 87 76 87 80 90 80 78"),
        pixel_mean=74,
        caveats=(RECALLED,),
    ),
)
