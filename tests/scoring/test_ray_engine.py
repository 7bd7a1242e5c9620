"""The Ray engine on two local nodes: rows equal those of one machine, byte for byte, even with a lost node."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anomaly.commands.main import run as cli
from anomaly.errors import UsageError
from anomaly.inference.scorer import OnnxScorer
from anomaly.runs.run_files import check_manifest, read_ledger
from anomaly.runs.score_run import RunOptions, score_run
from anomaly.scoring.pipeline import score_images
from anomaly.scoring.settings import DEFAULT_PRODUCT, Settings
from anomaly.scoring.sources import open_source
from anomaly.scoring.windows import ScoredImage

ray = pytest.importorskip("ray", reason="the extra [cluster] is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # warnings of Ray itself
NUM_IMAGES, BATCH = 240, 2


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of two nodes with two processors each, and the second node."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    memory = 200 * 2**20
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": memory})
    second = cluster.add_node(num_cpus=2, object_store_memory=memory)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster, second
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def images(category: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Links to the test images, and an invalid file."""
    folder = tmp_path_factory.mktemp("night")
    sources = sorted((category / "test").rglob("*.png"))
    for n in range(NUM_IMAGES):
        os.link(sources[n % len(sources)], folder / f"{n:04d}.png")
    (folder / "0100b.png").write_bytes(b"not an image")
    return folder


def scored(folder: Path, *, engine: Any, images: Path, model: Path) -> Path:
    """Score into a run, with an overlay of every defect."""
    settings = Settings(threshold=1.0, batch_size=BATCH, max_pixels=10**6, num_threads=2, measure=True)
    options = RunOptions(maps=True)
    score_run(
        open_source(str(images)), name=str(images), models={DEFAULT_PRODUCT: model},
        scorers={DEFAULT_PRODUCT: OnnxScorer(model, device="cpu", num_threads=1)},
        settings=settings, folder=folder, options=options, resume=False, engine=engine,
    )  # fmt: skip
    check_manifest(folder)
    return folder


def files(run: Path) -> dict[str, bytes]:
    """Name -> bytes of the files that must not depend on the engine."""
    paths = [path for path in run.rglob("*") if path.suffix in (".csv", ".png", ".bin") or path.name == "summary.json"]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in paths}


def test_lost_node_changes_no_row(nodes: Any, images: Path, fitted_plate: Path, tmp_path: Path) -> None:
    from anomaly.scoring.ray_engine import RayEngine

    cluster, second = nodes
    model = fitted_plate / "model.onnx"
    spread = RayEngine(address="auto", num_scorers=2, num_decoders=2, overlays_of="defect")
    lost: list[int] = []

    def losing_a_node(*arguments: Any, **named: Any) -> Iterator[ScoredImage]:
        for number, one in enumerate(spread(*arguments, **named)):
            if number == BATCH:
                cluster.remove_node(second, allow_graceful=False)
                while sum(node["Alive"] for node in ray.nodes()) > 1:  # the cluster notices the loss after a while
                    time.sleep(0.1)
                lost.append(number)
            yield one

    here = scored(tmp_path / "here", engine=score_images, images=images, model=model)
    there = scored(tmp_path / "there", engine=losing_a_node, images=images, model=model)
    assert lost == [BATCH]
    assert files(there) == files(here)
    assert len(list((there / "overlays").iterdir())) > 0
    assert (there / "rows.csv").read_text().count("not_an_image") == 1
    assert read_ledger(there)[-1]["event"] == "end"
    assert read_ledger(there)[-1]["num"] == NUM_IMAGES + 1


def test_wrong_use_is_refused(
    fitted_plate: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from anomaly.scoring.ray_engine import RayEngine

    with pytest.raises(UsageError, match="0 scorers and 2 decoders"):
        RayEngine(address="local", num_scorers=0, num_decoders=2, overlays_of="none")
    command = ["score", str(fitted_plate / "model.onnx"), str(images), "--engine", "ray"]
    assert cli([*command, "--out", str(tmp_path / "rows.csv")]) == 2
    assert "--engine ray scores a list into a run" in capsys.readouterr().err
