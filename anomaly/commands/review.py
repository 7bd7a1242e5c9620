"""The verb `review`: the review page of a finished run, with failed requests on standard error."""

from __future__ import annotations

import logging
from functools import wraps
from typing import Any

from anomaly.commands._service_log import service_log
from anomaly.service.review.serve import review as run_review


@wraps(run_review)
def review(*arguments: Any, **options: Any) -> None:
    """Serve the review and print the log; a page of thumbnails makes too many requests to print them all."""
    with service_log(requests=logging.ERROR):
        run_review(*arguments, **options)
