"""Patience with the model hub: without a network its client tries for a minute, and says so."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

RETRIES = 1
"""How often a request is repeated that got no answer, of all requests in a block together."""
_LOGGER = "huggingface_hub.utils._http"


class _Patience(logging.Filter):
    """Sits where the client tells of a failed request, and lets the failure out when it is enough.

    The client has no option for it. What it raises is then what it raises after its last attempt,
    so that a file in the cache is found as ever.
    """

    failures = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Drop warnings; raise the error that is being handled once there were enough of them."""
        error = sys.exc_info()[1]
        if error is not None and record.getMessage().startswith("'"):  # 'reason' thrown while …
            self.failures += 1
            if self.failures > RETRIES:
                raise error
        return record.levelno > logging.WARNING


@contextlib.contextmanager
def one_retry() -> Iterator[None]:
    """In the block the hub's client repeats one request at most, without a word."""
    logger, patience = logging.getLogger(_LOGGER), _Patience()
    logger.addFilter(patience)
    try:
        yield
    finally:
        logger.removeFilter(patience)
