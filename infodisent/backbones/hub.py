"""The model hub, asked once and quietly: without a network its own client tries ten times."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

_LOGGERS = ("huggingface_hub", "timm", "transformers")
_SECONDS = 5.0
"""For the hub to answer at all; what it then sends may take as long as it takes."""


@contextmanager
def quiet(offline: bool | None = None) -> Iterator[bool]:
    """Ask the hub without retries and log lines; yields whether only the local cache is used.

    Args:
        offline: use nothing but the local cache; None: find out whether the hub answers.
    """
    with ExitStack() as stack:
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        offline = not _answers() if offline is None else offline
        constants = _constants()
        if offline and constants is not None:
            stack.enter_context(mock.patch.object(constants, "HF_HUB_OFFLINE", True))
        yield offline


def _constants() -> Any:
    try:
        from huggingface_hub import constants
    except ImportError:
        return None
    return constants


def _answers() -> bool:
    constants = _constants()
    if constants is None or constants.HF_HUB_OFFLINE:
        return False
    from huggingface_hub import utils

    try:
        utils.get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception:  # every version of the client has failures of its own
        return False
    return True
