"""Extend the bank of an exported model by new good images, and calibrate it again by leave-one-out.

More rows can only lower the distance to the nearest one. A stored leave-one-out score of an earlier image is therefore
never below its score with the larger bank. The threshold is then never too low; the guarantee holds, and more defects
may pass. With the earlier images at hand, their scores are computed again, without that loss.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from anomaly.conformal.guarantee import GuaranteeKind, resolve_alpha
from anomaly.data.folders import list_images
from anomaly.errors import DataError, ModelError, UsageError
from anomaly.imaging.image_file import read_image
from anomaly.imaging.statistics import summarise
from anomaly.inference.artifact import HASH_LENGTH, Metadata, graph_sha256, load_graph, read_metadata
from anomaly.inference.bank import BankFile
from anomaly.inference.bank_graph import Rows, set_rows
from anomaly.inference.bank_record import BankRecord, BankRows, short_names
from anomaly.inference.core_set import core_set
from anomaly.inference.golden import golden_png
from anomaly.inference.references import References, encode_reference, write_references
from anomaly.inference.session import Device
from anomaly.recalibration.calibration_set import Values
from anomaly.recalibration.left_out_file import evenly_spaced, left_out_values, write_left_out
from anomaly.recalibration.new_images import NewImages, part_group_numbers, read_new_images
from anomaly.recalibration.new_scale import file_scales
from anomaly.system.files import as_path, sha256_of, write_json
from anomaly.system.run_card import now

MAX_CANDIDATES = 40_000
"""Largest number of patches, drawn at random from the new images, that new rows are chosen from"""


@dataclass(frozen=True)
class Extension:
    """An extended model file."""

    path: Path
    certificate: dict[str, Any]
    """numbers of images and rows, guarantee, and old and new threshold, as JSON values; also in the file beside the model"""
    references: Path | None
    """archive of reduced training images; None where the model had none"""


def extend(
    model: str | Path,
    new_good: str | Path,
    *,
    out: str | Path,
    good: str | Path | None = None,
    rows: int | None = None,
    part_group: str | None = None,
    alpha: float | None = None,
    seed: int = 0,
    device: Device = "cpu",
    max_pixels: int = 100_000_000,
) -> Extension:
    """Add good images to the bank of an exported model, and calibrate it again by leave-one-out.

    Args:
        model: .onnx file of a detector with a bank and leave-one-out calibration; it stays unchanged.
        new_good: new good images: a folder, a glob, a .txt list, or - for standard input.
        out: file to write.
        good: earlier training images. Their scores are then computed again; else they keep their stored scores, which are
            never too low.
        rows: largest number of new rows for each backbone; None adds as many rows for each image as the bank has now.
        part_group: regular expression on the paths, or CSV of path and group, that joins the new images of one part.
        alpha: share of good parts that may be rejected; None is 0.01 or the smallest possible one.
        seed: seed of the drawn candidates.
        device: inference device; `auto` takes a usable GPU, else the CPU.
        max_pixels: largest width × height that is decoded.

    Returns:
        The new file and its certificate, which is also written beside the file.

    Raises:
        UsageError: the model as its own output, or a number of rows below 1.
        ModelError: a foreign file, a detector without a bank, or another calibration than leave-one-out.
        DataError: no new image, or images that cannot be used.
        CalibrationError: too few parts for alpha.
        ParityError: the new file does not give the expected values.
        OutputError: the file cannot be written.
    """
    model, path = as_path(model, name="model"), as_path(out, name="out")
    if path.resolve() == model.resolve():
        raise UsageError(f"out {path} is the model itself, which must not get lost: give another file")
    if rows is not None and rows < 1:
        raise UsageError(f"rows {rows}: give 1 or more")
    graph = load_graph(model)
    metadata = read_metadata(graph, name=str(model))
    bank = BankFile(graph, metadata, name=str(model), device=device)
    _check_extensible(metadata, name=str(model))
    paths, exact = list_images(new_good), metadata.calibration.exact
    new = read_new_images(
        paths,
        bank,
        num_patches=math.prod(bank.bank.grid) if exact else -(-MAX_CANDIDATES // len(paths)),
        seed=seed,
        max_pixels=max_pixels,
    )
    if not new.paths:
        raise DataError(
            f"all {len(new.copies)} new images are copies of images in the bank, first {new.copies[0][0]}:"
            " give other images"
        )
    groups = part_group_numbers(
        new.paths, source=str(new_good), part_group=part_group, first=max(bank.bank.part_groups) + 1,
        max_pixels=max_pixels,
    )  # fmt: skip
    num_groups = len(set(bank.bank.part_groups)) + len(set(groups))
    alpha = resolve_alpha(alpha, num_groups=num_groups, guarantee="expected")
    guarantee: GuaranteeKind = "expected"
    added = _choose_rows(bank, new, rows=rows, exact=exact, seed=seed)
    record = _extended_record(bank.bank, new, groups, added)
    num_old, num_new = len(bank.bank.images), len(new.paths)
    extended = dataclasses.replace(metadata, bank=record, training_hashes=metadata.training_hashes + new.hashes)
    set_rows(graph, {part.rows: np.concatenate([old, each.rows])
                     for part, old, each in zip(record.backbones, bank.rows, added, strict=True)})  # fmt: skip
    larger = BankFile(graph, dataclasses.replace(extended, sha256=graph_sha256(graph)), name=str(path), device=device)
    earlier = _earlier_images(good, metadata, max_pixels=max_pixels)

    def read(number: int) -> NDArray[np.uint8]:
        if number >= num_old:
            return new.read(number - num_old)
        return read_image(earlier[number], white=metadata.white, max_pixels=max_pixels)

    values = _values(larger, graph, read=read, rescored=sorted(earlier))
    fresh = values["score"][num_old:]
    typical = int(np.argsort(fresh)[len(fresh) // 2])
    checked = [num_old + n for n in evenly_spaced(num_new)]
    certificate = write_left_out(
        graph,
        dataclasses.replace(
            extended,
            image_stats=_joined_statistics(metadata, new),
            golden=dataclasses.replace(metadata.golden, png=golden_png(new.read(typical))),
        ),
        values,
        out=path,
        source=f"{metadata.calibration.source.partition(' + ')[0]} + {num_new} new good ({Path(new_good).name})",
        excluded=metadata.calibration.excluded,
        alpha=alpha,
        guarantee=guarantee,
        device=device,
        checked=checked,
        read=read,
    )
    certificate |= {
        "kind": "extension",
        "previous_model": sha256_of(model),
        "num_earlier": num_old,
        "num_earlier_scored_again": len(earlier),
        "num_new": num_new,
        "copies_left_out": [list(pair) for pair in new.copies],
        "sizes": new.count_sizes(),
        "rows": {part.rows: [len(old), len(old) + len(each.rows)]
                 for part, old, each in zip(record.backbones, bank.rows, added, strict=True)},
        "earlier_scores": _EARLIER_KEPT if len(earlier) < num_old else _EARLIER_AGAIN,
        "date": now(),
    }  # fmt: skip
    write_json(path.with_suffix(".certificate.json"), certificate)
    return Extension(path, certificate, _extended_references(model, path, metadata, new))


_EARLIER_KEPT = (
    "Earlier images keep their leave-one-out scores. These can only be too high after more rows, so the threshold is never"
    " too low."
)
_EARLIER_AGAIN = "Earlier images were scored again, without their part groups, with the extended bank."


@dataclass(frozen=True)
class _Added:
    """New rows of one backbone."""

    rows: Rows
    image: list[int]
    """number among the new images"""
    cell: list[int]


def _check_extensible(metadata: Metadata, *, name: str) -> None:
    assert metadata.bank is not None
    if metadata.tiling is not None:
        raise ModelError(f"{name} scores large images in tiles, and tiles have no bank of their own: fit it again")
    construction = metadata.calibration.construction
    if construction != "leave_one_out" or not metadata.bank.raw_scores:
        raise ModelError(
            f"{name} has a {construction} calibration, and new images in its bank cannot join that one: extend the file as"
            " exported before `anomaly calibrate`, or fit it with --calibration leave_one_out"
        )
    if not metadata.bank.supports_extension:
        raise ModelError(
            f"{name}: its graph has no tensor of patch embeddings, so no rows can be added: fit memory_bank instead"
        )


def _choose_rows(bank: BankFile, new: NewImages, *, rows: int | None, exact: bool, seed: int) -> list[_Added]:
    """Choose new rows for each backbone.

    They are a core set with the rows of the bank as first centres. For a model with an exact guarantee, each image chooses
    its rows alone.

    Args:
        bank: opened file.
        new: new images.
        rows: largest number of new rows; None keeps the number of rows per image.
        exact: whether each image chooses its rows alone.
        seed: seed of the core set.
    """
    num_new, added = len(new.paths), []
    for at, old in enumerate(bank.rows):
        own = [image.patches[at] for image in new.candidates]
        num = rows if rows is not None else max(1, round(len(old) / len(bank.bank.images) * num_new))
        if exact:
            chosen = [core_set(one, max(1, num // num_new), seed=0) for one in own]
            origin = [n for n, each in enumerate(chosen) for _ in each]
            inner = [int(place) for each in chosen for place in each]
        else:
            starts = np.cumsum([0, *map(len, own)])
            kept = core_set(np.concatenate(own), num, seed=seed, centres=old)
            origin = [int(n) for n in np.searchsorted(starts, kept, side="right") - 1]
            inner = [int(place - starts[n]) for place, n in zip(kept, origin, strict=True)]
        both = list(zip(origin, inner, strict=True))
        picked = np.stack([own[n][place] for n, place in both]).astype(np.float32)
        added.append(_Added(picked, origin, [int(new.candidates[n].cells[place]) for n, place in both]))
    return added


def _extended_record(bank: BankRecord, new: NewImages, groups: Sequence[int], added: Sequence[_Added]) -> BankRecord:
    num_old = len(bank.images)
    backbones = [
        BankRows(
            rows=part.rows,
            image=part.image + [num_old + n for n in each.image],
            cell=part.cell + each.cell,
            embedding=part.embedding,
            usual=part.usual,
        )
        for part, each in zip(bank.backbones, added, strict=True)
    ]
    return dataclasses.replace(
        bank,
        images=bank.images + short_names(bank.images + new.paths)[num_old:],
        part_groups=bank.part_groups + list(groups),
        sizes=bank.sizes + [list(size) for size in new.sizes],
        backbones=backbones,
    )


def _earlier_images(good: str | Path | None, metadata: Metadata, *, max_pixels: int) -> dict[int, str]:
    """Number -> path of the earlier training images in a folder, found by their SHA-256.

    Raises:
        DataError: none of the images is a training image.
    """
    if good is None:
        return {}
    numbers = {digest: n for n, digest in enumerate(metadata.training_hashes)}
    paths = list_images(good)
    found = {numbers[digest]: path for path in paths if (digest := sha256_of(path)[:HASH_LENGTH]) in numbers}
    if not found:
        raise DataError(
            f"none of the {len(paths)} images in {good} is a training image of this model: leave --good out"
        )
    for path in found.values():
        read_image(path, white=metadata.white, max_pixels=max_pixels)  # refuse a damaged file before scoring
    return found


def _values(
    larger: BankFile, graph: onnx.ModelProto, *, read: Callable[[int], NDArray[np.uint8]], rescored: Sequence[int]
) -> Values:
    """Left-out values of all images in the units of the graph; earlier images that are not scored again keep theirs."""
    bank, scale = larger.bank, file_scales(graph)
    stored: Mapping[str, list[float]] = {"score": bank.raw_scores, "map": bank.raw_peaks}
    num_old, num = len(bank.raw_scores), len(bank.images)
    numbers = [*rescored, *range(num_old, num)]
    found = left_out_values(larger, numbers, read=read)
    values: Values = {}
    for part, raw in stored.items():
        values[part] = np.concatenate(
            [(np.array(raw) - scale[part].offset) / scale[part].scale, np.zeros(num - num_old)]
        )
        values[part][numbers] = found[part]
    return values


def _joined_statistics(metadata: Metadata, new: NewImages) -> dict[str, dict[str, Any]]:
    """Statistics of the earlier images and of the new ones."""
    own, names = new.statistics, list(new.statistics[0])
    earlier = [metadata.image_stats.get(name, {}).get("values", []) for name in names]
    columns = [[*old, *(one[name] for one in own)] for name, old in zip(names, earlier, strict=True)]
    return summarise([dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)])


def _extended_references(model: Path, path: Path, metadata: Metadata, new: NewImages) -> Path | None:
    """Write the archive of the extended model, from that of the model and the new images; None where it had none."""
    references = References(model, metadata)
    extended = read_metadata(load_graph(path), name=str(path))
    if references.missing is not None or extended.bank is None:
        return None
    num_old = len(extended.bank.images) - len(new.paths)

    def pictures() -> Iterator[tuple[int, bytes]]:
        assert extended.bank is not None
        for number in sorted({n for part in extended.bank.backbones for n in part.image}):
            data = references.data(number) if number < num_old else encode_reference(new.read(number - num_old))
            if data is not None:
                yield number, data

    return write_references(path, extended, pictures())
