from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from anomaly.data.duplicates import Duplicate, duplicate_files, find_duplicates, fingerprint
from anomaly.errors import ImageError
from anomaly.imaging.image_file import write_png

SIZE = 320


def smooth(rng: np.random.Generator, *, sigma: float) -> np.ndarray:
    noise = cv2.GaussianBlur(rng.standard_normal((SIZE, SIZE)).astype(np.float32), (0, 0), sigma)
    return noise / noise.std()


def draw_images(num_parts: int, *, seed: int = 0) -> list[np.ndarray]:
    """Aligned images of one product: a strong common drawing, small individual structure, and camera noise."""
    rng = np.random.default_rng(seed)
    drawing = np.zeros((SIZE, SIZE), dtype=np.uint8)
    cv2.circle(drawing, (160, 160), 130, 90, -1)
    cv2.putText(drawing, "500", (70, 190), cv2.FONT_HERSHEY_SIMPLEX, 3, 30, 9)
    common = 80 + cv2.GaussianBlur(drawing.astype(np.float32), (0, 0), 1) + 5 * smooth(rng, sigma=30)
    return [
        grey(common + 6 * smooth(rng, sigma=4) + 3 * smooth(rng, sigma=1.5) + rng.standard_normal((SIZE, SIZE)))
        for _ in range(num_parts)
    ]


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.clip(np.rint(values), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def pairs(images: list[np.ndarray]) -> list[tuple[int, int]]:
    return [(pair.first, pair.second) for pair in find_duplicates([fingerprint(image) for image in images])]


def jpeg(image: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 70])[1], cv2.IMREAD_COLOR)


COPIES = {
    "saved as JPEG": jpeg,
    "reduced by 2 %": lambda image: cv2.resize(image, (314, 314), interpolation=cv2.INTER_AREA),
    "brightened by 10": lambda image: cv2.add(image, (10, 10, 10, 0)),
    "shifted by a pixel": lambda image: np.concatenate([image[:, :1], image[:, :-1]], axis=1),
    "with more contrast": lambda image: grey(image[..., 0] * 1.15 - 10),
    "with new noise": lambda image: grey(image[..., 0] + np.random.default_rng(5).standard_normal((SIZE, SIZE))),
    "with 16 bits": lambda image: image.astype(np.uint16) * 257 + 3,
}


def test_different_parts_of_one_product_are_not_duplicates() -> None:
    images = draw_images(30)
    pixels = [image[::4, ::4, 0].ravel().astype(float) for image in images]
    assert np.corrcoef(pixels).min() > 0.9, "the whole images look similar"
    assert pairs(images) == []


@pytest.mark.parametrize("copy", COPIES)
def test_copies_are_found(copy: str) -> None:
    images = draw_images(20)
    assert pairs([*images, *(COPIES[copy](image) for image in images[:8])]) == [(i, 20 + i) for i in range(8)]


def test_a_copy_of_every_image_is_found() -> None:
    images = draw_images(15)
    assert pairs([*images, *(jpeg(image) for image in images)]) == [(i, 15 + i) for i in range(15)]


def test_many_copies_of_one_image_are_connected() -> None:
    images = draw_images(10)
    copies = [jpeg(images[0])] * 3 + [cv2.add(images[0], (shift, shift, shift, 0)) for shift in (3, 6, 9, 12)]
    found = pairs([*images, *copies])
    reached = {0}
    for _ in found:
        reached |= {j for pair in found if reached & set(pair) for j in pair}
    assert reached == {0, *range(10, 17)}


def test_equal_pixels_are_exact_duplicates_of_the_first_image() -> None:
    images = draw_images(5)
    found = find_duplicates([fingerprint(image) for image in [*images, images[2].copy(), images[2].copy()]])
    assert found == [Duplicate(2, 5, 1.0, True), Duplicate(2, 6, 1.0, True)]


@pytest.mark.parametrize("num_parts", [0, 1, 2, 3])
def test_few_images_have_exact_duplicates_only(num_parts: int) -> None:
    images = draw_images(num_parts)
    assert pairs(images) == []
    assert pairs([*images, *images[:1]]) == ([(0, num_parts)] if images else [])


def test_uniform_images_are_not_near_duplicates() -> None:
    images = [np.full((40, 50, 3), value, dtype=np.uint8) for value in (10, 20, 30, 40)]
    assert pairs(images) == []


def test_fingerprint_depends_on_depth_and_shape() -> None:
    image = np.zeros((4, 6, 3), dtype=np.uint8)
    others = [image.reshape(6, 4, 3), image.astype(np.uint16), np.zeros((4, 7, 3), dtype=np.uint8)]
    assert len({fingerprint(other).sha256 for other in [image, *others]}) == 4
    assert fingerprint(image.copy()).sha256 == fingerprint(image).sha256


def test_small_and_oblong_images_are_compared() -> None:
    images = [image[:100, :60] for image in draw_images(12)]
    assert pairs([*images, cv2.add(images[3], (9, 9, 9, 0))]) == [(3, 12)]


def test_duplicate_files_reports_progress(tmp_path: Path) -> None:
    images = draw_images(4)
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, image in zip(paths, [*images, jpeg(images[1])], strict=True):
        write_png(path, image)
    calls: list[tuple[int, int]] = []
    found = duplicate_files(paths, max_pixels=10**6, progress=lambda done, total: calls.append((done, total)))
    assert found == [(paths[1], paths[4])]
    assert calls == [(i + 1, 5) for i in range(5)]
    with pytest.raises(ImageError, match="gone"):
        duplicate_files([str(tmp_path / "gone.png")], max_pixels=10**6)
