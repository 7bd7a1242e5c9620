"""How many processors this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path


def num_cpus() -> int:
    """Count the processors of this process: its affinity, within the control group's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota_file = Path("/sys/fs/cgroup/cpu.max")
    if quota_file.is_file():
        quota, period = quota_file.read_text().split()
        if quota != "max":
            allowed = min(allowed, max(1, math.floor(int(quota) / int(period))))
    return allowed
