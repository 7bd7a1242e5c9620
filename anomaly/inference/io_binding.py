"""Device memory for images and outputs, allocated once for each shape and bound to the session."""

from __future__ import annotations

import inspect
import threading
from collections import OrderedDict

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from anomaly.inference.artifact import INPUT, OUTPUTS

NUM_SHAPES = 4
"""Number of shapes with kept buffers; the least recently used shape is dropped first"""


class Buffers:
    """Input and outputs of one shape, bound at fixed addresses on a device, for CUDA graphs.

    Args:
        session: session of the graph.
        shape: shape (n, H, W, 3) of the images.
        device: device of the buffers: cpu or cuda.
    """

    def __init__(self, session: ort.InferenceSession, *, shape: tuple[int, ...], device: str) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._image = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.uint8, device, 0)
        self._binding.bind_ortvalue_input(INPUT, self._image)
        self._staging = page_locked(session, shape=shape)
        lengths = {output.name: output.shape[1:] for output in session.get_outputs()}
        self._outputs = [
            ort.OrtValue.ortvalue_from_shape_and_type([shape[0], *lengths[name]], np.float32, device, 0)
            for name in OUTPUTS
        ]
        for name, value in zip(OUTPUTS, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, value)

    def run(self, image: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Score images of the buffers' shape; the results are copies."""
        if self._staging is None:
            self._image.update_inplace(image)
        else:
            self._staging.update_inplace(image)
            self._image.update_inplace(self._staging)
        self._binding.synchronize_inputs()
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        return [np.array(value.numpy()) for value in self._outputs]


class BufferPool:
    """Buffers of the latest shapes; one inference at a time uses each.

    Args:
        session: session of the graph.
        device: device of the buffers: cpu or cuda.
        num: largest number of simultaneous inferences; further inferences wait.
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
            outputs = buffers.run(image)
            with self._lock:
                self._free.setdefault(image.shape, []).append(buffers)
                self._free.move_to_end(image.shape)
                while len(self._free) > NUM_SHAPES:
                    self._free.popitem(last=False)
            return outputs


def page_locked(session: ort.InferenceSession, *, shape: tuple[int, ...]) -> ort.OrtValue | None:
    """Allocate page-locked host memory for images; None if the runtime or the device does not offer it."""
    if "memory_info" not in inspect.signature(ort.OrtValue.ortvalue_from_shape_and_type).parameters:
        return None  # older runtimes do not offer it in Python
    (owner, *_) = session.get_input_epdevices()
    memory = owner.memory_info(ort.OrtDeviceMemoryType.HOST_ACCESSIBLE) if owner is not None else None
    if memory is None:
        return None
    return ort.OrtValue.ortvalue_from_shape_and_type(shape, np.uint8, memory_info=memory)
