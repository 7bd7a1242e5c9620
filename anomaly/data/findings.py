"""What an inspection means: its findings, each with what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from anomaly.data.inspection import Inspection

NUM_NAMED = 5


@dataclass(frozen=True)
class Finding:
    """One thing to know: an "error" spoils training or a verdict on it, a "warning" may, a "note" does not."""

    severity: Literal["error", "warning", "note"]
    text: str


def findings(inspection: Inspection) -> list[Finding]:
    """Return what was found, the worst first."""
    found = [
        *_unusable(inspection),
        *_repeated(inspection),
        *_different(inspection),
        *_masks(inspection),
        *_remarks(inspection),
    ]
    return sorted(found, key=lambda finding: ("error", "warning", "note").index(finding.severity))


def _unusable(inspection: Inspection) -> list[Finding]:
    bad = [f"{file.path} ({file.code})" for file in inspection.bad_files]
    found = []
    if bad:
        way_out = "repair them, or leave them out with --exclude"
        found.append(Finding("error", f"{len(bad)} files cannot be used; {way_out}: {listed(bad)}"))
    if inspection.split.error:
        found.append(Finding("error", inspection.split.error))
    return found


def _repeated(inspection: Inspection) -> list[Finding]:
    found = []
    both = [_pair(same) for same in inspection.shared_files]
    kinds = [_pair(same) for same in inspection.equal_files if same not in inspection.shared_files]
    if both:
        parts = "two of train, held out and test" if "calibration_images" in inspection.kinds else "train and in test"
        text = f"{len(both)} files stand in {parts}; take them out of one"
        found.append(Finding("error", f"{text}: {listed(both)}"))
    if kinds:
        text = f"{len(kinds)} test files stand under two kinds; keep the right one"
        found.append(Finding("error", f"{text}: {listed(kinds)}"))
    exact = [_pair((pair.first, pair.second)) for pair in inspection.duplicates if pair.exact]
    near = [_pair((pair.first, pair.second)) for pair in inspection.duplicates if not pair.exact]
    if exact:
        text = f"{len(exact)} training images repeat the pixels of another and add nothing; delete them"
        found.append(Finding("warning", f"{text}: {listed(exact)}"))
    if near:
        text = f"{len(near)} × two training images are nearly equal; a split keeps them together, delete mere copies"
        found.append(Finding("warning", f"{text}: {listed(near)}"))
    return found


def _different(inspection: Inspection) -> list[Finding]:
    """Compare test with train: a detector takes for a defect whatever it has not seen on good images."""
    found = []
    for name, counts in (("size", inspection.sizes), ("pixels", inspection.pixels), ("format", inspection.formats)):
        unseen = [value for value in counts["test"] if value not in counts["train"]]
        if name == "size":
            unseen = [value for value in unseen if not any(_close(value, known) for known in counts["train"])]
        if unseen and counts["train"]:
            num = sum(counts["test"][value] for value in unseen)
            text = f"{num} test images have a {name} that no training image has ({listed(unseen)})"
            found.append(Finding("warning", f"{text}; take and save all of them in the same way"))
    depths = {value.split()[0] for value in inspection.pixels["train"]}
    if "16-bit" in depths and len(depths) > 1:
        text = "training images are of 16 and of 8 bits, which do not scale alike; save all with the same depth"
        found.append(Finding("warning", text))
    return found


def _masks(inspection: Inspection) -> list[Finding]:
    kinds = (
        (inspection.defects_without_mask, "defects have no mask; pixel metrics need one, image metrics do not"),
        (inspection.masks_without_image, "masks belong to no test image; rename them to <stem>_mask.png"),
        (inspection.masks_of_other_size, "masks differ in size from their image; draw them on the original"),
        (inspection.empty_masks, "masks of defects are empty; draw the defect, or move the image to test/good"),
    )
    return [Finding("warning", f"{len(names)} {text}: {listed(names)}") for names, text in kinds if names]


def _remarks(inspection: Inspection) -> list[Finding]:
    found = []
    if inspection.unused:
        text = f"{len(inspection.unused)} images lie where the layout has no images and are not used"
        found.append(Finding("note", f"{text}; move them if they should be: {listed(inspection.unused)}"))
    if not inspection.kinds["test"]:
        text = "there are no test images; to measure accuracy add test/good and test/<kind of defect>"
        found.append(Finding("note", text))
    plan = inspection.split
    if not inspection.part_group and not plan.error:
        text = "every image is taken to show a part of its own; if some show the same part or lot, give --part-group"
        found.append(Finding("note", text))
    if any(max(_sides(size)) > 1.5 * min(_sides(size)) for size in inspection.sizes["train"]):
        text = "images are more than 1.5 times as long as wide; consider letterbox, which keeps their shape"
        found.append(Finding("note", text))
    return found


def _close(size: str, other: str) -> bool:
    """Whether two sizes differ by 5 % a side at most: trimmed differently, not taken differently."""
    return all(abs(a - b) <= 0.05 * b for a, b in zip(_sides(size), _sides(other), strict=True))


def _sides(size: str) -> tuple[int, int]:
    width, height = size.split("×")
    return int(width), int(height)


def _pair(names: Sequence[str]) -> str:
    return " = ".join(names)


def listed(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more
