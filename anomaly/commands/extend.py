"""The verb `extend`: new good images for the bank of an exported model."""

from __future__ import annotations

from pathlib import Path

from anomaly.inference.session import Device
from anomaly.recalibration.extend import Extension
from anomaly.recalibration.extend import extend as extend_model
from anomaly.system.run_card import RunCard


def extend(
    model: Path,
    new_good: str,
    *,
    out: Path,
    good: str | None = None,
    rows: int | None = None,
    part_group: str | None = None,
    alpha: float | None = None,
    seed: int = 0,
    device: Device = "cpu",
    max_pixels: int = 100_000_000,
) -> Extension:
    """Add good images to the bank of an exported model, and calibrate it again by leave-one-out. No training is needed.

    New images are scored without themselves. Earlier images keep their stored scores, which can only be too high with more
    rows: the false-alarm rate stays below the guarantee. Give them with --good to score them again.

    Args:
        model: .onnx file of a memory bank; it stays unchanged.
        new_good: new good images: a folder, a glob, a .txt list, or - for standard input. Copies of images in the bank are
            left out and counted.
        out: file to write.
        good: earlier training images, to score them again with the extended bank.
        rows: largest number of new rows for each backbone; by default as many for each image as the bank has now.
        part_group: regular expression on the paths, or CSV of path and group, that joins the new images of one part.
        alpha: share of good parts that may be rejected; by default 0.01 or the smallest possible one.
        seed: seed of the drawn candidates for new rows.
        device: inference device; `auto` takes a usable GPU, else the CPU.
        max_pixels: largest width × height that is decoded.

    Raises:
        ModelError: a foreign file, a detector without a bank, or another calibration than leave-one-out.
        DataError: no new image, or images that cannot be used; nothing is written.
    """
    card = RunCard("extend", config=dict(locals()))
    result = extend_model(
        model, new_good, out=out, good=good, rows=rows, part_group=part_group, alpha=alpha, seed=seed, device=device,
        max_pixels=max_pixels,
    )  # fmt: skip
    card.facts["result"] = result.certificate
    card.write(result.path.with_suffix(".extend.run.json"))
    return result


def show(result: Extension) -> None:
    """Print the numbers of images and rows, the copies, and the guarantee."""
    values = result.certificate
    rows = ", ".join(f"{before} -> {after}" for before, after in values["rows"].values())
    print(f"{result.path}: {values['num_earlier']} + {values['num_new']} good images, rows {rows}")
    print(values["earlier_scores"])
    copies = values["copies_left_out"]
    if copies:
        name, original = copies[0]
        print(f"{len(copies)} copies of images in the bank are left out, first {name}, a copy of {original}")
    if len(values["sizes"]) > 1:
        print(f"sizes of the new images: {', '.join(f'{n} of {size}' for size, n in values['sizes'].items())}")
    before, after = values["moved"]["score"]["threshold"]
    print(f"threshold {before:.6g} -> {after:.6g}, uncalibrated")
    if result.references is not None:
        print(f"{result.references}: reduced training images, {result.references.stat().st_size / 1e6:.1f} MB")
    print(values["guarantee_text"])
