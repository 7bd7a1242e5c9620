"""Serve the review of a finished run, or of the training images of a fitted model."""

from __future__ import annotations

import logging
from pathlib import Path

from anomaly.inference.session import Device
from anomaly.runs.models import RunModels
from anomaly.runs.review_session import ReviewSession
from anomaly.runs.training_review import TrainingImages, TrainingReview, is_fitted_model
from anomaly.service.access_log import log_request
from anomaly.service.auth import Guard, is_loopback, read_token
from anomaly.service.limits import BYTES_PER_PIXEL, Limits
from anomaly.service.review.app import PICTURE_THREADS, ReviewService, create_review_app
from anomaly.service.review.pictures import RunPictures
from anomaly.service.server import find_address, run_server

MAX_BODY = 2**12
MAX_REQUESTS = 64
TIMEOUT_SECONDS = 30.0
_log = logging.getLogger(__name__)


def review(
    run: str | Path,
    *,
    by: str | None = None,
    images: str | Path | None = None,
    device: Device = "cpu",
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: str | Path | None = None,
    allow_anonymous: bool = False,
) -> None:
    """Serve the review page of a finished run until SIGINT (Ctrl-C); labels are stored beside the run.

    For a fitted model, the page shows its training images, the suspicious ones first. Images labelled as defective stand in
    its file exclude.txt, for `anomaly fit --exclude`.

    Args:
        run: folder of a finished or merged run, or of a fitted model.
        by: reviewer's name in the file of labels.
        images: folder, glob or list to search for moved images, by their SHA-256.
        device: device that computes missing anomaly maps: auto, cpu, cuda or tensorrt.
        host: listening address; by default this machine only.
        port: listening port; 0 takes a free port, shown in the log.
        token_file: file with the bearer token that requests must bring; by default the environment variable
            ANOMALY_TOKEN.
        allow_anonymous: accept requests of other machines without a token.

    Raises:
        UsageError: a listening address that other machines can reach without a token.
        DataError: an unfinished run, or unreadable rows or labels.
        ModelError: the run's copy of a model is invalid.
        OutputError: the listening address is not available.
    """
    token = read_token(token_file)
    address = find_address(host, port, token=token, allow_anonymous=allow_anonymous)
    service = open_review(run, by=by, images=images, device=device)
    _log.info("%s: %s images; labels in %s", run, f"{len(service.session.index):,}", service.session.file)
    guard = Guard(token=token, loopback=is_loopback(address.host))
    run_server(address, create_review_app(service, guard=guard, log=log_request), limits=service.limits)


def open_review(run: str | Path, *, by: str | None, images: str | Path | None, device: Device) -> ReviewService:
    """Open a run or a fitted model for its review; arguments and errors are those of `review`."""
    session: ReviewSession
    models: RunModels
    if is_fitted_model(run):
        session = training = TrainingReview(run, by=by)
        models = TrainingImages(training)
    else:
        session, models = ReviewSession(run, by=by), RunModels(run, device=device)
    max_pixels = models.options["max_pixels"]
    limits = Limits(
        max_body=MAX_BODY,
        max_pixels=max_pixels,
        max_images=PICTURE_THREADS,
        max_requests=MAX_REQUESTS,
        max_memory=2**20 + 2 * BYTES_PER_PIXEL * max_pixels,
        timeout=TIMEOUT_SECONDS,
    )
    return ReviewService(session, models=models, pictures=RunPictures(models, images=images), limits=limits)
