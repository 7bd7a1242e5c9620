"""Memory of a device for images and what is said of them, taken once for each shape and bound to the session."""

from __future__ import annotations

import inspect
import threading
from collections import OrderedDict

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from anomaly.inference.artifact import INPUT, OUTPUTS

NUM_SHAPES = 4
"""Shapes whose buffers are kept; those of the shape used longest ago go first"""


class Buffers:
    """Input and outputs of one shape on a device, bound: a CUDA graph finds them where it was captured.

    Args:
        session: whose buffers these are.
        shape: of the images (n, H, W, 3).
        device: cpu or cuda.
    """

    def __init__(self, session: ort.InferenceSession, *, shape: tuple[int, ...], device: str) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._image = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.uint8, device, 0)
        self._binding.bind_ortvalue_input(INPUT, self._image)
        self._staging = page_locked(session, shape=shape)
        lengths = {output.name: output.shape[1:] for output in session.get_outputs()}
        self._said = [
            ort.OrtValue.ortvalue_from_shape_and_type([shape[0], *lengths[name]], np.float32, device, 0)
            for name in OUTPUTS
        ]
        for name, value in zip(OUTPUTS, self._said, strict=True):
            self._binding.bind_ortvalue_output(name, value)

    def run(self, image: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Score images of the buffers' shape; what is given back is a copy."""
        if self._staging is None:
            self._image.update_inplace(image)
        else:
            self._staging.update_inplace(image)
            self._image.update_inplace(self._staging)
        self._binding.synchronize_inputs()
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        return [np.array(value.numpy()) for value in self._said]


class BufferPool:
    """Buffers of the shapes seen lately, each used by one inference at a time.

    Args:
        session: whose buffers these are.
        device: cpu or cuda.
        num: inferences at a time; a further one waits.
    """

    def __init__(self, session: ort.InferenceSession, *, device: str, num: int) -> None:
        self._session = session
        self._device = device
        self._turn = threading.Semaphore(num)
        self._lock = threading.Lock()
        self._free: OrderedDict[tuple[int, ...], list[Buffers]] = OrderedDict()

    def run(self, image: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Score images (n, H, W, 3) uint8 RGB through buffers of their shape."""
        with self._turn:
            with self._lock:
                waiting = self._free.get(image.shape, [])
                buffers = waiting.pop() if waiting else None
            if buffers is None:
                buffers = Buffers(self._session, shape=image.shape, device=self._device)
            said = buffers.run(image)
            with self._lock:
                self._free.setdefault(image.shape, []).append(buffers)
                self._free.move_to_end(image.shape)
                while len(self._free) > NUM_SHAPES:
                    self._free.popitem(last=False)
            return said


def page_locked(session: ort.InferenceSession, *, shape: tuple[int, ...]) -> ort.OrtValue | None:
    """Give host memory for images that a GPU copies from by itself; None where the runtime or the device has none."""
    if "memory_info" not in inspect.signature(ort.OrtValue.ortvalue_from_shape_and_type).parameters:
        return None  # older runtimes lend none to Python
    (owner, *_) = session.get_input_epdevices()
    memory = owner.memory_info(ort.OrtDeviceMemoryType.HOST_ACCESSIBLE) if owner is not None else None
    if memory is None:
        return None
    return ort.OrtValue.ortvalue_from_shape_and_type(shape, np.uint8, memory_info=memory)
