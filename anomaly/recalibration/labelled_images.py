"""Marked images as evidence for a calibration: found again, copies left out, scored with what they said before.

Only marks `good` move a limit, by `raised_limit`. Marks `defect` never do: a limit set to catch them would promise nothing
about good parts. They are scored all the same, for what a higher limit costs has to be told.

* Near-duplicates count once, the first that was marked: twenty photographs of one part that lies before the camera are one
  part. Where new good photographs are given, a mark that shows one of them is left out too. The model file keeps no hashes
  of the photographs that it was calibrated on, so that marks on these cannot be told: mark runs of production, not those
  over the training folder.
* The same pixels marked both ways are refused, for nobody but the person can know which is wrong. A good and a defect that
  are near-duplicates are named and used: a scratch may be all that two photographs of one part differ in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anomaly.data.duplicates import find_duplicates, fingerprint
from anomaly.errors import DataError
from anomaly.imaging.image_file import decode_stored
from anomaly.runs.labels import Mark, read_marks
from anomaly.runs.relocated import Moved
from anomaly.scoring.archive_members import located
from anomaly.scoring.sources import Item, read_item
from anomaly.system.progress import progress_bar


@dataclass(frozen=True)
class Marked:
    """The marked images of one file."""

    source: str
    """name of the file"""
    marks: list[Mark]
    """that are used: the goods, then the defects"""
    items: list[Item]
    """where the images of these are now"""
    num_good: int
    """how many of them are good"""
    copies: list[str]
    """paths of goods that show what another shows, and are left out"""
    alike: list[tuple[str, str]]
    """paths of a good and of a defect that look nearly alike"""
    told: frozenset[str]
    """SHA-256 of all images that the file marks, those left out too"""


NOTHING_MARKED = Marked(source="", marks=[], items=[], num_good=0, copies=[], alike=[], told=frozenset())


def find_marked(file: Path, *, images: str, good: Sequence[str], max_pixels: int) -> Marked:
    """Read a file of marks and find its images.

    Args:
        file: of marks.
        images: where images that were moved are found again, by their SHA-256: a folder, glob or list.
        good: photographs that calibrate beside the marked ones.
        max_pixels: largest width × height that is decoded.

    Raises:
        DataError: no good image is marked, an image that is gone or cannot be used, or pixels that are marked both ways.
    """
    if not file.is_file():
        raise DataError(f"no marks at {file}: name the file beside the run, RUN.marks.csv")
    marks = sorted(read_marks(file).values(), key=lambda mark: mark.mark != "good")
    if not any(mark.mark == "good" for mark in marks):
        raise DataError(f"{file} marks no image as good, and defects move no limit: mark goods that were rejected")
    moved = Moved(images)
    items = [moved.of(located(mark.path), mark.sha256) for mark in marks]
    all_items = [*map(Item, good), *items]
    fingerprints = []
    with progress_bar("compare the marked images") as report:
        for done, item in enumerate(all_items):
            data = read_item(item, max_pixels=max_pixels)
            fingerprints.append(fingerprint(decode_stored(data, name=item.path, max_pixels=max_pixels)))
            report(done + 1, len(all_items))
    kinds = ["good"] * len(good) + [mark.mark for mark in marks]
    copies, alike = set(), []
    for pair in find_duplicates(fingerprints):
        first, second = all_items[pair.first].path, all_items[pair.second].path
        if kinds[pair.first] == kinds[pair.second]:
            if kinds[pair.first] == "good" and pair.second >= len(good):
                copies.add(pair.second - len(good))
        elif pair.exact:
            raise DataError(
                f"{first} is good and {second} is marked defect, and both have the same pixels: unset one mark"
            )
        else:
            alike.append((first, second))
    used = [n for n in range(len(marks)) if n not in copies]
    return Marked(
        source=file.name,
        marks=[marks[n] for n in used],
        items=[items[n] for n in used],
        num_good=sum(marks[n].mark == "good" for n in used),
        copies=[marks[n].path for n in sorted(copies)],
        alike=alike,
        told=frozenset(mark.sha256 for mark in marks),
    )
