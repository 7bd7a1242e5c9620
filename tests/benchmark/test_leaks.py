"""Leaks between the images of a protocol: every check finds its planted leak, and a clean protocol passes."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from anomaly.benchmark.leaks import find_leaks, num_checks, stamp
from anomaly.benchmark.roles import Leak, Roles
from anomaly.errors import DataError, ImageError, UsageError
from anomaly.imaging.image_file import read_image, write_png
from tests.plates import draw_scratch

MAX_PIXELS = 10**6
SIZE = 200


def draw_part(seed: int) -> np.ndarray:
    """A ring that all parts share, and an individual grain."""
    rng = np.random.default_rng(seed)
    image = np.full((SIZE, SIZE), 80, dtype=np.float32)
    cv2.circle(image, (100, 100), 70, 150, 12)
    for sigma, strength in ((4, 6), (1.5, 4)):
        grain = cv2.GaussianBlur(rng.standard_normal((SIZE, SIZE)).astype(np.float32), (0, 0), sigma)
        image += strength * grain / grain.std()
    return np.repeat(np.clip(np.rint(image), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def write(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, image)
    return path


@pytest.fixture
def clean(tmp_path: Path) -> Roles:
    """A protocol without a leak: all parts differ, and the two images of a lot have one role."""

    def parts(folder: str, num: int, seed: int) -> tuple[Path, ...]:
        return tuple(
            write(tmp_path / folder / f"lot{seed + n // 2}_{n}.png", draw_part(100 * seed + n)) for n in range(num)
        )

    defects, masks = [], []
    for n in range(4):
        image, mask = draw_scratch(draw_part(9000 + n), n)
        defects.append(write(tmp_path / f"test/scratch/lot{900 + n}_{n}.png", image))
        masks.append(write(tmp_path / f"ground_truth/scratch/lot{900 + n}_{n}_mask.png", mask))
    return Roles(
        root=tmp_path,
        train=parts("train/good", 10, 100),
        calibration=parts("train/good", 6, 200),
        stopping=parts("train/good", 2, 300),
        selection=(),
        test_good=parts("test/good", 4, 400),
        test_defect=tuple(defects),
        masks=tuple(zip(defects, masks, strict=True)),
        part_group=r"lot(\d+)",
        labels_from="folder",
        mask_size="own",
    )


def found(roles: Roles, *, near_duplicates: bool = True) -> list[Leak]:
    return find_leaks(roles, near_duplicates=near_duplicates, max_pixels=MAX_PIXELS)


def names(roles: Roles, *, near_duplicates: bool = True) -> list[str]:
    return [leak.name for leak in found(roles, near_duplicates=near_duplicates)]


def copied(path: Path, name: str) -> Path:
    """A copy of a file under another name, in another lot."""
    return Path(shutil.copy(path, path.with_name(name)))


def test_a_clean_protocol_passes(clean: Roles) -> None:
    assert found(clean) == []
    assert stamp([], num_checks=num_checks(clean, near_duplicates=True)) == "no leak found (15 checks)"
    assert found(clean, near_duplicates=False) == []


def test_impossible_checks_are_not_counted(clean: Roles) -> None:
    assert num_checks(clean, near_duplicates=False) == 13
    assert num_checks(replace(clean, part_group=None), near_duplicates=True) == 14
    assert num_checks(replace(clean, masks=()), near_duplicates=True) == 11


@pytest.mark.parametrize("near_duplicates", [True, False])
@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("calibration", "threshold chosen on test"),
        ("stopping", "stopping epoch chosen on test"),
        ("selection", "checkpoint or recipe chosen on test"),
        ("train", "training images in test"),
    ],
)
def test_test_images_in_a_role(clean: Roles, role: str, name: str, near_duplicates: bool) -> None:
    """Found by path, and by bytes under another name."""
    clean = replace(clean, part_group=None)
    copies = tuple(copied(path, f"other{n}.png") for n, path in enumerate(clean.test_defect[:2]))
    for taken, num in ((clean.test_defect[:1], 1), (copies, 2), (clean.test_good[:3], 3)):
        [leak] = found(replace(clean, **{role: clean.images(role) + taken}), near_duplicates=near_duplicates)
        assert (leak.name, leak.num, leak.severity) == (name, num, "leak")
        assert ("copied under another name" in leak.description) == (taken == copies)
        assert leak.paths[0].startswith("test/")


@pytest.mark.parametrize("role", ["stopping", "selection"])
def test_stopping_and_selection_images_must_not_calibrate(clean: Roles, role: str) -> None:
    roles = replace(clean, part_group=None, **{role: clean.calibration[:2]})
    [leak] = found(roles)
    assert (leak.name, leak.num) == ("stopping or selection images in calibration", 2)


@pytest.mark.parametrize("role", ["calibration", "stopping"])
def test_calibration_and_stopping_images_must_not_train(clean: Roles, role: str) -> None:
    copy = copied(clean.train[3], "copy.png")
    [leak] = found(replace(clean, part_group=None, **{role: (*clean.images(role), copy)}))
    assert (leak.name, leak.num) == ("training images in calibration or stopping", 1)


def test_recipes_may_be_chosen_on_training_and_stopping_images(clean: Roles) -> None:
    assert found(replace(clean, selection=clean.train + clean.stopping)) == []


def test_validation_on_the_whole_test_set(clean: Roles) -> None:
    roles = replace(clean, part_group=None, calibration=clean.test)
    assert names(roles) == ["threshold chosen on test", "validation set equals test set"]
    assert names(replace(roles, calibration=clean.test[1:])) == ["threshold chosen on test"]


def test_one_image_under_two_labels(clean: Roles) -> None:
    copy = copied(clean.test_good[0], "defect.png")
    assert names(replace(clean, part_group=None, test_defect=(*clean.test_defect, copy))) == [
        "one image labelled good and defective"
    ]


def test_same_pixels_in_another_encoding(clean: Roles, tmp_path: Path) -> None:
    image = read_image(clean.train[0], white=255, max_pixels=MAX_PIXELS)
    again = tmp_path / "test/good/again.bmp"
    assert cv2.imwrite(str(again), image[..., ::-1])
    roles = replace(clean, part_group=None, test_good=(*clean.test_good, again))
    [leak] = found(roles)
    assert (leak.name, leak.num, leak.paths) == ("same pixels in two roles", 1, ("test/good/again.bmp",))
    assert found(roles, near_duplicates=False) == []


def jpeg(path: Path, to: Path) -> Path:
    image = read_image(path, white=255, max_pixels=MAX_PIXELS)
    assert cv2.imwrite(str(to), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    return to


def test_near_duplicates_within_the_split_are_a_leak_and_in_test_a_note(clean: Roles, tmp_path: Path) -> None:
    clean = replace(clean, part_group=None)
    near = jpeg(clean.train[0], tmp_path / "train/good/near.jpg")
    [leak] = found(replace(clean, calibration=(*clean.calibration, near)))
    assert (leak.name, leak.num, leak.severity) == ("near-duplicates in two roles", 1, "leak")
    assert leak.paths == ("train/good/near.jpg",)
    test = jpeg(clean.train[1], tmp_path / "test/good/near.jpg")
    [note] = found(replace(clean, test_good=(*clean.test_good, test)))
    assert (note.name, note.num, note.severity) == ("near-duplicates in two roles", 1, "note")
    assert found(replace(clean, train=(*clean.train, near))) == [], "within one role they are allowed"


@pytest.mark.parametrize("role", ["calibration", "stopping", "test_good"])
def test_part_groups_across_the_split(clean: Roles, role: str) -> None:
    image = write(clean.root / f"{role}/lot100_7.png", draw_part(77))
    [leak] = found(replace(clean, **{role: (*clean.images(role), image)}))
    assert (leak.name, leak.num, leak.severity) == ("part groups across the split", 1, "leak")
    assert found(replace(clean, part_group=None, **{role: (*clean.images(role), image)})) == []


def test_part_groups_of_a_table_and_of_patterns_without_test_images(clean: Roles, tmp_path: Path) -> None:
    own = clean.train + clean.calibration + clean.stopping
    table = tmp_path / "lots.csv"
    lines = [f"{path.relative_to(tmp_path).as_posix()},{n // 4}" for n, path in enumerate(own)]
    table.write_text("\n".join(["path,group", *lines]), encoding="utf-8")
    assert names(replace(clean, part_group=str(table))) == ["part groups across the split"], (
        "the 10 training images end within a lot of 4"
    )
    table.write_text("\n".join(["path,group", *lines[1:]]), encoding="utf-8")
    with pytest.raises(DataError, match="gives no group to 1 of 18"):
        found(replace(clean, part_group=str(table)))
    assert found(replace(clean, part_group=r"train/good/lot(\d+)")) == []


def test_one_part_may_have_good_and_defective_test_images(clean: Roles) -> None:
    image = write(clean.root / "test/good/lot900_9.png", draw_part(78))
    assert found(replace(clean, test_good=(*clean.test_good, image))) == []


def test_recipes_chosen_on_other_products_need_no_part_group(
    clean: Roles, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = write(tmp_path_factory.mktemp("other") / "lot400_0.png", draw_part(5))
    assert found(replace(clean, selection=(other,))) == []
    with pytest.raises(UsageError, match="named by path"):
        found(replace(clean, calibration=(*clean.calibration, other)))


def with_mask(roles: Roles, mask: Path) -> Roles:
    return replace(roles, masks=((roles.masks[0][0], mask), *roles.masks[1:]))


def test_masks_saved_again(clean: Roles, tmp_path: Path) -> None:
    drawn = read_image(clean.masks[0][1], white=255, max_pixels=MAX_PIXELS)[..., 0]
    half = write(tmp_path / "half.png", np.ascontiguousarray(drawn[::2, ::2]))
    assert names(with_mask(clean, half)) == ["mask of another size than its image"]
    lossy = tmp_path / "lossy.png"
    lossy.write_bytes(cv2.imencode(".jpg", drawn)[1].tobytes())
    assert names(with_mask(clean, lossy)) == ["mask in a lossy format", "mask of more than two levels"]
    even = tmp_path / "even.jpg"
    assert cv2.imwrite(str(even), np.full_like(drawn, 255))
    assert names(with_mask(clean, even)) == ["mask in a lossy format"]
    blended = write(tmp_path / "blended.png", cv2.GaussianBlur(drawn, (3, 3), 0))
    assert names(with_mask(clean, blended)) == ["mask of more than two levels"]
    other_level = write(tmp_path / "level.png", drawn // 255 * 7)
    assert found(with_mask(clean, other_level)) == [], "0 and any one other value"


@pytest.mark.parametrize(("quality", "expected"), [(101, []), (80, ["mask in a lossy format"])])
def test_lossy_and_lossless_webp_masks(clean: Roles, tmp_path: Path, quality: int, expected: list[str]) -> None:
    mask = tmp_path / "mask.webp"
    even = np.full((SIZE, SIZE, 3), 255, dtype=np.uint8)
    assert cv2.imwrite(str(mask), even, [cv2.IMWRITE_WEBP_QUALITY, quality])
    assert names(with_mask(clean, mask)) == expected


def test_labels_from_resized_masks(clean: Roles) -> None:
    [leak] = found(replace(clean, labels_from="mask", mask_size="network"))
    assert (leak.name, leak.num, leak.severity) == ("label or pixels from a resized mask", 4, "leak")
    [note] = found(replace(clean, mask_size="network"))
    assert note.severity == "note"
    assert found(replace(clean, labels_from="mask")) == []


def test_roles_without_images_are_refused(clean: Roles) -> None:
    for role in ("train", "calibration", "test_good", "test_defect"):
        with pytest.raises(UsageError, match=f"role {role} has no image"):
            found(replace(clean, **{role: ()}))
    with pytest.raises(ImageError, match="gone"):
        found(replace(clean, stopping=(clean.root / "gone.png",)))


def test_stamp_names_leaks_before_notes(clean: Roles) -> None:
    leaks = found(replace(clean, part_group=None, calibration=clean.test, mask_size="network"))
    assert stamp(leaks, num_checks=14) == (
        "LEAK: threshold chosen on test (8 images); validation set equals test set (8 images); "
        "note: label or pixels from a resized mask (4 images)"
    )
    assert stamp(leaks[2:], num_checks=14).startswith("no leak found (14 checks); note: label")
    assert asdict(leaks[0]).keys() == {"name", "description", "paths", "num", "severity"}


def leave_one_out(clean: Roles, *, groups: bool) -> Roles:
    """The clean protocol with all its good images in both roles, left out by lot or one by one."""
    images = clean.train + clean.calibration
    left_out = {path: int(path.name[3 : path.name.index("_")]) if groups else n for n, path in enumerate(images)}
    return replace(clean, train=images, calibration=images, stopping=(), left_out=left_out)


def test_images_that_train_and_calibrate_are_no_leak_where_their_part_was_left_out(clean: Roles) -> None:
    assert found(leave_one_out(clean, groups=True)) == []
    assert {leak.name for leak in found(replace(leave_one_out(clean, groups=True), left_out=None))} >= {
        "training images in calibration or stopping"
    }


def test_images_left_out_without_their_part_are_a_leak(clean: Roles) -> None:
    (leak,) = found(leave_one_out(clean, groups=False))
    assert leak.name == "part groups across the split"
    assert leak.num == 16


def test_near_duplicates_must_be_left_out_together(clean: Roles) -> None:
    roles = leave_one_out(clean, groups=True)
    copy = write(
        clean.root / "train/good/lot777_0.png", np.clip(read(roles.train[0]).astype(int) + 1, 0, 255).astype(np.uint8)
    )
    assert roles.left_out is not None
    with_copy = replace(
        roles, train=(*roles.train, copy), calibration=(*roles.train, copy), left_out={**roles.left_out, copy: 777}
    )
    assert "near-duplicates in two roles" in {leak.name for leak in found(with_copy)}
    together = {**roles.left_out, copy: roles.left_out[roles.train[0]]}
    assert "near-duplicates in two roles" not in {leak.name for leak in found(replace(with_copy, left_out=together))}


def read(path: Path) -> np.ndarray:
    return read_image(path, white=255, max_pixels=MAX_PIXELS)
