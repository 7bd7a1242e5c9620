"""Bundles for machines without a network: size, and seconds from installation to the first verdict, offline and online.

    python -m benchmarks.bundle --out benchmarks/results/bundle.json [--extra train]

A bundle of the serving packages is written from the network, with a model fitted here on synthetic parts. In a namespace
without a network (`unshare --net`, which requires root) the bundle is installed and `anomaly score` scores one image. The
online measurement uses `pip install .[serve-cpu]`. With `--extra train` the bundle has torch and ResNet-18, and
`anomaly fit`, `export` and `score` run without a network.

pip has no cache, and the installations see no variable of this environment. Seconds are those of one run, and depend on the
network. Entries that are not measured again stay in the file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomaly.data.synthetic import make_dataset
from anomaly.deployment.bundle import bundle as make_bundle
from anomaly.export.model_file import export_model
from anomaly.system.files import write_json
from anomaly.system.run_card import RunCard
from anomaly.training.fit import fit_model

ROOT = Path(__file__).resolve().parent.parent
TINY = {"size": 64, "width": 8, "epochs": 2}
OFFLINE = ("unshare", "--net")
PROBE = "import socket; socket.create_connection(('1.1.1.1', 53), timeout=3)"


def timed(command: Sequence[str | Path], *, env: dict[str, str], cwd: Path) -> float:
    """Measure the seconds of a command; show its output if it fails."""
    begin = time.perf_counter()
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}:\n{done.stdout}\n{done.stderr}")
    return round(time.perf_counter() - begin, 1)


def mib(folder: Path) -> float:
    """Size of the files below a folder in MiB."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return round(sum(sizes) / 2**20, 1)


def clean_environment(place: Path) -> dict[str, str]:
    """Environment of an installation, without variables for Python, weights or wheels."""
    kept = {
        name: os.environ[name]
        for name in ("PATH", "LANG", "PIP_CERT", "SSL_CERT_FILE", "OMP_NUM_THREADS")
        if name in os.environ
    }
    return kept | {
        "HOME": str(place),
        "TMPDIR": str(place),
        "PIP_NO_CACHE_DIR": "1",
        "PYTHON": sys.base_prefix + "/bin/python3",
    }


def make_parts(place: Path) -> Path:
    """Write a category of synthetic parts."""
    numbers: dict[str, Any] = {"num_train": 60, "num_test_good": 2, "num_test_defect": 2, "size": 256, "seed": 0}
    make_dataset(place / "data", parts=["assembly"], **numbers)
    return place / "data" / "assembly"


def measure_serving(place: Path, constraints: Path, env: dict[str, str]) -> dict[str, Any]:
    """Measure the bundle of the serving packages and its first verdict, offline and online."""
    data = make_parts(place)
    fitted = fit_model(data, out=place / "run", detector="autoencoder", options=TINY)
    model, image = export_model(fitted), next((data / "test").rglob("*.png"))
    bundle, begin = place / "bundle", time.perf_counter()
    make_bundle(bundle, extra="serve-cpu", model=model, constraints=constraints)
    seconds_of_bundle = round(time.perf_counter() - begin, 1)
    venv, other, rows = place / "venv", place / "other", place / "rows.csv"
    found: dict[str, Any] = {
        "bundle_mib": mib(bundle),
        "seconds_to_bundle": seconds_of_bundle,
        "offline": {},
        "online": {},
    }
    score: list[str | Path] = ["score", bundle / "models" / model.name, image, "--device", "cpu", "--out", rows]
    found["offline"]["check_install_check"] = timed([*OFFLINE, "sh", bundle / "install.sh", venv], env=env, cwd=place)
    found["offline"]["first_verdict"] = timed([*OFFLINE, venv / "bin" / "anomaly", *score], env=env, cwd=place)
    offline_rows = rows.read_bytes()
    found["installed_mib"] = mib(venv)
    found["empty_venv_mib"], seconds = _empty_venv(other, env, place)
    pip: list[str | Path] = [other / "bin" / "python", "-m", "pip", "install", "--quiet", "--constraint", constraints]
    found["online"]["venv"] = seconds
    found["online"]["pip_install"] = timed([*pip, f"{ROOT}[serve-cpu]"], env=env, cwd=place)
    found["online"]["first_verdict"] = timed([other / "bin" / "anomaly", *score], env=env, cwd=place)
    if rows.read_bytes() != offline_rows:
        raise SystemExit("the rows of the two installations differ")
    for where in ("offline", "online"):
        found[where]["total"] = round(sum(found[where].values()), 1)
    return found


