"""Crops of training images: coverage, order, and the number of open images."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from anomaly.training.crops import NUM_OPEN, CropOrder, Crops


def test_crops_cover_each_image_in_proportion_to_its_area_and_up_to_its_border() -> None:
    shapes = [(64, 64), (100, 300), (64, 1000)]
    order = CropOrder(shapes, size=(64, 64), seed=1)
    seen = [np.zeros(shape) for shape in shapes]
    for epoch in range(200):
        order.set_epoch(epoch)
        crops = list(order)
        assert len(crops) == len(order) == 1 + 2 * 5 + 16
        assert Counter(n for n, *_ in crops) == {0: 1, 1: 10, 2: 16}
        for n, top, left in crops:
            assert 0 <= top <= shapes[n][0] - 64
            assert 0 <= left <= shapes[n][1] - 64
            seen[n][top : top + 64, left : left + 64] += 1
    assert seen[0].min() == 200
    assert seen[2].min() > 0.4 * seen[2].mean()
    again = CropOrder(shapes, size=(64, 64), seed=1)
    again.set_epoch(199)
    assert list(again) == crops
    again.skip(7, epoch=199)
    assert list(again) == crops[7:]
    again.set_epoch(0)
    assert list(again) != crops


def test_crops_come_from_few_open_images() -> None:
    reads: list[int] = []

    class Images(torch.utils.data.Dataset[tuple[torch.Tensor, str]]):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
            reads.append(index)
            return torch.full((130, 70, 3), index, dtype=torch.uint8), f"{index}.png"

    num = 3 * NUM_OPEN
    crops = Crops(Images(), size=(64, 32))
    for place in CropOrder([(130, 70)] * num, size=(64, 32), seed=0):
        image, path = crops[place]
        assert image.shape == (64, 32, 3)
        assert (image == place[0]).all()
        assert path == f"{place[0]}.png#{place[1]},{place[2]}"
    assert sorted(reads) == list(range(num))
