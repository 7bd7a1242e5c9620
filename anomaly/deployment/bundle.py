"""Bundles: folders that install, fit and score on a machine without a network.

    wheels/            this package and all requirements of the extra, for one Python and one platform
    weights/           backbone weights, NAME.TAG.safetensors
    models/            an exported model
    requirements.txt   requirement that install.sh installs from wheels/
    install.sh         check, virtual environment, installation, check; install.ps1 on Windows
    check.py           list of missing and changed files; scores the golden image of each model
    MANIFEST.json      SHA-256 and size of every file above; source and licence of the weights
    README.txt         instructions

A bundle is written whole or not at all. It names neither this machine nor the sources of its files.
"""

from __future__ import annotations

import importlib.resources
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import anomaly
from anomaly.deployment.wheels import PACKAGE, Target, download, own_wheel, pins, this_python
from anomaly.errors import OutputError, UsageError
from anomaly.inference.artifact import load_graph, read_metadata
from anomaly.system.files import sha256_of, write_json
from anomaly.system.run_card import now

Extra = Literal["train", "serve", "serve-cpu", "serve-gpu"]
SCRIPTS = ("install.sh", "install.ps1", "check.py")
MANIFEST = "MANIFEST.json"


def bundle(
    folder: str | Path,
    *,
    extra: Extra,
    backbone: str | None = None,
    model: str | Path | None = None,
    constraints: str | Path | None = None,
    platform: str | None = None,
    python_version: str | None = None,
) -> Path:
    """Write a folder from which a machine without a network installs this package. This machine needs a network.

    Args:
        folder: output folder, new or empty.
        extra: extra to install: train, serve-cpu, serve-gpu, or serve beside the ONNX Runtime of a vendor.
        backbone: backbone whose pretrained weights are included, e.g. resnet18; for the train extra.
        model: exported .onnx file to include.
        constraints: file of exact versions, NAME==VERSION. The default is the versions installed here, and the newest
            versions for another platform or Python.
        platform: target platform as a tag of pip, e.g. manylinux_2_35_aarch64 for glibc 2.35, or win_amd64. The default is
            this machine.
        python_version: target Python, e.g. 3.10. The default is this interpreter's version.

    Returns:
        The folder.

    Raises:
        UsageError: a folder that is not empty, an invalid target, or weights for a serving extra.
        ModelError: a model file that is not valid.
        WeightsError: weights that are neither stored here nor downloadable.
        OutputError: no network, no wheel of a package for the target, or a folder that cannot be written.
    """
    folder = Path(folder)
    target = Target(python=python_version or this_python(), platform=platform)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty: name a new folder, or remove its content")
    if backbone and extra != "train":
        raise UsageError(
            f"--backbone {backbone} is for `anomaly fit`, which --extra {extra} excludes: give --extra train"
        )
    pinned = pins(constraints, target=target)
    if model is not None:
        read_metadata(load_graph(Path(model)), name=str(model))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as place:
            staging = Path(place) / "bundle"
            staging.mkdir()
            weights = _copy_weights(backbone, staging)
            models = _copy_model(model, staging)
            wheels = staging / "wheels"
            wheels.mkdir()
            download(wheels, own=own_wheel(Path(place)), extra=extra, target=target, pinned=pinned)
            write_bundle(staging, extra=extra, target=target, weights=weights, models=models)
            if folder.exists():
                folder.rmdir()
            staging.rename(folder)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written ({error.strerror}): free space or choose another place"
        ) from error
    return folder


def _copy_weights(backbone: str | None, staging: Path) -> list[dict[str, str]]:
    if backbone is None:
        return []
    from anomaly.nn.backbones import save_weights  # imports torch

    (staging / "weights").mkdir()
    found = save_weights(backbone, staging / "weights")
    return [found | {"file": f"weights/{found['file']}"}]


