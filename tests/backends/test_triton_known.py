"""What `infodisent doctor` says of the Triton kernels on a kind of GPU."""

from __future__ import annotations

import pytest
import torch

from infodisent.backends.table import BY_NAME
from infodisent.backends.triton import loading


@pytest.mark.parametrize(
    ("capability", "words"),
    [
        ((7, 5), "7.5: too old"), ((8, 0), "sm_80 and run by a simulator"),
        ((8, 9), "shared memory of sm_89"), ((9, 0), "sm_90"), ((10, 3), "sm_100; never run"),
        ((12, 1), "12.1: compiled for sm_120"),
    ],
)  # fmt: skip
def test_each_architecture_has_its_words(capability, words):
    assert words in loading.known(capability)


def test_the_table_of_backends_has_them(monkeypatch):
    monkeypatch.setattr(loading, "missing", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (12, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    assert "compute capability 12.0: compiled for sm_120" in BY_NAME["triton"].describe()
    monkeypatch.setattr(loading, "missing", lambda: "nothing there")
    assert BY_NAME["triton"].describe() == "nothing there"
