"""Labelled images for a calibration: moved images are found again, near-duplicates are left out.

Only the label `good` can move a threshold, by `raised_threshold`. The label `defect` never moves it: a threshold that must
reject certain defects would guarantee nothing about good parts. Defects are scored to report the cost of a higher threshold.

* Near-duplicates count once, as the first labelled image: twenty images of one part are one part. With new good images, a
  labelled near-duplicate of one of them is left out too. The model file keeps no hashes of its calibration images, so
  copies of those cannot be found: label runs of production images, not runs over the training folder.
* The same pixels with both labels are refused: only the reviewer knows the wrong one. A good image and a defect that are
  near-duplicates are reported and used: two images of one part may differ only in a scratch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anomaly.data.duplicates import find_duplicates, fingerprint
from anomaly.errors import DataError
from anomaly.imaging.image_file import decode_stored
from anomaly.runs.labels import Label, read_labels
from anomaly.runs.relocated import ImageFinder
from anomaly.scoring.archive_members import item_of
from anomaly.scoring.sources import Item, read_item
from anomaly.system.progress import progress_bar


@dataclass(frozen=True)
class LabelledImages:
    """The labelled images of one file of labels."""

    source: str
    """name of the file"""
    labels: list[Label]
    """used labels: good images first, then defects"""
    items: list[Item]
    """images of these labels at their current path"""
    num_good: int
    """number of good images among `items`"""
    copies: list[str]
    """paths of good images that are left out as near-duplicates"""
    lookalikes: list[tuple[str, str]]
    """paths of a good image and a defect that are near-duplicates"""
    sha256: frozenset[str]
    """SHA-256 of all images in the file, including the images left out"""


NO_LABELS = LabelledImages(source="", labels=[], items=[], num_good=0, copies=[], lookalikes=[], sha256=frozenset())


def find_labelled_images(file: Path, *, images: str | None, good: Sequence[str], max_pixels: int) -> LabelledImages:
    """Read a file of labels and find its images.

    Args:
        file: file of labels.
        images: folder, glob or list to search for moved images, by their SHA-256.
        good: paths of new calibration images.
        max_pixels: largest width × height that is decoded.

    Raises:
        DataError: no label `good`, an image that is missing or cannot be used, or the same pixels with both labels.
    """
    if not file.is_file():
        raise DataError(f"{file} does not exist: name the file of labels beside the run, RUN.labels.csv")
    labels = sorted(read_labels(file).values(), key=lambda label: label.label != "good")
    if not any(label.label == "good" for label in labels):
        raise DataError(f"{file} has no label good, and defects move no threshold: label rejected good images")
    finder = ImageFinder(images)
    items = [finder.find(item_of(label.path), label.sha256) for label in labels]
    all_items = [*map(Item, good), *items]
    fingerprints = []
    with progress_bar("compare the labelled images") as report:
        for done, item in enumerate(all_items):
            data = read_item(item, max_pixels=max_pixels)
            fingerprints.append(fingerprint(decode_stored(data, name=item.path, max_pixels=max_pixels)))
            report(done + 1, len(all_items))
    kinds = ["good"] * len(good) + [label.label for label in labels]
    copies, lookalikes = set(), []
    for pair in find_duplicates(fingerprints):
        first, second = all_items[pair.first].path, all_items[pair.second].path
        if kinds[pair.first] == kinds[pair.second]:
            if kinds[pair.first] == "good" and pair.second >= len(good):
                copies.add(pair.second - len(good))
        elif pair.exact:
            raise DataError(
                f"{first} is good and {second} is labelled defect, and both have the same pixels: remove one label"
            )
        else:
            lookalikes.append((first, second))
    used = [n for n in range(len(labels)) if n not in copies]
    return LabelledImages(
        source=file.name,
        labels=[labels[n] for n in used],
        items=[items[n] for n in used],
        num_good=sum(labels[n].label == "good" for n in used),
        copies=[labels[n].path for n in sorted(copies)],
        lookalikes=lookalikes,
        sha256=frozenset(label.sha256 for label in labels),
    )
