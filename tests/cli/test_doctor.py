"""`infodisent doctor`: the verdict, the tables, and what it loads."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from tests.cli.test_cli import go

__all__ = ["go"]


def test_doctor(go, monkeypatch):
    code, text = go("doctor")
    assert code == 0, text
    for expected in (torch.__version__, "rotate_pool, cpu, float32", "backend in force", "ok"):
        assert expected in text
    monkeypatch.setenv("INFODISENT_BACKEND", "reference")
    assert "reference  (set with INFODISENT_BACKEND)" in go("doctor")[1]


def test_doctor_says_what_the_list_of_backends_says(go, monkeypatch):
    from infodisent.backends import NAMES
    from infodisent.backends.table import BY_NAME

    class Abacus(type(BY_NAME["reference"])):
        name, summary = "abacus", "beads [on wires]"

        def describe(self):
            return "built of wood"

        def objection(self, call):
            return f"too slow for {call.op}"

    monkeypatch.setitem(BY_NAME, "abacus", Abacus())
    monkeypatch.setattr("infodisent.backends.NAMES", (*NAMES, "abacus"))
    code, text = go("doctor")
    assert code == 0, text
    heading = next(line for line in text.splitlines() if "operator, device, dtype" in line)
    for name in (*NAMES[1:], "abacus"):
        gpu = name != "abacus" and BY_NAME[name].needs_gpu
        assert (f" {name} " in heading) == (torch.cuda.is_available() or not gpu)
    for expected in ("beads [on wires]", "built of wood"):
        assert expected in text
    # the reason by its number in the cell
    number = re.search(r"(\d+)  abacus: too slow for mx_pool", text)[1]
    row = next(line for line in text.splitlines() if "mx_pool, cpu, float32" in line)
    assert row.rstrip("│ ").endswith(number)


def test_doctor_fails_where_a_rotation_is_wrong(go, monkeypatch):
    monkeypatch.setattr("infodisent.ops.rotation", lambda a: torch.zeros_like(a))
    code, text = go("doctor")
    assert code == 1
    assert text.startswith("Do not use it like this")
    assert "wrong" in text


def test_the_verdict_comes_first(go, monkeypatch):
    if not torch.cuda.is_available():
        text = go("doctor")[1]
        assert text.startswith("It runs here on the CPU")
        for name in ("cuda:fp8", "GPU kernels", "--check"):  # nothing about what is not there
            assert name not in text
    monkeypatch.setattr(
        "infodisent.backends.native.module._missing", "no native module: no pybind11"
    )
    text = go("doctor")[1]
    assert "on the CPU by PyTorch alone: right, but slower" in text
    assert "For more: no native module: no pybind11" in text


@pytest.mark.parametrize(
    ("triton", "known", "said"),
    [
        ("ok", "ok", "on Abacus 9000 by Triton kernels: the fast path"),
        ("ok", None, "the first call will check the Triton kernels"),
        ("ok", "values differ", "failed their check here (values differ)"),
        ("there is no triton", None, "For more: there is no triton"),
    ],
)
def test_the_verdict_of_a_gpu(monkeypatch, triton, known, said):
    from infodisent.cli.doctor import _verdict

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Abacus 9000")
    monkeypatch.setattr("infodisent.backends.explain", lambda *a, **k: {"triton": triton})
    monkeypatch.setattr("infodisent.backends.known_verdict", lambda *a: known)
    assert said in " ".join(_verdict(True))


def test_torchvision_of_another_build_in_plain_words(go, monkeypatch):
    where = "infodisent.backbones.torchvision_import.torchvision_operators"
    for answer, said in ((False, "torchvision::nms"), (True, "fits torch"), (None, "missing")):
        monkeypatch.setattr(where, lambda answer=answer: answer)
        assert said in go("doctor")[1]


def test_doctor_loads_no_libraries_of_models():
    code = (
        "import sys, infodisent.cli.app as a\n"
        "try: a.app(['doctor'])\n"
        "except SystemExit: pass\n"
        "print('loaded:', *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, _, loaded = done.stdout.partition("loaded: ")
    assert "It runs here" in text
    assert not {"timm", "torchvision", "matplotlib", "torchmetrics"} & set(loaded.split())
    if not torch.cuda.is_available():
        assert "triton" not in loaded.split()
