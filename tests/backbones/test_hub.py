"""Without a network: one retry, no warnings, one message."""

from __future__ import annotations

import logging
import time

import pytest

from infodisent import attach
from infodisent.backbones.hub import one_retry

LOG = logging.getLogger("huggingface_hub.utils._http")


def backoff(request, retries=5):
    """The client's loop, as far as it talks."""
    for attempt in range(retries + 1):
        try:
            return request()
        except ConnectionError as error:
            LOG.warning(f"'{error}' thrown while requesting HEAD somewhere")
            if attempt == retries:
                raise
        LOG.warning(f"Retrying in 1s [Retry {attempt + 1}/{retries}].")
    return None


def test_one_retry_of_all_requests_together(caplog):
    calls = []

    def request():
        calls.append(1)
        raise ConnectionError("no name")

    with one_retry():
        for _ in range(2):  # one file, and then the other kind of file
            with pytest.raises(ConnectionError, match="no name"):
                backoff(request)
    assert len(calls) == 3
    assert caplog.records == []
    with pytest.raises(ConnectionError):
        backoff(request)
    assert len(calls) == 3 + 6  # nothing of it stays


def test_an_answer_after_one_retry():
    answers = iter([ConnectionError("busy"), "fine"])

    def request():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with one_retry():
        assert backoff(request) == "fine"


def test_published_weights_without_a_network(monkeypatch, tmp_path, caplog):
    http = pytest.importorskip("huggingface_hub.utils._http")
    library = getattr(http, "httpx2", None) or getattr(http, "httpx", None)
    if library is None:
        pytest.skip("another client")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    calls = []

    class Nothing:
        def request(self, **_):
            calls.append(1)
            raise library.ConnectError("no name")

    monkeypatch.setattr(http, "get_session", Nothing)
    start = time.monotonic()
    with pytest.raises(ValueError, match="published weights of 'resnet18' could not be loaded"):
        attach("resnet18", 2, pretrained=True)
    assert len(calls) <= 6  # it was 12
    assert time.monotonic() - start < 20
    assert not [r for r in caplog.records if r.name.startswith("huggingface_hub")]
