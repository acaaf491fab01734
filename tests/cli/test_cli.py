"""The command line, as a newcomer meets it."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import pytest
import torch

from infodisent.cli import app as cli
from infodisent.progress import console


def run(monkeypatch, capsys, *arguments) -> tuple[int, str]:
    """Exit code and everything printed."""
    monkeypatch.setattr(sys, "argv", ["infodisent", *map(str, arguments)])
    monkeypatch.setattr(console, "_file", sys.stdout)
    monkeypatch.setattr(console, "_width", 200)
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.fixture
def go(monkeypatch, capsys):
    return lambda *arguments: run(monkeypatch, capsys, *arguments)


FIT = ("--backbone", "test_resnet", "--no-pretrained", "--epochs", 2, "--batch-size", 8)


def test_fit_evaluate_explain_prototypes(tmp_path, image_folder, go):
    out = tmp_path / "run"
    code, text = go("fit", image_folder, *FIT, "--out", out)
    assert code == 0, text
    for expected in ("linear probe", "no rotation", "channels", "1 image(s) could not"):
        assert expected in text
    metrics = json.loads((out / "metrics.json").read_text())
    names = [row["head"] for row in metrics["rows"]]
    assert names == ["linear probe", "InfoDisent", "no rotation"]

    code, text = go("evaluate", "--run", out)
    assert code == 0, text
    assert "InfoDisent" in text
    code, text = go("evaluate", "--run", out, "--images", image_folder)
    assert code == 0, text
    assert "23 held-out images" in text

    image = next((image_folder / "red").glob("*.png"))
    code, text = go("explain", image, "--run", out, "--out", tmp_path / "why", "--class", "green")
    assert code == 0, text
    written = sorted(p.suffix for p in (tmp_path / "why").rglob("*") if p.is_file())
    assert ".png" in written
    assert ".html" in written
    page = next((tmp_path / "why").rglob("*.html")).read_text()
    assert "green" in page

    code, text = go("prototypes", "--run", out, "-k", 3)
    assert code == 0, text
    assert next(out.glob("*.png")).stat().st_size > 10_000

    # the same command again does no work twice and says the same
    code, _ = go("fit", image_folder, *FIT, "--out", out)
    assert code == 0
    assert json.loads((out / "metrics.json").read_text())["rows"] == metrics["rows"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit", "nowhere"), "nowhere is not a folder"),
        (("fit", "FOLDER", "--backbone", "resnet51", "--no-pretrained"), "did you mean"),
        (("fit", "FOLDER", *FIT, "--nonneg", "exp"), "'exp', allowed are relu, softplus"),
        (("fit", "FOLDER", *FIT, "--device", "tpu9"), "device 'tpu9' cannot be used"),
        (("fit", "FOLDER", *FIT, "--feature-dtype", "int8"), "dtype is 'int8'"),
        (("fit", "FOLDER", *FIT, "--val-fraction", "2"), "val_fraction is 2"),
        (("fit", "FOLDER", *FIT, "--weights", "gone.pth"), "gone.pth is not a file"),
        (("evaluate", "--run", "nowhere"), "nowhere is not a run"),
        (("explain", "x.png", "--run", "FOLDER"), "model.safetensors does not exist"),
        (("bench", "--shape", "resnet99"), "shape is 'resnet99'"),
        (("tune", "--shape", "resnet99"), "tune: shape is 'resnet99'"),
        (("tune", "--dtype", "float64"), "tune: dtype is 'float64'"),
        (("bench", "--op", "gemm"), "op is 'gemm'"),
    ],
)
def test_errors_are_one_line(tmp_path, image_folder, go, arguments, message):
    arguments = [image_folder if a == "FOLDER" else a for a in arguments]
    if arguments[0] == "fit":
        arguments += ["--out", tmp_path / "run"]
    code, text = go(*arguments)
    assert code == 2
    assert message in text
    assert "Traceback" not in text


def test_version(go):
    from infodisent.version import __version__

    assert go("--version") == (0, __version__ + "\n")


def test_as_a_module():
    from infodisent.version import __version__

    command = [sys.executable, "-m", "infodisent.cli", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == __version__ + "\n"


def test_help_does_not_wait_for_heavy_imports():
    code = (
        "import sys, infodisent.cli.app\n"
        "try: infodisent.cli.app.app(['--help'])\n"
        "except SystemExit: pass\n"
        "print('loaded:', *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    text, _, loaded = result.stdout.partition("loaded: ")
    assert "Usage" in text
    assert "typer" in loaded.split()
    assert not {"torch", "numpy", "timm", "torchvision", "matplotlib", "jinja2", "PIL"} & set(
        loaded.split()
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fit", "FOLDER"), "interrupted; the same command goes on from here"),
        (("demo", "--overwrite"), "the same command without --overwrite goes on from here"),
        (("bench",), "interrupted\n"),
        (("explain", "fit"), "interrupted\n"),
    ],
)
def test_interrupted(monkeypatch, go, arguments, said):
    monkeypatch.setattr(cli, "app", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    code, text = go(*arguments)
    assert code == 130
    assert said in text


@pytest.mark.parametrize(
    "compiler",
    ["eager", pytest.param("inductor", marks=pytest.mark.slow)],  # it takes 20 seconds
)
def test_bench(tmp_path, go, monkeypatch, compiler):
    compile_with = functools.partial(torch.compile, backend=compiler)
    monkeypatch.setattr(torch, "compile", compile_with)
    code, text = go(
        "bench", "--op", "mx_pool", "--shape", "resnet34", "--batch", 1, "--rounds", 1,
        "--json", tmp_path / "b.json",
    )  # fmt: skip
    assert code == 0, text
    report = json.loads((tmp_path / "b.json").read_text())
    assert {r["mode"] for r in report["results"]} == {"forward", "forward+backward"}
    assert report["machine"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    "command",
    [
        "",
        "demo",
        "fit",
        "evaluate",
        "judge",
        "predict",
        "explain",
        "prototypes",
        "methods",
        "bench",
        "tune",
        "doctor",
    ],
)
def test_help(go, command):
    code, text = go(*([command] if command else []), "--help")
    assert code == 0
    assert "Usage" in text


def test_one_method_and_its_options(go):
    code, text = go("methods", "protopool")
    assert code == 0, text
    for expected in (
        *("ProtoPool", "Rymarczyk", "similarity=cosine", "allowed are cosine, l2"),
        *("pool_size=null", "default: 10 K", "--method protopool -O slots=10"),
    ):
        assert expected in text, expected
    code, text = go("methods", "protopol")
    assert code == 2
    assert "method is 'protopol', allowed are infodisent, protopnet" in text
    assert "infodisent methods NAME" in go("methods")[1]


def test_interrupted_overwrite_leaves_no_old_model(tmp_path, image_folder, go, monkeypatch):
    out = tmp_path / "run"
    assert go("fit", image_folder, *FIT, "--out", out)[0] == 0
    from infodisent.training import run as pipeline

    monkeypatch.setattr(
        pipeline, "fit_head", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    assert go("fit", image_folder, *FIT, "--seed", 1, "--out", out, "--overwrite")[0] == 130
    code, text = go("evaluate", "--run", out)
    assert code == 2
    assert "model.safetensors does not exist" in text


def test_a_run_in_use_is_refused(tmp_path, image_folder, go):
    from infodisent.files import locked

    with locked(tmp_path / "run"):
        code, text = go("fit", image_folder, *FIT, "--out", tmp_path / "run")
    assert code == 2
    assert "in use by another process" in text


def test_explain_skips_what_it_cannot_read(tmp_path, image_folder, go):
    out, why = tmp_path / "run [/b]", tmp_path / "why"
    assert go("fit", image_folder, *FIT, "--out", out)[0] == 0
    good, bad = image_folder / "red" / "01.png", image_folder / "red" / "07.png"
    code, text = go("explain", good, bad, "--run", out, "--out", why)
    assert code == 1
    assert "1 image(s) could not be read" in text
    assert (why / "report.html").is_file()
    code, text = go("explain", good, "--run", out, "--out", good)
    assert code == 2
    assert "is a file, expected a folder" in text
