"""The verb `review`: a finished run in the browser, where a person says which verdicts were wrong."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from anomaly.inference.session import Device
from anomaly.runs.models import RunModels
from anomaly.runs.review_session import Reviewed
from anomaly.service.auth import Guard, is_loopback, read_token
from anomaly.service.limits import BYTES_A_PIXEL, Limits
from anomaly.service.review.app import PICTURE_THREADS, Review, create_review_app
from anomaly.service.review.pictures import RunPictures
from anomaly.service.server import find_address, serve_on

MAX_BODY = 2**12
MAX_REQUESTS = 64
SECONDS = 30.0


def review(
    run: Path,
    *,
    by: str = "",
    images: str = "",
    device: Device = "cpu",
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: str = "",
    allow_anonymous: bool = False,
) -> int:
    """Open a finished run in the browser, sorted and filtered, and keep the labels of a person beside it, until Ctrl-C.

    Args:
        run: the run directory, or one that was merged.
        by: who labels; stands in the file of labels.
        images: where images that were moved are found again, by their SHA-256: a folder, glob or list.
        device: to score on again where the run kept no maps.
        host: address to listen on; this machine alone by default.
        port: to listen on; 0 takes a free one, which is printed.
        token_file: file with the bearer token that requests have to bring; else the environment's ANOMALY_TOKEN.
        allow_anonymous: listen beyond this machine without a token.

    Returns:
        0 after the end that was asked for.

    Raises:
        UsageError: a listening address beyond this machine without a token.
        DataError: an unfinished run, rows or labels that cannot be read.
        ModelError: the run's copy of a model is none.
        OutputError: an address that cannot be listened on.
    """
    token = read_token(token_file)
    address = find_address(host, port, token=token, allow_anonymous=allow_anonymous)
    made = make_review(run, by=by, images=images, device=device)
    print(f"{run}: {len(made.reviewed.index):,} images; labels in {made.reviewed.file}", file=sys.stderr)
    guard = Guard(token=token, loopback=is_loopback(address.host))
    serve_on(address, create_review_app(made, guard=guard, log=_write_failure), limits=made.limits)
    return 0


def make_review(run: Path, *, by: str, images: str, device: Device) -> Review:
    """Read a run for its review; arguments and errors are those of `review`."""
    reviewed = Reviewed(run, by=by)
    models = RunModels(run, device=device)
    max_pixels = models.asked["max_pixels"]
    limits = Limits(
        max_body=MAX_BODY,
        max_pixels=max_pixels,
        max_images=PICTURE_THREADS,
        max_requests=MAX_REQUESTS,
        max_memory=2**20 + 2 * BYTES_A_PIXEL * max_pixels,
        timeout=SECONDS,
    )
    return Review(reviewed, models=models, pictures=RunPictures(models, images=images), limits=limits)


def _write_failure(entry: dict[str, Any]) -> None:
    """Write what went wrong here; a page of thumbnails would fill the screen with what went well."""
    if entry["status"] >= 500:
        with suppress(OSError):  # nobody reads any more: requests are answered all the same
            print(json.dumps(entry), file=sys.stderr)
