from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anomaly.data.folders import find_categories, find_category, folder_images, image_files, list_images
from anomaly.errors import DataError, UsageError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def relative(root: Path, paths: list[Path]) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def test_mvtec_layout(tmp_path: Path) -> None:
    root = tmp_path / "bottle"
    touch(root, "train/good/001.png", "train/good/000.png", "train/good/lot 2/000.png")
    touch(root, "test/good/000.png", "test/crack/000.png", "test/crack/001.png", "test/crack/002.png", "test/stray.png")
    touch(root, "test/crack/lot/000.png", "ground_truth/crack/lot/000_mask.png")
    touch(root, "ground_truth/crack/000_mask.png", "ground_truth/crack/001.png")
    category = find_category(root)
    assert (category.name, category.root) == ("bottle", root)
    assert relative(root, [s.path for s in category.train]) == [
        "train/good/000.png",
        "train/good/001.png",
        "train/good/lot 2/000.png",
    ]
    assert all((s.kind, s.label, s.mask_path) == ("good", False, None) for s in category.train)
    found = {s.path.relative_to(root / "test").as_posix(): s for s in category.test}
    assert list(found) == ["crack/000.png", "crack/001.png", "crack/002.png", "crack/lot/000.png", "good/000.png"]
    assert found["crack/000.png"].mask_path == root / "ground_truth/crack/000_mask.png"
    assert found["crack/001.png"].mask_path == root / "ground_truth/crack/001.png"
    assert found["crack/002.png"].mask_path is None
    assert found["crack/lot/000.png"].mask_path == root / "ground_truth/crack/lot/000_mask.png"
    assert [(s.kind, s.label) for s in found.values()] == [("crack", True)] * 4 + [("good", False)]


def test_images_of_a_plain_folder_are_good(tmp_path: Path) -> None:
    touch(tmp_path, "b.PNG", "a.jpg", "lot 1/ä.tiff", "lot 1/零.WebP", "lot 1/deep/c.bmp", "notes.txt", "Thumbs.db")
    category = find_category(tmp_path)
    names = ["a.jpg", "b.PNG", "lot 1/deep/c.bmp", "lot 1/ä.tiff", "lot 1/零.WebP"]
    assert relative(tmp_path, [s.path for s in category.train]) == names
    assert category.test == ()
    assert {(s.kind, s.label) for s in category.train} == {("good", False)}


def test_single_image_is_a_category(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    assert len(find_category(tmp_path).train) == 1


def test_images_are_ordered_by_posix_path(tmp_path: Path) -> None:
    touch(tmp_path, "a/2.png", "a-b/1.png", "B/3.png", "a.png", "10.png", "9.png")
    assert relative(tmp_path, image_files(tmp_path)) == ["10.png", "9.png", "B/3.png", "a-b/1.png", "a.png", "a/2.png"]


def test_hidden_files_are_skipped_and_links_followed_once(tmp_path: Path) -> None:
    touch(tmp_path / "set", ".hidden.png", ".cache/a.png", "a.png")
    touch(tmp_path / "elsewhere", "b.png")
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "linked again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "set")
    found = relative(tmp_path / "set", image_files(tmp_path / "set"))
    assert found == ["a.png", "link.png", "linked/b.png"]


def test_missing_folder_file_and_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone does not exist; give a folder"):
        find_category(tmp_path / "gone")
    touch(tmp_path, "notes.txt")
    with pytest.raises(DataError, match=r"notes\.txt is a file"):
        find_category(tmp_path / "notes.txt")
    with pytest.raises(DataError, match=r"holds no image; put files ending in \.png"):
        find_category(tmp_path)
    (tmp_path / "train" / "good").mkdir(parents=True)
    with pytest.raises(DataError, match=r"train/good holds no image"):
        find_category(tmp_path)


def test_folder_of_several_products_is_refused_with_their_names(tmp_path: Path) -> None:
    touch(tmp_path, "sets/bottle/train/good/0.png", "sets/bottle/test/crack/0.png", "sets/screw/train/good/0.png")
    with pytest.raises(DataError, match=r"products; give one of them: bottle, screw$"):
        find_category(tmp_path / "sets")
    with pytest.raises(DataError, match=r"give one of them: sets/bottle, sets/screw$"):
        find_category(tmp_path)
    touch(tmp_path, *(f"many/{i:02}/train/good/0.png" for i in range(10)))
    with pytest.raises(DataError, match=r"06, 07 and 2 more$"):
        find_category(tmp_path / "many")


@pytest.mark.parametrize("name", ["test/crack/0.png", "train/0.png", "lot/ground_truth/0.png"])
def test_defects_are_never_read_as_good_images(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "a.png", name)
    with pytest.raises(DataError, match="but no train/good"):
        find_category(tmp_path)


def test_folder_good_beside_other_images_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "good/0.png", "scratch/0.png", "1.png")
    with pytest.raises(DataError, match=r"'good' beside loose images, scratch; give the folder 'good'$"):
        find_category(tmp_path)
    assert len(find_category(tmp_path / "good").train) == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1.png", "1_GT.png"], r"holds masks beside the images, first .*1_GT\.png; give a folder of good images only"),
        (["lot/1.JPG", "lot/1_mask.png"], r"holds masks beside the images, first .*lot/1_mask\.png"),
        (["ok/1.bmp", "ko/1.bmp"], r"has a folder 'ok' beside ko; give the folder 'ok'$"),
        (["Normal/1.JPG", "Anomaly/1.JPG"], r"has a folder 'Normal' beside Anomaly"),
        (
            ["Images/Normal/1.JPG", "Images/Anomaly/1.JPG", "Masks/Anomaly/1.png"],
            r"Images has a folder 'Normal' beside",
        ),
        (["good/1.png", "bad/1.png", "ground_truth/bad/1_mask.png"], r"folder 'ground_truth' but no train/good"),
    ],
)
def test_part_of_a_data_set_is_not_a_plain_folder(tmp_path: Path, names: list[str], message: str) -> None:
    touch(tmp_path, *names)
    with pytest.raises(DataError, match=message):
        find_category(tmp_path)


