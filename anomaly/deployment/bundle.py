"""The verb `bundle`: a folder with all that a machine without a network needs to install, fit and score.

    wheels/            our own package and all that the extra needs, for one Python and one platform
    weights/           of a backbone, NAME.TAG.safetensors
    models/            an exported model
    requirements.txt   what is installed from wheels/
    install.sh         checks, makes a virtual environment, installs; install.ps1 for Windows
    check.py           says what is missing or changed, and whether the models score as they did at export
    MANIFEST.json      SHA-256 and size of every file above; source and licence of the weights
    README.txt

The folder appears whole or not at all, and names neither this machine nor the places that its files came from.
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
    folder: Path,
    *,
    extra: Extra,
    backbone: str = "",
    model: str = "",
    constraints: str = "",
    platform: str = "",
    python_version: str = "",
) -> Path:
    """Write a folder from which a machine without a network installs this package; run it where there is a network.

    Args:
        folder: new or empty.
        extra: what to install there: train, serve-cpu, serve-gpu, or serve where the vendor brings ONNX Runtime.
        backbone: name of a network whose pretrained weights come along with the train extra, as resnet18.
        model: .onnx file that comes along.
        constraints: file of exact versions; by default those installed here, for another target the newest.
        platform: of the target in pip's words: manylinux_2_35_aarch64 for glibc 2.35, win_amd64; by default this machine.
        python_version: of the target, as 3.10; by default this interpreter's.

    Returns:
        The folder.

    Raises:
        UsageError: a folder that is not empty, a target that is none, or weights for an extra that fits nothing.
        ModelError: a model that is not ours.
        WeightsError: weights that are neither at hand nor to be had.
        OutputError: no network, no wheel of a package for the target, or a place that cannot be written.
    """
    target = Target(python=python_version or this_python(), platform=platform)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty: name a new folder, or take out what is in it")
    if backbone and extra != "train":
        raise UsageError(
            f"--backbone {backbone} is for `anomaly fit`, which --extra {extra} has not: give --extra train"
        )
    pinned = pins(constraints, target=target)
    if model:
        read_metadata(load_graph(Path(model)), name=model)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as place:
            made = Path(place) / "bundle"
            made.mkdir()
            weights = _bring_weights(backbone, made)
            models = _bring_model(model, made)
            wheels = made / "wheels"
            wheels.mkdir()
            download(wheels, own=own_wheel(Path(place)), extra=extra, target=target, pinned=pinned)
            write_bundle(made, extra=extra, target=target, weights=weights, models=models)
            if folder.exists():
                folder.rmdir()
            made.rename(folder)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written ({error.strerror}): make room or choose another place"
        ) from error
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 2**20:.0f} MiB; on the other machine: sh install.sh VENV (README.txt says more)")
    return folder


def _bring_weights(backbone: str, made: Path) -> list[dict[str, str]]:
    if not backbone:
        return []
    from anomaly.nn.backbones import save_weights  # torch, which a serving install has not

    (made / "weights").mkdir()
    found = save_weights(backbone, made / "weights")
    return [found | {"file": f"weights/{found['file']}"}]


def _bring_model(model: str, made: Path) -> list[dict[str, str]]:
    if not model:
        return []
    (made / "models").mkdir()
    shutil.copyfile(model, made / "models" / Path(model).name)
    return [{"file": f"models/{Path(model).name}"}]


def write_bundle(
    made: Path, *, extra: Extra, target: Target, weights: list[dict[str, str]], models: list[dict[str, str]]
) -> None:
    """Write scripts, README and, last, the manifest beside what a bundle brings.

    Args:
        made: the bundle, with its wheels, weights and models.
        extra: that is installed.
        target: that the wheels are for.
        weights: `file`, `source` and `licence` of each.
        models: `file` of each.
    """
    for name in SCRIPTS:
        text = importlib.resources.files("anomaly.deployment.bundle_files").joinpath(name).read_text(encoding="utf-8")
        (made / name).write_text(text, encoding="utf-8", newline="\n")
    (made / "requirements.txt").write_text(f"{PACKAGE}[{extra}]=={anomaly.__version__}\n", encoding="utf-8")
    readme = readme_text(extra=extra, target=target, weights=weights, models=models)
    (made / "README.txt").write_text(readme, encoding="utf-8", newline="\n")
    files = {
        path.relative_to(made).as_posix(): {"sha256": sha256_of(path), "bytes": path.stat().st_size}
        for path in sorted(made.rglob("*"))
        if path.is_file()
    }
    manifest: dict[str, Any] = {
        "anomaly": anomaly.__version__,
        "extra": extra,
        "python": target.python,
        "machine": target.machine,
        "platform": target.platform,
        "weights": [one | {"sha256": files[one["file"]]["sha256"]} for one in weights],
        "models": models,
        "date": now(),
        "files": files,
    }
    write_json(made / MANIFEST, manifest)


def readme_text(*, extra: Extra, target: Target, weights: list[dict[str, str]], models: list[dict[str, str]]) -> str:
    """Say how a bundle is used; arguments as `write_bundle` has them."""
    where = target.platform or f"the kind of machine that it was made on ({target.machine})"
    lines = [
        f"anomaly {anomaly.__version__}, extra {extra}, for Python {target.python} on {where}; no network is needed.",
        "",
        "    sh install.sh VENV          checks every file, makes the virtual environment VENV, installs, checks again",
        "    PYTHON=python3.x sh install.sh VENV         with another interpreter than python3",
        "    powershell -ExecutionPolicy Bypass -File install.ps1 VENV           on Windows",
        "    python3 check.py --files    the files alone, e.g. after copying them; needs nothing installed",
        "    VENV/bin/python check.py    what is installed, and each model on its golden image",
        "",
        "Debian and Ubuntu want python3-venv for the first. Nothing outside VENV is changed.",
    ]
    if extra == "serve":
        lines += [
            "",
            "ONNX Runtime is not in here: put the vendor's wheel into VENV (VENV/bin/python -m pip install --no-deps FILE),",
            "then check. Until then install.sh ends with the check that misses it.",
        ]
    if extra == "serve-gpu":
        lines += [
            "",
            "The NVIDIA driver, CUDA and cuDNN of this ONNX Runtime are not in here: the machine has to have them.",
        ]
    for model in models:
        lines += ["", f"    VENV/bin/anomaly score {model['file']} IMAGES --out rows.csv"]
    for one in weights:
        lines += [
            "",
            one["file"],
            f"from {one['source']}; licence of these weights: {one['licence']}. What they were trained on may have",
            "terms of its own (ImageNet: research): see THIRD_PARTY_WEIGHTS.md of the project. To fit with them:",
            "",
            "    ANOMALY_WEIGHTS=weights VENV/bin/anomaly fit FOLDER --out run --detector fastflow"
            f" --model.backbone {Path(one['file']).name.partition('.')[0]}",
        ]
    return "\n".join(lines) + "\n"
