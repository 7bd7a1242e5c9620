from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from anomaly.data.folders import find_category
from anomaly.data.inspection import Inspection, inspect
from anomaly.data.splits import find_part_groups, split
from anomaly.errors import DataError, UsageError
from anomaly.imaging.image_file import write_png

HEADER_30000 = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBBI", 13, b"IHDR", 30_000, 30_000, 8, 2, 0, 0, 0, 0)


def image(seed: int, *, height: int = 48, width: int = 64) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((height, width, 3)).astype(np.float32)
    return np.clip(128 + 200 * cv2.GaussianBlur(noise, (0, 0), 2), 0, 255).astype(np.uint8)


def make_set(root: Path, *, num_train: int = 30) -> Path:
    for i in range(num_train):
        put(root / f"train/good/{i:03}.png", image(i))
    for i in range(3):
        put(root / f"test/good/{i:03}.png", image(1000 + i))
        put(root / f"test/crack/{i:03}.png", image(2000 + i))
        put(root / f"ground_truth/crack/{i:03}_mask.png", np.eye(48, 64, dtype=np.uint8) * 255)
    return root


def put(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, array)


def inspected(root: Path, *, part_group: str | None = None, max_pixels: int = 100_000_000) -> Inspection:
    return inspect(root, part_group=part_group, seed=0, max_pixels=max_pixels)


def texts(inspection: Inspection, severity: str) -> list[str]:
    return [finding.text for finding in inspection.findings if finding.severity == severity]


def test_valid_set_has_counts_and_no_finding(tmp_path: Path) -> None:
    found = inspected(make_set(tmp_path / "part"), part_group=r"\d+")
    assert found.name == "part"
    assert found.kinds == {"train": {"good": 30}, "test": {"crack": 3, "good": 3}}
    assert found.sizes == {"train": {"64×48": 30}, "test": {"64×48": 6}}
    assert found.pixels == {"train": {"8-bit colour": 30}, "test": {"8-bit colour": 6}}
    assert found.formats == {"train": {"png": 30}, "test": {"png": 6}}
    assert (found.split.num_part_groups, found.split.num_train, found.split.num_calibration) == (30, 20, 10)
    assert found.white == 255
    assert found.findings == ()


def test_progress_counts_every_file(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    root = make_set(tmp_path)
    inspect(root, part_group=None, seed=0, max_pixels=10_000, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, 39) for i in range(39)]