def measure_training(place: Path, constraints: Path, env: dict[str, str]) -> dict[str, Any]:
    """Measure the bundle of the training packages: install, fit, export and score offline."""
    data = make_parts(place)
    bundle, venv, begin = place / "bundle", place / "venv", time.perf_counter()
    make_bundle(bundle, extra="train", backbone="resnet18", constraints=constraints)
    found: dict[str, Any] = {
        "bundle_mib": mib(bundle),
        "seconds_to_bundle": round(time.perf_counter() - begin, 1),
        "weights": json.loads((bundle / "MANIFEST.json").read_text(encoding="utf-8"))["weights"],
        "offline": {},
    }
    seconds = found["offline"]
    seconds["check_install_check"] = timed([*OFFLINE, "sh", bundle / "install.sh", venv], env=env, cwd=place)
    found["installed_mib"] = mib(venv)
    env = env | {"ANOMALY_WEIGHTS": str(bundle / "weights")}
    anomaly: list[str | Path] = [*OFFLINE, venv / "bin" / "anomaly"]
    options = ["--detector", "fastflow", "--model.size", "128", "--model.epochs", "1", "--model.backbone", "resnet18"]
    seconds["fit"] = timed([*anomaly, "fit", data, "--out", place / "run", *options], env=env, cwd=place)
    seconds["export"] = timed([*anomaly, "export", place / "run"], env=env, cwd=place)
    score: list[str | Path] = [
        "score",
        place / "run" / "model.onnx",
        data / "test",
        "--device",
        "cpu",
        "--out",
        place / "rows.csv",
    ]
    seconds["score"] = timed([*anomaly, *score], env=env, cwd=place)
    seconds["total"] = round(sum(seconds.values()), 1)
    found["num_rows"] = len((place / "rows.csv").read_text(encoding="utf-8").splitlines()) - 1
    return found


def _empty_venv(folder: Path, env: dict[str, str], place: Path) -> tuple[float, float]:
    seconds = timed([env["PYTHON"], "-m", "venv", folder], env=env, cwd=place)
    return mib(folder), seconds


def main() -> None:
    """Measure one extra, and add its figures to the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--extra", choices=("serve-cpu", "train"), default="serve-cpu")
    parser.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()), help="folder with enough free space")
    arguments = parser.parse_args()
    if shutil.which(OFFLINE[0]) is None or subprocess.run([*OFFLINE, "true"], check=False).returncode:
        raise SystemExit("`unshare --net` fails here; run this benchmark as root on Linux")
    if not subprocess.run([*OFFLINE, sys.executable, "-c", PROBE], capture_output=True, check=False).returncode:
        raise SystemExit("the namespace of `unshare --net` reaches a network; run on a machine where it does not")
    card = RunCard("benchmarks/bundle.py", config={"extra": arguments.extra})
    os.environ.pop("PIP_FIND_LINKS", None)  # local wheels may differ from those of the registry
    os.environ["PIP_NO_CACHE_DIR"] = "1"
    measure = measure_serving if arguments.extra == "serve-cpu" else measure_training
    with tempfile.TemporaryDirectory(dir=arguments.place) as folder:
        place = Path(folder)
        card.facts["result"] = measure(place, ROOT / "constraints.txt", clean_environment(place))
    before = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.is_file() else {}
    write_json(arguments.out, before | {arguments.extra: card.facts})


if __name__ == "__main__":
    main()
