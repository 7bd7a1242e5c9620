"""Processors and GPUs that this process may use."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from pathlib import Path


def num_cpus() -> int:
    """Count the usable processors: the process's affinity, limited by its control group's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota_file = Path("/sys/fs/cgroup/cpu.max")
    if quota_file.is_file():
        quota, period = quota_file.read_text(encoding="ascii").split()
        if quota != "max":
            allowed = min(allowed, max(1, math.floor(int(quota) / int(period))))
    return allowed


def has_cuda_device() -> bool:
    """Whether the NVIDIA driver is installed and finds a device; ONNX Runtime's list of providers does not show this."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return bool(driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0)