def test_invalid_files_are_findings_and_do_not_stop_the_inspection(tmp_path: Path) -> None:
    root = make_set(tmp_path)
    good = root / "train/good"
    (good / "a text.png").write_text("timestamp;camera\n")
    (good / "empty.png").touch()
    (good / "huge.png").write_bytes(HEADER_30000.ljust(100, b"\0"))
    (good / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (good / "folder.png").mkdir()
    Image.fromarray(image(7)).save(good / "cut ä.jpg")
    (good / "cut ä.jpg").write_bytes((good / "cut ä.jpg").read_bytes()[:-200])
    Image.fromarray(image(8)).convert("CMYK").save(root / "test/crack/four.jpg")
    (root / "ground_truth/crack/001_mask.png").write_bytes(b"")
    found = inspected(root)
    assert {file.path: file.code for file in found.bad_files} == {
        "train/good/a text.png": "not_an_image",
        "train/good/cut ä.jpg": "truncated",
        "train/good/empty.png": "not_an_image",
        "train/good/gone.png": "missing",
        "train/good/huge.png": "too_large",
        "test/crack/four.jpg": "unsupported_pixels",
        "ground_truth/crack/001_mask.png": "not_an_image",
    }
    assert all(";" in file.message for file in found.bad_files)
    assert found.split.num_train + found.split.num_calibration == 30
    assert found.kinds["train"] == {"good": 35}
    assert found.sizes["train"] == {"64×48": 30}
    assert "7 files cannot be used" in texts(found, "error")[0]


def test_masks_are_compared_with_their_images(tmp_path: Path) -> None:
    root = make_set(tmp_path)
    masks = root / "ground_truth/crack"
    (masks / "000_mask.png").rename(masks / "999_mask.png")
    put(masks / "001_mask.png", np.zeros((48, 64), dtype=np.uint8))
    put(masks / "002_mask.png", np.ones((64, 48), dtype=np.uint8))
    put(root / "ground_truth/good/000_mask.png", np.zeros((48, 64), dtype=np.uint8))
    found = inspected(root)
    assert found.defects_without_mask == ("test/crack/000.png",)
    assert found.masks_without_image == ("ground_truth/crack/999_mask.png",)
    assert found.empty_masks == ("ground_truth/crack/001_mask.png",)
    assert found.masks_of_other_size == ("ground_truth/crack/002_mask.png",)
    assert len(texts(found, "warning")) == 4


def test_mask_is_compared_with_the_oriented_image(tmp_path: Path) -> None:
    root = make_set(tmp_path)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(image(5)).save(root / "test/crack/000.png", exif=exif)
    assert inspected(root).masks_of_other_size == ("ground_truth/crack/000_mask.png",)
    put(root / "ground_truth/crack/000_mask.png", np.eye(64, 48, dtype=np.uint8))
    assert inspected(root).masks_of_other_size == ()


def test_same_file_in_train_and_test_is_an_error(tmp_path: Path) -> None:
    root = make_set(tmp_path)
    shutil.copy(root / "train/good/004.png", root / "test/good/copy.png")
    shutil.copy(root / "test/crack/000.png", root / "test/good/000.png")
    found = inspected(root)
    assert found.equal_files == (
        ("test/crack/000.png", "test/good/000.png"),
        ("train/good/004.png", "test/good/copy.png"),
    )
    errors = texts(found, "error")
    assert "are in train and test; delete them from one: train/good/004.png = test/good/copy.png" in errors[0]
    assert "are in two kinds" in errors[1]


def test_duplicates_are_grouped_as_in_fit(tmp_path: Path) -> None:
    root = make_set(tmp_path)
    shutil.copy(root / "train/good/004.png", root / "train/good/100.png")
    put(root / "train/good/101.png", cv2.add(image(9), (6, 6, 6, 0)))
    found = inspected(root)
    assert [(p.first, p.second, p.exact) for p in found.duplicates] == [
        ("train/good/004.png", "train/good/100.png", True),
        ("train/good/009.png", "train/good/101.png", False),
    ]
    exact, near = texts(found, "warning")
    assert "have the same pixels as another; delete them: train/good/004.png = train/good/100.png" in exact
    assert "nearly equal; a split keeps them together, delete mere copies: train/good/009.png" in near
    assert found.equal_files == ()
    assert (found.split.num_part_groups, found.split.largest_group) == (30, 2)
    category = find_category(root)
    pairs = [(root / p.first, root / p.second) for p in found.duplicates]
    groups = find_part_groups(category.train, root=root, part_group=None, duplicates=pairs)
    parts = split(category.train, groups, seed=0, stopping=False)
    assert (found.split.num_train, found.split.num_calibration) == (len(parts.train), len(parts.calibration_images))
    assert found.split.num_calibration_groups == len({groups[s.path] for s in parts.calibration_images})


def test_unusual_test_images_are_findings(tmp_path: Path) -> None:
    root = make_set(tmp_path)
    Image.fromarray(image(50, height=60, width=60)).convert("L").save(root / "test/good/other.jpg")
    put(root / "test/good/trimmed.png", image(51, height=47))
    warnings = texts(inspected(root), "warning")
    assert ["size" in warnings[0], "8-bit grey" in warnings[1], "jpeg" in warnings[2]] == [True] * 3
    assert "1 test images differ in size from every training image" in warnings[0]
    assert "60×60" in warnings[0]


@pytest.mark.parametrize(("bits", "white"), [(10, 1023), (12, 4095), (16, 65535)])
def test_white_follows_the_largest_stored_value(tmp_path: Path, bits: int, white: int) -> None:
    for i in range(3):
        values = np.random.default_rng(i).integers(0, 2**bits, (48, 64)).astype(np.uint16)
        put(tmp_path / f"{i}.png", values)
    found = inspected(tmp_path)
    assert found.white == white
    assert found.pixels["train"] == {"16-bit grey": 3}
    put(tmp_path / "8.png", image(1))
    assert any("save all with the same depth" in text for text in texts(inspected(tmp_path), "warning"))


def test_oblong_images_get_a_note(tmp_path: Path) -> None:
    for i in range(4):
        put(tmp_path / f"零件 {i}.png", image(i, height=40 + i, width=90))
    found = inspected(tmp_path)
    assert found.sizes["train"] == {"90×40": 1, "90×41": 1, "90×42": 1, "90×43": 1}
    assert any("letterbox" in text for text in texts(found, "note"))


@pytest.mark.parametrize("num", [1, 2, 19])
def test_too_few_images_are_an_error_of_the_split(tmp_path: Path, num: int) -> None:
    for i in range(num):
        put(tmp_path / f"{i}.png", image(i))
    found = inspected(tmp_path)
    assert (found.split.num_part_groups, found.split.num_train, found.split.num_calibration) == (num, 0, 0)
    assert found.split.error is not None
    assert f"{num} good images" in found.split.error
    assert found.split.error in texts(found, "error")
    assert any("no test images" in text for text in texts(found, "note"))


def test_set_without_a_valid_image_is_inspected(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    found = inspected(tmp_path)
    assert found.split.error is not None
    assert found.sizes == {"train": {}, "test": {}}


def test_part_group_that_fits_no_image_is_an_error_of_the_split(tmp_path: Path) -> None:
    root = make_set(tmp_path)
    error = inspected(root, part_group="lot").split.error
    assert error is not None
    assert "gives no group to 30 of 30 images" in error
    with pytest.raises(UsageError, match="invalid regular expression"):
        inspected(root, part_group="(")


def test_images_outside_the_layout_are_listed(tmp_path: Path) -> None:
    root = make_set(tmp_path)
    put(root / "train/bad/0.png", image(70))
    put(root / "test/loose.png", image(71))
    assert inspected(root).unused == ("test/loose.png", "train/bad/0.png")


def test_missing_folder_file_and_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        inspected(tmp_path / "gone")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match="is a file"):
        inspected(tmp_path / "notes.txt")
    with pytest.raises(DataError, match="holds no image"):
        inspected(tmp_path)


def test_dictionary_survives_json(tmp_path: Path) -> None:
    found = inspected(make_set(tmp_path))
    back = json.loads(json.dumps(found.to_dict()))
    assert back["split"]["num_calibration"] == 10
    assert [finding["severity"] for finding in back["findings"]] == ["note"]


def test_test_images_are_not_decoded(tmp_path: Path) -> None:
    root = make_set(tmp_path)
    path = root / "test/good/000.png"
    data = bytearray(path.read_bytes())
    at = data.index(b"IDAT") + 4
    data[at : at + 20] = bytes(20)
    path.write_bytes(data)  # a valid header before undecodable pixels
    assert inspected(root).bad_files == ()


def test_inspection_takes_a_string_and_has_defaults(tmp_path: Path) -> None:
    root = make_set(tmp_path / "part")
    assert inspect(str(root)) == inspected(root)
    with pytest.raises(UsageError, match=r"root is int 3: give a path as str or pathlib\.Path"):
        inspect(3)  # type: ignore[arg-type]


def test_inspection_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(make_set(tmp_path / "part"))
    assert capsys.readouterr() == ("", "")
