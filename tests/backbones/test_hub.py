"""The hub is asked quietly, and nothing of that stays."""

from __future__ import annotations

import logging

import pytest

from infodisent.backbones import hub


@pytest.mark.parametrize("offline", [True, False])
def test_nothing_of_the_silence_stays(offline):
    constants = pytest.importorskip("huggingface_hub.constants", reason="no hub client")
    logger = logging.getLogger("huggingface_hub")
    before = logger.level, constants.HF_HUB_OFFLINE
    with hub.quiet(offline) as is_offline:
        assert is_offline == offline
        assert (offline or before[1]) == constants.HF_HUB_OFFLINE
        assert not logger.isEnabledFor(logging.WARNING)
    assert (logger.level, constants.HF_HUB_OFFLINE) == before