def _copy_model(model: str | Path | None, staging: Path) -> list[dict[str, str]]:
    if model is None:
        return []
    (staging / "models").mkdir()
    name = Path(model).name
    shutil.copyfile(model, staging / "models" / name)
    return [{"file": f"models/{name}"}]


def write_bundle(
    staging: Path, *, extra: Extra, target: Target, weights: list[dict[str, str]], models: list[dict[str, str]]
) -> None:
    """Write scripts, README and manifest into a bundle; the manifest is the last file.

    Args:
        staging: folder of the bundle with its wheels, weights and models.
        extra: extra to install.
        target: platform and Python of the wheels.
        weights: entries of the weights in the manifest, with `file`, `source` and `licence`.
        models: entries of the models in the manifest, with `file`.
    """
    for name in SCRIPTS:
        text = importlib.resources.files("anomaly.deployment.bundle_files").joinpath(name).read_text(encoding="utf-8")
        (staging / name).write_text(text, encoding="utf-8", newline="\n")
    (staging / "requirements.txt").write_text(f"{PACKAGE}[{extra}]=={anomaly.__version__}\n", encoding="utf-8")
    readme = readme_text(extra=extra, target=target, weights=weights, models=models)
    (staging / "README.txt").write_text(readme, encoding="utf-8", newline="\n")
    files = {
        path.relative_to(staging).as_posix(): {"sha256": sha256_of(path), "bytes": path.stat().st_size}
        for path in sorted(staging.rglob("*"))
        if path.is_file()
    }
    manifest: dict[str, Any] = {
        "anomaly": anomaly.__version__,
        "extra": extra,
        "python": target.python,
        "machine": target.machine,
        "platform": target.platform or "",
        "weights": [one | {"sha256": files[one["file"]]["sha256"]} for one in weights],
        "models": models,
        "date": now(),
        "files": files,
    }
    write_json(staging / MANIFEST, manifest)


def readme_text(*, extra: Extra, target: Target, weights: list[dict[str, str]], models: list[dict[str, str]]) -> str:
    """Write the instructions of a bundle; arguments as in `write_bundle`."""
    machine = target.platform or f"a machine like the one of the build ({target.machine})"
    lines = [
        f"anomaly {anomaly.__version__}, extra {extra}, for Python {target.python} on {machine}. No network is needed.",
        "",
        "    sh install.sh VENV          check every file, make the virtual environment VENV, install, check again",
        "    PYTHON=python3.x sh install.sh VENV         the same with another interpreter than python3",
        "    powershell -ExecutionPolicy Bypass -File install.ps1 VENV           the same on Windows",
        "    python3 check.py --files    check the files only, e.g. after a copy; needs no installation",
        "    VENV/bin/python check.py    check the installation, and each model on its golden image",
        "",
        "Debian and Ubuntu need the package python3-venv for install.sh. Nothing outside VENV changes.",
    ]
    if extra == "serve":
        lines += [
            "",
            "The bundle does not contain ONNX Runtime. Install the vendor's wheel into VENV:",
            "    VENV/bin/python -m pip install --no-deps FILE",
            "Then run check.py. Before that, the check at the end of install.sh reports the missing package.",
        ]
    if extra == "serve-gpu":
        lines += ["", "The machine needs the NVIDIA driver, CUDA and cuDNN of this ONNX Runtime."]
    for model in models:
        lines += ["", f"    VENV/bin/anomaly score {model['file']} IMAGES --out rows.csv"]
    for one in weights:
        lines += [
            "",
            one["file"],
            f"Source: {one['source']}; licence of these weights: {one['licence']}. Their training images may have other",
            "terms (ImageNet: research); see the project's page on licences. Fit with these weights:",
            "",
            "    ANOMALY_WEIGHTS=weights VENV/bin/anomaly fit FOLDER --out models/part --detector fastflow"
            f" --model.backbone {Path(one['file']).name.partition('.')[0]}",
        ]
    return "\n".join(lines) + "\n"
