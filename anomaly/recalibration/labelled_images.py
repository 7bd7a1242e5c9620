"""Labelled images as evidence for a calibration: found again, copies left out, scored with what they said before.

Only labels `good` move a threshold, by `raised_threshold`. Labels `defect` never do: a threshold set to catch them would guarantee nothing
about good parts. They are scored all the same, for what a higher threshold costs has to be told.

* Near-duplicates count once, the first that was labelled: twenty images of one part that lies before the camera are one
  part. Where new good images are given, a label that shows one of them is left out too. The model file keeps no hashes
  of the images that it was calibrated on, so that labels on these cannot be told: label runs of production, not those
  over the training folder.
* The same pixels labelled both ways are refused, for nobody but the person can know which is wrong. A good and a defect that
  are near-duplicates are named and used: a scratch may be all that two images of one part differ in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anomaly.data.duplicates import find_duplicates, fingerprint
from anomaly.errors import DataError
from anomaly.imaging.image_file import decode_stored
from anomaly.runs.labels import Label, read_labels
from anomaly.runs.relocated import Moved
from anomaly.scoring.archive_members import located
from anomaly.scoring.sources import Item, read_item
from anomaly.system.progress import progress_bar


@dataclass(frozen=True)
class Labelled:
    """The labelled images of one file."""

    source: str
    """name of the file"""
    labels: list[Label]
    """that are used: the good images, then the defects"""
    items: list[Item]
    """where the images of these are now"""
    num_good: int
    """how many of them are good"""
    copies: list[str]
    """paths of good images that show what another shows, and are left out"""
    alike: list[tuple[str, str]]
    """paths of a good and of a defect that look nearly alike"""
    told: frozenset[str]
    """SHA-256 of all images that the file labels, those left out too"""


NOTHING_MARKED = Labelled(source="", labels=[], items=[], num_good=0, copies=[], alike=[], told=frozenset())


def find_labelled(file: Path, *, images: str, good: Sequence[str], max_pixels: int) -> Labelled:
    """Read a file of labels and find its images.

    Args:
        file: of labels.
        images: where images that were moved are found again, by their SHA-256: a folder, glob or list.
        good: images that calibrate beside the labelled ones.
        max_pixels: largest width × height that is decoded.

    Raises:
        DataError: no good image is labelled, an image that is gone or cannot be used, or pixels that are labelled both ways.
    """
    if not file.is_file():
        raise DataError(f"no labels at {file}: name the file beside the run, RUN.labels.csv")
    labels = sorted(read_labels(file).values(), key=lambda label: label.label != "good")
    if not any(label.label == "good" for label in labels):
        raise DataError(
            f"{file} labels no image as good, and defects move no threshold: label good images that were rejected"
        )
    moved = Moved(images)
    items = [moved.of(located(label.path), label.sha256) for label in labels]
    all_items = [*map(Item, good), *items]
    fingerprints = []
    with progress_bar("compare the labelled images") as report:
        for done, item in enumerate(all_items):
            data = read_item(item, max_pixels=max_pixels)
            fingerprints.append(fingerprint(decode_stored(data, name=item.path, max_pixels=max_pixels)))
            report(done + 1, len(all_items))
    kinds = ["good"] * len(good) + [label.label for label in labels]
    copies, alike = set(), []
    for pair in find_duplicates(fingerprints):
        first, second = all_items[pair.first].path, all_items[pair.second].path
        if kinds[pair.first] == kinds[pair.second]:
            if kinds[pair.first] == "good" and pair.second >= len(good):
                copies.add(pair.second - len(good))
        elif pair.exact:
            raise DataError(
                f"{first} is good and {second} is labelled defect, and both have the same pixels: unset one label"
            )
        else:
            alike.append((first, second))
    used = [n for n in range(len(labels)) if n not in copies]
    return Labelled(
        source=file.name,
        labels=[labels[n] for n in used],
        items=[items[n] for n in used],
        num_good=sum(labels[n].label == "good" for n in used),
        copies=[labels[n].path for n in sorted(copies)],
        alike=alike,
        told=frozenset(label.sha256 for label in labels),
    )
