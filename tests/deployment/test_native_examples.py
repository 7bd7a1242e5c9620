"""The C++ and C# examples give the verdicts of `anomaly score`. Each test needs the tools to build its example.

ANOMALY_ORT_INCLUDE     folder of onnxruntime_cxx_api.h; default: the system's include folders
ANOMALY_CSHARP_EXAMPLE  command that runs the built C# example
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from anomaly.commands.main import run
from anomaly.imaging.image_file import write_png
from anomaly.imaging.overlay import Resize, enlarge_map
from anomaly.imaging.regions import find_regions
from anomaly.inference.artifact import PREFIX, load_graph, read_metadata
from anomaly.inference.difference import relative_difference
from anomaly.inference.golden import golden_image
from anomaly.system.processors import has_cuda_device
from tests.plates import draw_part, draw_scratch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CPP, CSHARP = ROOT / "deploy" / "cpp", ROOT / "deploy" / "csharp"
INCLUDES = [Path(name) for name in (os.environ.get("ANOMALY_ORT_INCLUDE", ""), "/usr/include/onnxruntime",
                                    "/usr/local/include/onnxruntime", "/usr/local/include") if name]  # fmt: skip
LANGUAGES = ["cpp", "csharp"]
Exchange = Callable[[list[str]], list[str]]
Example = Callable[..., "subprocess.CompletedProcess[str]"]


def require(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def build(*command: str | Path) -> None:
    output = subprocess.run(command, capture_output=True, text=True, check=False)
    assert output.returncode == 0, output.stdout + output.stderr


@pytest.fixture(scope="module", params=LANGUAGES)
def exchange(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    """The example without ONNX Runtime: lines in, lines out."""
    program, driver = tmp_path_factory.mktemp("pure") / "pure.exe", ROOT / "tests" / "deployment" / "native"
    start: list[str | Path] = [program]
    if request.param == "cpp":
        require("g++")
        sources = [driver / "pure.cpp", CPP / "contract.cpp", CPP / "json.cpp"]
        strict = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
        build("g++", *strict, "-I", CPP, *sources, "-o", program)
    else:
        require("mcs", "mono")
        build("mcs", "-warnaserror", f"-out:{program}", CSHARP / "Json.cs", CSHARP / "Contract.cs", driver / "Pure.cs")
        start = ["mono", program]

    def answer(lines: list[str]) -> list[str]:
        output = subprocess.run(start, input="\n".join(lines), capture_output=True, text=True, check=True, timeout=60)
        answers = output.stdout.splitlines()
        assert len(answers) == len(lines)
        return answers

    return answer


@pytest.fixture(scope="module", params=LANGUAGES)
def example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Example:
    """The whole example, linked with the ONNX Runtime of this Python."""
    start = shlex.split(os.environ.get("ANOMALY_CSHARP_EXAMPLE", ""))
    if request.param == "csharp" and not start:
        pytest.skip("ANOMALY_CSHARP_EXAMPLE is not set: it is the command that runs the C# example")
    if request.param == "cpp":
        start = [str(cpp_example(tmp_path_factory.mktemp("cpp")))]

    def score(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*start, *arguments], capture_output=True, text=True, check=False, timeout=60)

    return score


def cpp_example(folder: Path) -> Path:
    require("g++", "cmake")
    include = next((path for path in INCLUDES if (path / "onnxruntime_cxx_api.h").is_file()), None)
    if include is None:
        pytest.skip("onnxruntime_cxx_api.h is missing: set ANOMALY_ORT_INCLUDE to its folder")
    import onnxruntime

    libraries = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    if not libraries:
        pytest.skip("libonnxruntime.so is missing in the ONNX Runtime of this Python")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # names for the linker and the loader
        (folder / name).symlink_to(libraries[-1])
    found = [f"-DONNXRUNTIME_INCLUDE={include}", f"-DONNXRUNTIME_LIBRARY={folder / 'libonnxruntime.so'}"]
    flags = ["-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1 -Werror"]
    build("cmake", "-S", CPP, "-B", folder / "build", *found, *flags)
    build("cmake", "--build", folder / "build", "--parallel", "2")
    return folder / "build" / "anomaly_score"


def smooth_map(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Draw grey bumps on a few levels, with equal values and touching corners."""
    coarse = rng.integers(0, 5, (-(-height // 3), -(-width // 3)))
    values = np.kron(coarse, np.ones((3, 3)))[:height, :width] * 0.4
    return (values + rng.choice([0.0, 0.01], (height, width))).astype(np.float32)


def test_regions_equal_those_of_the_scorer(exchange: Exchange, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines, expected = [], []
    sizes = [(8, 8, 8, 8), (8, 8, 61, 40), (16, 12, 90, 120), (12, 16, 7, 5), (1, 1, 9, 4), (5, 7, 33, 100)]
    resizes: list[Resize] = ["stretch", "letterbox"]
    for number, (h, w, height, width) in enumerate(sizes * 3):
        anomaly_map = smooth_map(rng, h, w)
        anomaly_map.tofile(tmp_path / f"{number}.f32")
        for resize in resizes:
            for score, threshold in ((3.0, 0.85), (0.5, 1.05), (3.0, 2.5), (0.1, 2.5)):
                rejected = score > threshold
                regions = []
                if rejected or float(anomaly_map.max()) > threshold:
                    enlarged = enlarge_map(anomaly_map, height=height, width=width, resize=resize)
                    regions = [vars(r) for r in find_regions(enlarged, threshold=threshold, rejected=rejected)]
                expected.append((rejected, regions))
                lines.append(f"judge {tmp_path}/{number}.f32 {h} {w} {height} {width} {resize} {score} {threshold}")
    answers = [json.loads(answer) for answer in exchange(lines)]
    assert {len(regions) > 1 for _, regions in expected} == {True, False}
    assert any(region["weak"] for _, regions in expected for region in regions)
    for line, verdict, (rejected, regions) in zip(lines, answers, expected, strict=True):
        assert verdict["verdict"] == ("defect" if rejected else "good")
        for region in verdict["regions"]:
            region["peak"] = float(np.float32(region["peak"]))
        order = [(-region["peak"], region["y"], region["x"]) for region in verdict["regions"]]
        assert order == sorted(order), line
        assert sorted(map(str, verdict["regions"])) == sorted(str(region) for region in regions), line


def test_map_that_is_not_finite_is_an_error(exchange: Exchange, tmp_path: Path) -> None:
    for name, value in (("nan", np.nan), ("infinite", np.inf)):
        np.array([0.0, value, 0.0, 0.0], dtype=np.float32).tofile(tmp_path / name)
    for answer in exchange([f"judge {tmp_path}/{name} 2 2 4 4 stretch 0.5 1" for name in ("nan", "infinite")]):
        assert answer.startswith("error: the score or the map is not finite")


def test_buffers_with_any_stride_are_packed(exchange: Exchange, tmp_path: Path) -> None:
    rng, (height, width) = np.random.default_rng(1), (5, 7)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    grey, deep = image[..., 0], rng.integers(0, 65536, (height, width), dtype=np.uint16)
    white = 4095
    dark = np.minimum((2 * 255 * deep.astype(np.int64) + white) // (2 * white), 255).astype(np.uint8)
    rows: dict[str, tuple[NDArray[Any], NDArray[np.uint8]]] = {
        "mono8": (grey, np.repeat(grey[..., None], 3, axis=2)),
        "mono16": (deep, np.repeat(dark[..., None], 3, axis=2)),
        "rgb8": (image, image),
        "bgr8": (image[..., ::-1], image),
    }
    lines, expected = [], []
    for name, (stored, packed) in rows.items():
        data = np.ascontiguousarray(stored).view(np.uint8).reshape(height, -1)
        for padding in (0, 13):
            padded = np.concatenate([data, rng.integers(0, 256, (height, padding), dtype=np.uint8)], axis=1)
            path, stride = tmp_path / f"{name}{padding}", padded.shape[1]
            padded.tofile(path)
            lines.append(f"pack {name} {path} 0 {width} {height} {stride} {white}")
            lines.append(f"pack {name} {path} {stride * (height - 1)} {width} {height} {-stride} {white}")
            expected += [packed.tobytes().hex(), packed[::-1].tobytes().hex()]
    assert exchange(lines) == expected
    path = tmp_path / "mono80"
    refused = exchange(
        [f"pack mono8 {path} 0 {width} {height} {width - 1} 255", f"pack mono8 {path} 0 0 {height} 9 255"]
    )
    assert [answer.split(" ")[:2] for answer in refused] == [["error:", "a"]] * 2


def write_lines(path: Path, model: Path, **changed: str) -> None:
    """Write the metadata of a model as lines; `changed` replaces values, and an empty value removes a line."""
    stored = {p.key: p.value for p in load_graph(model).metadata_props} | {PREFIX + k: v for k, v in changed.items()}
    path.write_text("\n".join(f"{key}={value}" for key, value in stored.items() if value) + "\n", encoding="utf-8")


def test_metadata_are_read_and_unknown_values_are_refused(
    exchange: Exchange, fitted_plate: Path, tmp_path: Path
) -> None:
    model = fitted_plate / "model.onnx"
    metadata = read_metadata(load_graph(model), name="model")
    tolerance = {"b": 0.5, "a": 1e-2}
    golden = {"score": -1.5e-3, "map_maximum": 2, "png": '\u00e9 \\ " \U0001f600', "tolerance": tolerance}
    changes: dict[str, dict[str, str]] = {
        "unchanged": {},
        "fixed": {"fixed": " [4 ,72,\t88] ", "golden": json.dumps(golden), "resize": '"letterbox"', "white": "4095"},
        "for large images": {"tiling": '{"mode": "seamless"}'},
        "older": {"contract": "2"},
        "newer": {"contract": "4"},
        "foreign": {"contract": ""},
        "a sampler": {"kind": '"sampler"'},
        "another resize": {"resize": '"native"'},
        "invalid JSON": {"golden": '{"score": 1,}'},
        "half a pair": {"resize": r'"\ud83d"'},
        "another type": {"white": '"4095"'},
    }
    lines = []
    for number, changed in enumerate(changes.values()):
        write_lines(tmp_path / str(number), model, **changed)
        lines.append(f"metadata {tmp_path / str(number)}")
    first, fixed, *refused = exchange(lines)
    resize, white, *numbers = first.split(" ")
    stored = metadata.golden
    assert (resize, int(white), *map(float, numbers[:3])) == (
        metadata.resize, metadata.white, metadata.alpha, stored.score, stored.map_maximum,
    )  # fmt: skip
    words = fixed.split(" ")
    assert words[:2] == ["letterbox", "4095"]
    assert [float(word) for word in words[3:5]] == [-1.5e-3, 2.0]
    assert (words[5], float(words[6]), words[7], float(words[8]), *words[9:]) == ("a", 0.01, "b", 0.5, "4", "72", "88")
    messages = [
        "a model for large images", "follows contract 2, this program reads contract 3: export it again",
        "follows contract 4", "has no 'anomaly.contract'", "is a sampler", "resize 'native' is not supported",
        "invalid JSON", "half a surrogate pair", "another type",
    ]  # fmt: skip
    for answer, message in zip(refused, messages, strict=True):
        assert answer.startswith("error: ")
        assert message in answer


def as_buffer(path: Path, image: NDArray[np.uint8], *, pixels: str, padding: int) -> list[str | Path]:
    """Write an image as a camera's buffer, and return the arguments that describe it."""
    stored = {"mono8": image[..., 0], "rgb8": image, "bgr8": image[..., ::-1]}[pixels]
    rows = np.ascontiguousarray(stored).reshape(len(image), -1)
    rows = np.concatenate([rows, np.full((len(rows), padding), 99, dtype=np.uint8)], axis=1)
    rows.tofile(path)
    return [path, pixels, str(image.shape[1]), str(len(image)), str(rows.shape[1])]


def scored(model: Path, folder: Path, out: Path, *options: str) -> list[dict[str, Any]]:
    assert run(["score", str(model), str(folder), "--out", str(out), "--device", "cpu", *options]) == 0
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def assert_same(verdict: dict[str, Any], row: dict[str, Any]) -> None:
    assert relative_difference(np.array(row["score"]), np.array(verdict["score"])) <= 1e-5
    assert (verdict["verdict"], verdict["threshold"]) == (row["verdict"], row["threshold"])
    assert len(verdict["regions"]) == len(row["regions"])
    for ours, theirs in zip(verdict["regions"], row["regions"], strict=True):
        assert relative_difference(np.array(theirs.pop("peak")), np.array(ours.pop("peak"))) <= 1e-5
        assert ours == theirs


def test_example_gives_the_verdicts_of_the_verb(example: Example, model: Path, tmp_path: Path) -> None:
    images, buffers = tmp_path / "images", []
    images.mkdir()
    for number in range(6):
        image = draw_part(number) if number % 3 == 0 else draw_scratch(draw_part(number), number)[0]
        pixels = ["mono8", "rgb8", "bgr8"][number % 3]
        if pixels == "mono8":
            image = np.repeat(image[:, 5:, :1], 3, axis=2)  # grey, and of another width
        write_png(images / f"{number}.png", image)
        buffers.append(as_buffer(tmp_path / f"{number}.raw", image, pixels=pixels, padding=[0, 24][number % 2]))
    verdicts = set()
    for options, num in (([], 6), (["--threshold", "0.25"], 2), (["--threshold", "1e9"], 2)):
        rows = scored(model, images, tmp_path / "rows.jsonl", *options)
        for buffer, row in zip(buffers[:num], rows[:num], strict=True):
            output = example(model, *buffer, *options)
            assert output.returncode == 0, output.stderr
            verdict = json.loads(output.stdout)
            verdicts.add(verdict["verdict"])
            assert_same(verdict, row)
    assert verdicts == {"good", "defect"}


def test_example_checks_the_golden_image(example: Example, model: Path, tmp_path: Path) -> None:
    golden = read_metadata(load_graph(model), name="model").golden
    image = golden_image(golden)
    write_png(_folder(tmp_path / "golden") / "golden.png", image)
    (row,) = scored(model, tmp_path / "golden", tmp_path / "rows.jsonl")
    output = example(model, *as_buffer(tmp_path / "golden.raw", image, pixels="rgb8", padding=3), "--golden")
    assert output.returncode == 0, output.stderr
    verdict = json.loads(output.stdout)
    assert relative_difference(np.array(golden.map_maximum), np.array(verdict["map_maximum"])) <= 1e-5
    assert_same(verdict, row)
    other = as_buffer(tmp_path / "other.raw", draw_scratch(image, 1)[0], pixels="rgb8", padding=0)
    output = example(model, *other, "--golden")
    assert output.returncode == 1
    assert "this runtime computes other results" in output.stderr


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def with_metadata(model: Path, changed: Path, **values: str) -> Path:
    graph = onnx.load(model)
    for entry in graph.metadata_props:
        entry.value = values.get(entry.key.removeprefix(PREFIX), entry.value)
    onnx.save(graph, changed)
    return changed


def test_example_refuses_invalid_models_buffers_and_options(example: Example, model: Path, tmp_path: Path) -> None:
    buffer = as_buffer(tmp_path / "image.raw", draw_part(0), pixels="rgb8", padding=0)
    with_metadata(model, tmp_path / "older.onnx", contract="2")
    (tmp_path / "broken.onnx").write_bytes(model.read_bytes()[:1000])
    for name, message in (("older.onnx", "export it again"), ("broken.onnx", ""), ("missing.onnx", "")):
        output = example(tmp_path / name, *buffer)
        assert output.returncode == 1
        assert message in output.stderr
    output = example(model, *buffer[:3], "1000", *buffer[4:])
    assert (output.returncode, output.stdout) == (1, "")
    assert "fewer than its rows need" in output.stderr
    if not has_cuda_device():  # no fallback to another device
        output = example(model, *buffer, "--device", "cuda")
        assert (output.returncode, output.stdout) == (1, "")
    for wrong in (
        [model],
        [model, *buffer[:2], "wide", *buffer[3:]],
        [model, *buffer, "--threshold"],
        [model, *buffer, "--threshold", "much"],
        [model, *buffer, "--device", "tpu"],
        [model, *buffer, "--wide"],
    ):
        assert example(*wrong).returncode == 2


def test_fixed_file_refuses_another_size(example: Example, model: Path, tmp_path: Path) -> None:
    fixed = with_metadata(model, tmp_path / "fixed.onnx", fixed="[2, 72, 88]")
    image = draw_scratch(draw_part(3), 3)[0]
    write_png(_folder(tmp_path / "images") / "0.png", image)
    (row,) = scored(fixed, tmp_path / "images", tmp_path / "rows.jsonl")
    output = example(fixed, *as_buffer(tmp_path / "a.raw", image, pixels="bgr8", padding=5))
    assert output.returncode == 0, output.stderr
    assert_same(json.loads(output.stdout), row)
    output = example(fixed, *as_buffer(tmp_path / "b.raw", image[:60], pixels="bgr8", padding=0))
    assert output.returncode == 1
    assert "fixed to 88x72" in output.stderr


def test_build_files_name_all_sources() -> None:
    listed = (CPP / "CMakeLists.txt").read_text(encoding="utf-8")
    assert set(re.findall(r"\w+\.cpp", listed)) == {source.name for source in CPP.glob("*.cpp")}
    project = xml.etree.ElementTree.parse(CSHARP / "AnomalyScore.csproj").getroot()
    assert [package.get("Include") for package in project.iter("PackageReference")] == ["Microsoft.ML.OnnxRuntime"]