def test_mask_like_name_without_its_image_is_an_image(tmp_path: Path) -> None:
    touch(tmp_path, "face_mask.png", "gas/face.png", "good/good/1.png")
    (tmp_path / "good").rename(tmp_path / "lots")
    assert len(find_category(tmp_path).train) == 3


def test_data_set_without_category_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "deep/btad/01/train/ok/0.bmp", "images/0.png", ".hidden/train/good/0.png")
    with pytest.raises(DataError, match=r"known layout \(folders: deep, images\); give the folder of the categories"):
        find_categories(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="folders: none"):
        find_categories(tmp_path / "empty")
    with pytest.raises(DataError, match="does not exist"):
        find_categories(tmp_path / "gone")
    assert find_categories(tmp_path / "deep" / "btad") == (tmp_path / "deep" / "btad" / "01",)


def test_images_of_a_folder_a_pattern_and_a_file(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "lot 1/ä [1].jpg", "notes.csv")
    first, second = str(tmp_path / "b.png"), str(tmp_path / "lot 1/ä [1].jpg")
    assert list_images(str(tmp_path)) == [first, second]
    assert list_images(str(tmp_path / "*")) == [first]
    assert list_images(str(tmp_path / "**" / "*")) == [first, second]
    assert list_images(second) == [second]
    assert list_images(str(tmp_path / "notes.csv")) == [str(tmp_path / "notes.csv")]


def test_relative_paths_stay_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "parts/b.png")
    monkeypatch.chdir(tmp_path)
    assert list_images("parts") == list_images("parts/*.png") == ["parts/b.png"]


def test_paths_of_a_list_are_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "z.png\n\n ./a b.png\r\ngone.gif\nz.png\n"
    expected = ["z.png", " ./a b.png", "gone.gif", "z.png"]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert list_images(str(tmp_path / "list.txt")) == expected
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert list_images("-") == expected


def test_source_without_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"gone\.png does not exist"):
        list_images(str(tmp_path / "gone.png"))
    with pytest.raises(DataError, match="is a folder without images"):
        list_images(str(tmp_path))
    touch(tmp_path, "list.txt", "a.csv")
    with pytest.raises(DataError, match=r"list\.txt is a list without paths"):
        list_images(str(tmp_path / "list.txt"))
    with pytest.raises(DataError, match="fits 2 files, but no image"):
        list_images(str(tmp_path / "*"))
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    with pytest.raises(DataError, match="standard input is a list without paths"):
        list_images("-")


@pytest.mark.parametrize("read", [find_category, find_categories, image_files, list_images, folder_images])
@pytest.mark.parametrize("value", [None, 3, b"parts", ["parts"], object()])
def test_path_of_another_type_is_refused(read: Callable[[Any], object], value: object) -> None:
    with pytest.raises(UsageError, match=r"give a path as str or pathlib\.Path"):
        read(value)


@pytest.mark.parametrize("read", [find_category, find_categories, image_files, list_images, folder_images])
def test_empty_path_is_refused(read: Callable[[Any], object]) -> None:
    with pytest.raises(UsageError, match="is empty; give a path"):
        read("")


@pytest.mark.parametrize("read", [find_category, find_categories, image_files, folder_images])
def test_folder_argument_must_be_an_existing_folder(read: Callable[[Any], object], tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    with pytest.raises(DataError, match=r"gone does not exist; give a folder of"):
        read(str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"a\.png is a file; give a folder of"):
        read(tmp_path / "a.png")


def test_strings_and_paths_are_equal(tmp_path: Path) -> None:
    touch(tmp_path, "part/train/good/0.png")
    root = tmp_path / "part"
    assert find_category(str(root)) == find_category(root)
    assert find_categories(str(tmp_path)) == (root,)
    assert image_files(str(root)) == image_files(root)
    assert list_images(root) == list_images(str(root)) == list(folder_images(str(root)))
