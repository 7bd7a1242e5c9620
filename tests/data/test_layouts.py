"""Small copies of the layouts of published data sets, read as categories and inspected."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from anomaly.data.folders import Category, Sample, find_categories, find_category
from anomaly.data.inspection import Inspection, inspect
from anomaly.errors import DataError
from anomaly.evaluation.evaluate import check_mask
from anomaly.imaging.image_file import read_mask

HEIGHT, WIDTH = 24, 32
NUM_TRAIN, NUM_CALIBRATION = 20, 10


def image(path: Path) -> None:
    """Write an image that depends on its path, in the format of its ending."""
    noise = np.random.default_rng(list(str(path).encode())).standard_normal((HEIGHT, WIDTH, 3)).astype(np.float32)
    pixels = np.clip(128 + 200 * cv2.GaussianBlur(noise, (0, 0), 2), 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def mask(path: Path, *, value: int = 255) -> None:
    """Write a mask with 6 pixels of a value."""
    pixels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    pixels[4:6, 7:10] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def make_mpdd(root: Path) -> Path:
    for i in range(NUM_TRAIN):
        image(root / f"train/good/{i:03}.PNG")
    for i in range(3):
        image(root / f"test/good/{i:03}.png")
        image(root / f"test/hole/{i:03}.png")
        mask(root / f"ground_truth/hole/{i:03}_mask.png")
    return root


def make_mvtec2(root: Path) -> Path:
    for i in range(NUM_TRAIN):
        image(root / f"train/good/{i:03}_regular.png")
    for i in range(NUM_CALIBRATION):
        image(root / f"validation/good/{i:03}_regular.png")
    for i in range(3):
        image(root / f"test_public/good/{i:03}_regular.png")
        image(root / f"test_public/bad/{i:03}_overexposed.png")
        mask(root / f"test_public/ground_truth/bad/{i:03}_overexposed_mask.png")
        image(root / f"test_private/{i:03}.png")
        image(root / f"test_private_mixed/{i:03}.png")
    return root


def make_btad(root: Path) -> Path:
    for i in range(NUM_TRAIN):
        image(root / f"train/ok/{i:04}.{'bmp' if i % 2 else 'png'}")
    for i in range(3):
        image(root / f"test/ok/{i:04}.bmp")
        image(root / f"test/ko/{i:04}.bmp")
        mask(root / f"ground_truth/ko/{i:04}.{('png', 'bmp', 'PNG')[i]}")
    return root


def make_kolektorsdd2(root: Path) -> Path:
    for i in range(NUM_TRAIN + 3):
        image(root / f"train/{10000 + i}.png")
        mask(root / f"train/{10000 + i}_GT.png", value=255 * (i % 10 == 4))  # 4, 14
    for i in range(5):
        image(root / f"test/{20000 + i}.png")
        mask(root / f"test/{20000 + i}_GT.png", value=255 * (i in (1, 2, 3)))
    return root


def make_visa(root: Path) -> Path:
    """Write one object of a data set of two, and the table beside it."""
    name = root.name
    rows = [["object", "split", "label", "image", "mask"], ["pcb9", "test", "normal", "pcb9/gone.JPG", ""]]
    for i in range(NUM_TRAIN + 3):
        image(root / f"Data/Images/Normal/{i:04}.JPG")
        rows.append([name, "test" if i % 8 == 3 else "train", "normal", f"{name}/Data/Images/Normal/{i:04}.JPG", ""])
    for i in range(3):
        image(root / f"Data/Images/Anomaly/{i:03}.JPG")
        mask(root / f"Data/Masks/Anomaly/{i:03}.png", value=i + 1)
        files = f"{name}/Data/Images/Anomaly/{i:03}.JPG", f"{name}/Data/Masks/Anomaly/{i:03}.png"
        rows.append([name, "test", "anomaly", *files])
    write_table(root, rows)
    return root


def table_of(root: Path) -> Path:
    return root.parent / "split_csv" / "1cls.csv"


def read_table(root: Path) -> list[list[str]]:
    with table_of(root).open(newline="") as file:
        return list(csv.reader(file))


def write_table(root: Path, rows: list[list[str]]) -> None:
    table_of(root).parent.mkdir(parents=True, exist_ok=True)
    with table_of(root).open("w", newline="") as file:
        csv.writer(file).writerows(rows)


LAYOUTS = {
    "mpdd": (make_mpdd, "hole"),
    "mvtec2": (make_mvtec2, "bad"),
    "btad": (make_btad, "ko"),
    "kolektorsdd2": (make_kolektorsdd2, "defect"),
    "visa": (make_visa, "anomaly"),
}
every_layout = pytest.mark.parametrize(("make", "kind"), LAYOUTS.values(), ids=LAYOUTS.keys())
Make = Callable[[Path], Path]


def inspected(root: Path) -> Inspection:
    return inspect(root, max_pixels=10_000)


def names(root: Path, samples: tuple[Sample, ...]) -> list[str]:
    return [sample.path.relative_to(root).as_posix() for sample in samples]


def check_category(category: Category, *, kind: str, num_calibration: int) -> None:
    """Check counts, labels, kinds and masks of a copy written above."""
    assert len(category.train) >= NUM_TRAIN
    assert len(category.calibration_images) == num_calibration
    good = (*category.train, *category.calibration_images, *(s for s in category.test if not s.label))
    assert all((s.kind, s.label, s.mask_path) == ("good", False, None) for s in good)
    assert 2 <= len(good) - len(category.train) - num_calibration <= 3
    defects = [s for s in category.test if s.label]
    assert [s.kind for s in defects] == [kind] * 3
    for sample in defects:
        assert sample.mask_path is not None
        assert sample.mask_path.stem.startswith(sample.path.stem)
        assert read_mask(sample.mask_path, max_pixels=10_000).sum() == 6
        check_mask(sample, height=HEIGHT, width=WIDTH, max_pixels=10_000)
    assert category.stray_masks == ()


@every_layout
def test_every_layout_is_recognised(make: Make, kind: str, tmp_path: Path) -> None:
    root = make(tmp_path / "part")
    category = find_category(root)
    assert (category.root, category.name) == (root, "part")
    check_category(category, kind=kind, num_calibration=NUM_CALIBRATION if make is make_mvtec2 else 0)
    assert find_categories(root) == (root,)


@every_layout
def test_every_layout_is_inspected_without_findings(make: Make, kind: str, tmp_path: Path) -> None:
    found = inspected(make(tmp_path / "part"))
    assert [f.text for f in found.findings if not f.text.startswith("every image counts")] == []
    assert found.kinds["test"][kind] == 3
    assert found.unused == found.masks_without_image == ()
    assert found.split.num_train + found.split.num_calibration == sum(
        found.kinds[split]["good"] for split in ("train", "calibration_images") if split in found.kinds
    )


@every_layout
def test_every_layout_is_read_through_a_link(make: Make, kind: str, tmp_path: Path) -> None:
    make(tmp_path / "set" / "part")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "set" / "part")
    category = find_category(link)
    assert category.name == "part"
    check_category(category, kind=kind, num_calibration=NUM_CALIBRATION if make is make_mvtec2 else 0)
    assert all(link in s.path.parents for s in (*category.train, *category.calibration_images, *category.test))
    assert inspected(link).unused == ()


@every_layout
def test_mask_without_image_is_listed_and_image_without_mask_is_not_good(make: Make, kind: str, tmp_path: Path) -> None:
    root = make(tmp_path / "part")
    removed, kept, _ = (s for s in find_category(root).test if s.label)
    assert removed.mask_path is not None
    assert kept.mask_path is not None
    removed.path.unlink()
    renamed = kept.mask_path.rename(kept.mask_path.with_name("lost_GT.png"))
    if make is make_visa:
        rows = [row for row in read_table(root) if not row[3].endswith(f"Anomaly/{removed.path.name}")]
        write_table(root, [[*row[:4], ""] if row[3].endswith(f"Anomaly/{kept.path.name}") else row for row in rows])
    category = find_category(root)
    assert set(category.stray_masks) == {removed.mask_path, renamed}
    assert all(s.label or s.path != kept.path for s in (*category.train, *category.test))
    found = inspected(root)
    assert len(found.masks_without_image) == 2
    if make is make_kolektorsdd2:  # its images without a mask have no label
        assert found.unused == (f"test/{kept.path.name}",)
    else:
        assert found.unused == ()
        assert len(found.defects_without_mask) == 1


@every_layout
def test_foreign_image_is_unused(make: Make, kind: str, tmp_path: Path) -> None:
    root = make(tmp_path / "part")
    image(root / "notes/sketch.png")
    assert inspected(root).unused == ("notes/sketch.png",)


def test_visa_converted_to_folders_is_read_as_mvtec(tmp_path: Path) -> None:
    raw, root = make_visa(tmp_path / "raw" / "candle"), tmp_path / "visa_pytorch" / "candle"
    for sample in (category := find_category(raw)).train + category.test:
        split = "train" if sample in category.train else "test"
        to = root / split / ("bad" if sample.label else "good") / sample.path.name
        to.parent.mkdir(parents=True, exist_ok=True)
        to.symlink_to(sample.path)
        if sample.mask_path is not None:
            mask(root / "ground_truth" / "bad" / sample.mask_path.name)
    converted = find_category(root)
    check_category(converted, kind="bad", num_calibration=0)
    assert len(converted.train) == len(category.train)


def test_splits_of_mvtec2(tmp_path: Path) -> None:
    root = make_mvtec2(tmp_path / "can")
    category = find_category(root)
    assert names(root, category.calibration_images) == [
        f"validation/good/{i:03}_regular.png" for i in range(NUM_CALIBRATION)
    ]
    assert sorted(path.parent.name for path in category.ignored) == ["test_private"] * 3 + ["test_private_mixed"] * 3
    found = inspected(root)
    assert list(found.kinds) == ["train", "calibration_images", "test"]
    assert (found.split.num_train, found.split.num_calibration) == (NUM_TRAIN, NUM_CALIBRATION)
    first, second = names(root, category.calibration_images)[:2]
    (root / first).write_bytes((root / "train/good/000_regular.png").read_bytes())
    (root / second).write_bytes(b"")
    found = inspected(root)
    assert found.shared_files == (("train/good/000_regular.png", first),)
    assert any("two of train, calibration and test" in f.text for f in found.findings)
    assert [file.path for file in found.bad_files] == [second]
    assert found.split.error is not None
    assert "9 calibration images of the data set are too few; at least 10 and 10" in found.split.error


def test_validation_folder_of_mvtec_becomes_the_calibration_images(tmp_path: Path) -> None:
    root = make_mpdd(tmp_path / "part")
    image(root / "validation/good/000.png")
    assert names(root, find_category(root).calibration_images) == ["validation/good/000.png"]


def test_masks_of_good_images_are_not_defects(tmp_path: Path) -> None:
    for make, name in ((make_mpdd, "good/000_mask.png"), (make_btad, "ok/0000.png")):
        root = make(tmp_path / make.__name__)
        mask(root / "ground_truth" / name)
        category = find_category(root)
        assert category.ignored == (root / "ground_truth" / name,)
        assert sum(s.label for s in category.test) == 3
        assert inspected(root).masks_without_image == ()


def test_two_masks_of_one_name_are_refused(tmp_path: Path) -> None:
    root = make_btad(tmp_path / "03")
    mask(root / "ground_truth/ko/0000.bmp")
    with pytest.raises(DataError, match=r"ko/0000\.bmp and 0000\.png are two masks of one name; keep one"):
        find_category(root)


def test_mask_with_a_suffix_has_priority(tmp_path: Path) -> None:
    root = make_mpdd(tmp_path / "part")
    mask(root / "ground_truth/hole/000.png")
    category = find_category(root)
    assert category.test[3].mask_path == root / "ground_truth/hole/000_mask.png"
    assert category.ignored == (root / "ground_truth/hole/000.png",)


def test_kolektorsdd2_does_not_train_on_defects(tmp_path: Path) -> None:
    root = make_kolektorsdd2(tmp_path / "KolektorSDD2")
    image(root / "train/10003 (copy).png")
    mask(root / "train/10003_GT (copy).png")
    category = find_category(root)
    assert len(category.train) == NUM_TRAIN + 1
    assert not {"train/10004.png", "train/10014.png", "train/10003 (copy).png"} & set(names(root, category.train))
    assert {root / "train/10004.png", root / "train/10004_GT.png"} <= set(category.ignored)
    assert names(root, category.test) == [f"test/{20000 + i}.png" for i in range(5)]
    assert [s.label for s in category.test] == [False, True, True, True, False]
    assert inspected(root).unused == ("train/10003 (copy).png", "train/10003_GT (copy).png")


def test_kolektorsdd2_with_a_damaged_mask_is_refused(tmp_path: Path) -> None:
    root = make_kolektorsdd2(tmp_path)
    (root / "train/10007_GT.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"10007_GT\.png"):
        find_category(root)


def test_visa_follows_its_table(tmp_path: Path) -> None:
    root = make_visa(tmp_path / "visa" / "candle")
    image(root / "Data/Images/Normal/9999.JPG")
    rows = read_table(root)
    rows[2][1], rows[-1][1] = "test", "train"
    write_table(root, [rows[0], *reversed(rows[1:])])
    category = find_category(root)
    assert "Data/Images/Normal/0000.JPG" in names(root, category.test)
    assert len(category.train) == NUM_TRAIN - 1
    assert category.ignored == (root / "Data/Images/Anomaly/002.JPG", root / "Data/Masks/Anomaly/002.png")
    assert names(root, category.test) == sorted(names(root, category.test))
    assert inspected(root).unused == ("Data/Images/Normal/9999.JPG",)
    copy = root / "Data/Images/Normal/0003.JPG"  # of the test split
    copy.write_bytes((root / "Data/Images/Normal/0001.JPG").read_bytes())
    (text,) = (f.text for f in inspected(root).findings if "files are in" in f.text)
    assert "1 files are in train and test" in text


def test_visa_is_read_through_a_link_and_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_visa(tmp_path / "visa" / "candle")
    moved = root.rename(tmp_path / "disk 2")
    root.symlink_to(moved)
    assert find_category(root).name == "candle"
    monkeypatch.chdir(root.parent)
    assert names(Path("candle"), find_category(Path("candle")).test) == names(root, find_category(root).test)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (1, "val", r"line 3: split 'val' and label 'normal'; write train or test"),
        (2, "Normal", r"line 3: split 'train' and label 'Normal'"),
        (3, "candle/Data/Images/Normal/7777.JPG", r"line 3: .*7777\.JPG is missing; restore the file"),
        (3, "Data/Images/Normal/0000.JPG", r"line 3: 'Data/Images/Normal/0000\.JPG' is not below candle"),
        (3, "candle/../secret.JPG", r"line 3: .* is not below candle"),
        (3, "candle/Data/Images/Normal/0001.JPG", r"line 4: .*0001\.JPG is in an earlier row too"),
        (4, "candle/Data/Masks/Anomaly/000.png", r"line 3: a normal image with the mask candle/Data"),
    ],
)
def test_invalid_row_of_visa_is_named(tmp_path: Path, column: int, value: str, message: str) -> None:
    root = make_visa(tmp_path / "candle")
    rows = read_table(root)
    rows[2][column] = value
    write_table(root, rows)
    with pytest.raises(DataError, match=message):
        find_category(root)


def test_missing_mask_of_visa_is_named(tmp_path: Path) -> None:
    root = make_visa(tmp_path / "candle")
    (root / "Data/Masks/Anomaly/001.png").unlink()
    with pytest.raises(DataError, match=r"1cls\.csv, line 27: .*001\.png is missing"):
        find_category(root)


def test_invalid_table_of_visa_is_refused(tmp_path: Path) -> None:
    root = make_visa(tmp_path / "candle")
    renamed = root.rename(tmp_path / "candles")
    with pytest.raises(DataError, match=r"no row of the object candles, only candle, pcb9; rename"):
        find_category(renamed)
    rows = read_table(renamed)
    write_table(renamed, [rows[0], ["candles", "test", "normal", "candles/Data/Images/Normal/0000.JPG", ""]])
    with pytest.raises(DataError, match=r"has no normal training image of candles"):
        find_category(renamed)
    write_table(renamed, [["object", "image"]])
    with pytest.raises(DataError, match=r"has the columns \['object', 'image'\]; object, split, label"):
        find_category(renamed)
    table_of(renamed).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as CSV"):
        find_category(renamed)
    table_of(renamed).unlink()
    with pytest.raises(DataError, match=r"layout of VisA but no split_csv/1cls\.csv beside it; put the table"):
        find_category(renamed)


def test_folder_that_fits_several_layouts_is_refused(tmp_path: Path) -> None:
    root = make_mpdd(tmp_path / "a")
    image(root / "train/ok/0.png")
    with pytest.raises(DataError, match="fits the layouts of MVTec AD, BTAD; keep the folders of one"):
        find_category(root)
    root = make_mvtec2(tmp_path / "b")
    image(root / "test/good/0.png")
    with pytest.raises(DataError, match="fits the layouts of MVTec AD, MVTec AD 2; keep"):
        find_category(root)


@every_layout
def test_data_set_is_not_a_product_and_its_categories_are_found(make: Make, kind: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name in ("b", "a"):
        make(root / name)
    image(root / ".cache/train/good/0.png")
    image(root / "docs/figure.png")
    assert find_categories(root) == (root / "a", root / "b")
    with pytest.raises(DataError, match=r"holds several products; give one of them: a, b$"):
        find_category(root)
