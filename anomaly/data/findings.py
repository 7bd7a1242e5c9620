"""Findings of an inspection, each with the way out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from anomaly.data.inspection import Inspection

Severity = Literal["error", "warning", "note"]
_ORDER: tuple[Severity, ...] = ("error", "warning", "note")
NUM_NAMED = 5


@dataclass(frozen=True)
class Finding:
    """One finding: an "error" spoils training or its figures, a "warning" may do so, a "note" does not."""

    severity: Severity
    text: str


def find_problems(inspection: Inspection) -> tuple[Finding, ...]:
    """List the findings of an inspection, the worst first."""
    findings = [
        *_unusable(inspection),
        *_repeated(inspection),
        *_different(inspection),
        *_masks(inspection),
        *_remarks(inspection),
    ]
    return tuple(sorted(findings, key=lambda finding: _ORDER.index(finding.severity)))


def _unusable(inspection: Inspection) -> list[Finding]:
    invalid = [f"{file.path} ({file.code})" for file in inspection.bad_files]
    findings = []
    if invalid:
        text = f"{len(invalid)} files cannot be used; repair them, or leave them out with --exclude"
        findings.append(Finding("error", f"{text}: {listed(invalid)}"))
    if inspection.split.error is not None:
        findings.append(Finding("error", inspection.split.error))
    elif inspection.split.num_calibration_groups == 1:
        text = "all images of a split calibration belong to one part group, which gives no guarantee"
        findings.append(Finding("warning", f"{text}; give images of more parts, or --calibration leave_one_out"))
    return findings


def _repeated(inspection: Inspection) -> list[Finding]:
    findings = []
    shared = [_pair(same) for same in inspection.shared_files]
    kinds = [_pair(same) for same in inspection.equal_files if same not in inspection.shared_files]
    if shared:
        splits = "two of train, calibration and test" if "calibration_images" in inspection.kinds else "train and test"
        text = f"{len(shared)} files are in {splits}; delete them from one"
        findings.append(Finding("error", f"{text}: {listed(shared)}"))
    if kinds:
        text = f"{len(kinds)} test files are in two kinds; keep the right one"
        findings.append(Finding("error", f"{text}: {listed(kinds)}"))
    exact = [_pair((pair.first, pair.second)) for pair in inspection.duplicates if pair.exact]
    near = [_pair((pair.first, pair.second)) for pair in inspection.duplicates if not pair.exact]
    if exact:
        text = f"{len(exact)} training images have the same pixels as another; delete them"
        findings.append(Finding("warning", f"{text}: {listed(exact)}"))
    if near:
        text = f"{len(near)} pairs of training images are nearly equal; a split keeps them together, delete mere copies"
        findings.append(Finding("warning", f"{text}: {listed(near)}"))
    return findings


def _different(inspection: Inspection) -> list[Finding]:
    """Compare test images with training images: a detector takes any unfamiliar property for a defect."""
    findings = []
    for name, counts in (("size", inspection.sizes), ("pixels", inspection.pixels), ("format", inspection.formats)):
        unseen = [value for value in counts["test"] if value not in counts["train"]]
        if name == "size":
            unseen = [value for value in unseen if not any(_close(value, known) for known in counts["train"])]
        if unseen and counts["train"]:
            num = sum(counts["test"][value] for value in unseen)
            text = f"{num} test images differ in {name} from every training image ({listed(unseen)})"
            findings.append(Finding("warning", f"{text}; capture and save all images in the same way"))
    depths = {value.split()[0] for value in inspection.pixels["train"]}
    if "16-bit" in depths and len(depths) > 1:
        text = "training images have 16 and 8 bits, which scale differently; save all with the same depth"
        findings.append(Finding("warning", text))
    return findings


def _masks(inspection: Inspection) -> list[Finding]:
    kinds = (
        (inspection.defects_without_mask, "defects have no mask; pixel metrics need one, image metrics do not"),
        (inspection.masks_without_image, "masks belong to no test image; rename them to <stem>_mask.png"),
        (inspection.masks_of_other_size, "masks differ in size from their image; draw them on the original"),
        (inspection.empty_masks, "masks of defects are empty; draw the defect, or move the image to test/good"),
    )
    return [Finding("warning", f"{len(names)} {text}: {listed(names)}") for names, text in kinds if names]


def _remarks(inspection: Inspection) -> list[Finding]:
    findings = []
    if inspection.unused:
        text = f"{len(inspection.unused)} images are outside the folders of the layout and not used"
        findings.append(Finding("note", f"{text}; move them to use them: {listed(inspection.unused)}"))
    if not inspection.kinds["test"]:
        text = "there are no test images; to measure accuracy, add test/good and test/<kind of defect>"
        findings.append(Finding("note", text))
    if inspection.part_group is None and inspection.split.error is None:
        text = "every image counts as a different part; if several show one part or lot, give --part-group"
        findings.append(Finding("note", text))
    if any(max(_sides(size)) > 1.5 * min(_sides(size)) for size in inspection.sizes["train"]):
        text = "the longer side of some images is over 1.5 times the shorter; letterbox keeps their shape"
        findings.append(Finding("note", text))
    return findings


def _close(size: str, other: str) -> bool:
    """Whether two sizes differ by at most 5 % a side: the same camera, trimmed differently."""
    return all(abs(a - b) <= 0.05 * b for a, b in zip(_sides(size), _sides(other), strict=True))


def _sides(size: str) -> tuple[int, int]:
    width, height = size.split("×")
    return int(width), int(height)


def _pair(names: Sequence[str]) -> str:
    return " = ".join(names)


def listed(names: Sequence[str]) -> str:
    """Join the first names, and count the others."""
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more
