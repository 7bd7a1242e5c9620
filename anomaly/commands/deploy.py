"""The verb `deploy`: a model as an entry of a Triton model repository."""

from __future__ import annotations

from pathlib import Path

from anomaly.deployment.triton import deploy

__all__ = ["deploy", "show"]


def show(entry: Path) -> None:
    """Print the command that serves the entry."""
    print(f"{entry}: serve it with `NVIDIA_TF32_OVERRIDE=0 tritonserver --model-repository={entry.parent}`")
