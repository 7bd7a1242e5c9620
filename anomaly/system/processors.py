"""What this process may compute on."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from pathlib import Path


def num_cpus() -> int:
    """Count the processors of this process: its affinity, within the control group's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota_file = Path("/sys/fs/cgroup/cpu.max")
    if quota_file.is_file():
        quota, period = quota_file.read_text(encoding="ascii").split()
        if quota != "max":
            allowed = min(allowed, max(1, math.floor(int(quota) / int(period))))
    return allowed


def has_cuda_device() -> bool:
    """Whether the NVIDIA driver is here and counts a device; the list of providers does not tell."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return bool(driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0)
