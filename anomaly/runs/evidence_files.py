"""Evidence files of a run: for each rejected image a sheet of its nearest good patches, and the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from anomaly.errors import UsageError
from anomaly.imaging.image_file import write_png
from anomaly.inference.evidence import EvidenceFinder, evidence_sheet
from anomaly.inference.scorer import OnnxScorer
from anomaly.runs.run_files import EVIDENCE
from anomaly.scoring.overlays import overlay_name
from anomaly.scoring.windows import ScoredImage
from anomaly.system.files import write_json


def open_finders(scorers: Mapping[str, OnnxScorer]) -> dict[str, EvidenceFinder]:
    """Make the finder of each product.

    Args:
        scorers: product -> its model.

    Raises:
        UsageError: a model that gives no evidence.
    """
    finders = {product: EvidenceFinder(scorer) for product, scorer in scorers.items()}
    for finder in finders.values():
        if finder.reason is not None:
            raise UsageError(f"--evidence: {finder.reason}; leave --evidence out")
    return finders


def missing_references(finders: Mapping[str, EvidenceFinder]) -> list[str]:
    """List the reasons why evidence has no pictures."""
    return [finder.references.missing for finder in finders.values() if finder.references.missing is not None]


def evidence_stem(number: int) -> str:
    """Stem of the evidence files of an image."""
    return f"{number:08d}"


def write_evidence(scored: ScoredImage, number: int, *, finder: EvidenceFinder, folder: Path) -> list[Path]:
    """Write the evidence files of a rejected image.

    Args:
        scored: scored image.
        number: position of the image in the run.
        finder: finder of the model that scored it.
        folder: folder of the run.

    Returns:
        The written files; empty for an image that is not rejected.

    Raises:
        OutputError: a file cannot be written.
    """
    if scored.row.verdict != "defect":
        return []
    found = finder.find(scored.image, scored.row.regions)
    stem = folder / EVIDENCE / evidence_stem(number)
    written = [stem.with_suffix(".json")]
    values = {"picture_missing": finder.references.missing, "regions": [one.to_dict() for one in found]}
    write_json(written[0], {"image": overlay_name(number, scored.item), **values})
    drawn = evidence_sheet(scored.image, found)
    if drawn is not None:
        written.append(stem.with_suffix(".png"))
        write_png(written[1], drawn)
    return written
