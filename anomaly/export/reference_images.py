"""The archive of reduced training images beside an exported file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from anomaly.errors import ImageError
from anomaly.imaging.image_file import read_image
from anomaly.inference.artifact import Metadata
from anomaly.inference.references import encode_reference, references_path, write_references
from anomaly.training.fitted_model import Description


@dataclass(frozen=True)
class ReferenceImages:
    """The archive of an export."""

    path: Path
    num_images: int
    num_missing: int
    """images of the bank that could not be read"""

    @property
    def num_bytes(self) -> int:
        """Size of the archive."""
        return self.path.stat().st_size


def export_references(model: Path, metadata: Metadata, description: Description) -> ReferenceImages | None:
    """Write the reduced training images of the bank beside a model file; None for a model without a bank.

    An image that was moved or damaged since the fit is left out and counted.

    Args:
        model: exported file.
        metadata: its metadata.
        description: description of the fitted model, with the paths of the training images.

    Raises:
        OutputError: the archive cannot be written.
    """
    if metadata.bank is None or not metadata.bank.supports_extension:
        return None
    counts = {"written": 0, "missing": 0}

    def pictures() -> Iterator[tuple[int, bytes]]:
        assert metadata.bank is not None
        for number in sorted({n for part in metadata.bank.backbones for n in part.image}):
            try:
                image = read_image(
                    description.train[number], white=description.white, max_pixels=description.max_pixels
                )
            except ImageError:
                counts["missing"] += 1
                continue
            counts["written"] += 1
            yield number, encode_reference(image)

    path = write_references(model, metadata, pictures())
    return ReferenceImages(path, counts["written"], counts["missing"])


def remove_references(model: Path) -> None:
    """Remove the archive of an earlier export."""
    references_path(model).unlink(missing_ok=True)
