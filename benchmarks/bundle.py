"""Bundles for machines without a network: how large, and how long from `pip install` to the first verdict, off and on line.

    python -m benchmarks.bundle --out benchmarks/results/bundle.json [--extra train]

`anomaly offline` writes a bundle of the serving island from the network, with a model that was fitted here on synthetic parts.
Then, in a network namespace of its own that has no network (`unshare -n`, which wants root), the bundle installs itself and
its `anomaly score` judges one image; the same is done from the network by `pip install .[serve-cpu]`. With
`--extra train` a bundle with torch and ResNet-18, whose `anomaly fit` trains on synthetic parts, exports and scores, all
without a network.

pip keeps no cache here, and no variable of this environment reaches what is installed. Seconds are those of one go: what comes
from a network depends on it. The entries that are not measured again stay in the file.
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
from anomaly.training.fit import fit

ROOT = Path(__file__).resolve().parent.parent
TINY = {"size": 64, "width": 8, "epochs": 2}
OFFLINE = ("unshare", "--net")
PROBE = "import socket; socket.create_connection(('1.1.1.1', 53), timeout=3)"


def timed(command: Sequence[str | Path], *, env: dict[str, str], cwd: Path) -> float:
    """Seconds of a command, whose words are shown where it fails."""
    begin = time.perf_counter()
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}:\n{done.stdout}\n{done.stderr}")
    return round(time.perf_counter() - begin, 1)


def mib(folder: Path) -> float:
    """Size of the files below a folder."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return round(sum(sizes) / 2**20, 1)


def clean_environment(place: Path) -> dict[str, str]:
    """What an installation sees: none of this session's variables of Python, of weights, or of places to find wheels."""
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
    """A category of synthetic parts."""
    numbers = {"num_train": 60, "num_test_good": 2, "num_test_defect": 2, "size": 256, "seed": 0}
    make_dataset(place / "data", parts=["assembly"], **numbers, progress=lambda *_: None)
    return place / "data" / "assembly"


def measure_serving(place: Path, constraints: Path, env: dict[str, str]) -> dict[str, Any]:
    """The bundle of the serving island and its first verdict, without a network and with one."""
    data = make_parts(place)
    run = fit(data, out=place / "run", detector="autoencoder", model=TINY)
    model, image = export_model(run), next((data / "test").rglob("*.png"))
    bundle, begin = place / "bundle", time.perf_counter()
    make_bundle(bundle, extra="serve-cpu", model=str(model), constraints=str(constraints))
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
        raise SystemExit("the two installations give other rows")
    for where in ("offline", "online"):
        found[where]["total"] = round(sum(found[where].values()), 1)
    return found


def measure_training(place: Path, constraints: Path, env: dict[str, str]) -> dict[str, Any]:
    """The bundle of the training island with a backbone: installed, fitted, exported and scored without a network."""
    data = make_parts(place)
    bundle, venv, begin = place / "bundle", place / "venv", time.perf_counter()
    make_bundle(bundle, extra="train", backbone="resnet18", constraints=str(constraints))
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
    """Measure one extra, and write it beside what is in the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--extra", choices=("serve-cpu", "train"), default="serve-cpu")
    parser.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()), help="where there is room")
    asked = parser.parse_args()
    if shutil.which(OFFLINE[0]) is None or subprocess.run([*OFFLINE, "true"], check=False).returncode:
        raise SystemExit(
            "`unshare --net` does not run here (it wants root and Linux): there is no proof without a network"
        )
    if not subprocess.run([*OFFLINE, sys.executable, "-c", PROBE], capture_output=True, check=False).returncode:
        raise SystemExit("the namespace without a network reaches one")
    card = RunCard("benchmarks/bundle.py", config={"extra": asked.extra})
    os.environ.pop("PIP_FIND_LINKS", None)  # wheels that lie here are not those of the registry
    os.environ["PIP_NO_CACHE_DIR"] = "1"
    measure = measure_serving if asked.extra == "serve-cpu" else measure_training
    with tempfile.TemporaryDirectory(dir=asked.place) as folder:
        place = Path(folder)
        card.facts["result"] = measure(place, ROOT / "constraints.txt", clean_environment(place))
    before = json.loads(asked.out.read_text(encoding="utf-8")) if asked.out.is_file() else {}
    write_json(asked.out, before | {asked.extra: card.facts})


if __name__ == "__main__":
    main()
