"""What is printed where: consoles of any encoding, pipes, and one line for whatever goes wrong."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import io
import re
import sys

import pytest
import torch

from infodisent import progress
from infodisent.backbones import hub
from infodisent.cli import app as cli
from infodisent.cli.errors import one_line
from infodisent.files import replacing, write_json, write_tensors, write_text
from tests.cli.test_cli import go

__all__ = ["go"]

ENCODINGS = ("cp1252", "cp437", "ascii", "latin-1", "utf-8")
SIGNS = "× 4 – … 猫 🙂 ≥ \udce9"  # the last is a byte of a file's name that is no UTF-8


def stream(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")


def written(file: io.TextIOWrapper) -> str:
    file.flush()
    return file.buffer.getvalue().decode(file.encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_console_of_a_program_prints_replacements(monkeypatch, encoding):
    file = stream(encoding)
    monkeypatch.setattr(sys, "stdout", file)
    progress.console.print(SIGNS, soft_wrap=True, markup=False)
    with progress.bar() as display:
        task = display.add_task(SIGNS, total=1, note=SIGNS)
        display.advance(task)
    text = written(file)
    assert "4" in text
    unknown = "猫 🙂" if encoding == "utf-8" else r"\? \?"
    assert re.search(rf"(…|\.\.\.) {unknown} (≥|>=) \?", text)
    assert file.errors == "strict"  # nothing of the program's own is changed


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_commands_print_on_any_console(monkeypatch, encoding):
    out, err = stream(encoding), stream(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    for arguments, code in (
        (["--help"], 0),
        (["fit", "-h"], 0),
        (["doctor"], 0),
        (["explain", "猫.png", "--run", "犬"], 2),
        (["猫"], 2),
        (["fit", "d", "--epochs", "猫"], 2),
    ):
        monkeypatch.setattr(sys, "argv", ["infodisent", *arguments])
        try:
            cli.main()
            stopped = 0
        except SystemExit as stop:
            stopped = stop.code or 0
        assert stopped == code, arguments
    text = written(out) + written(err)
    assert "Traceback" not in text
    assert "does not exist" in text


def test_a_whole_run_with_labels_that_the_console_lacks(monkeypatch, tmp_path, image_folder):
    (image_folder / "red").rename(image_folder / "猫")
    out = stream("cp437")
    monkeypatch.setattr(sys, "stdout", out)
    command = ["infodisent", "fit", image_folder, "-b", "test_resnet", "--no-pretrained"]
    command += ["--epochs", "1", "-o", tmp_path / "犬"]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    text = written(out)
    assert not stop.value.code, text
    assert [line.split()[0] for line in text.splitlines()[-2:]] == ["next", "or"]
    assert text.count("extract features") == 2  # its start and its end


def test_lines_where_there_is_no_terminal(monkeypatch):
    file, now = io.StringIO(), [0.0]
    monkeypatch.setattr(progress.console, "_file", file)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.bar() as display:
        display.get_time = lambda: now[0]
        task = display.add_task("extract", total=100, completed=20, note="")
        assert file.getvalue() == "extract 20/100\n"
        for step in range(80):
            now[0] += 1.0
            display.update(task, advance=1, note=f"[b]loss {step}")
        display.update(task, note="late")
    lines = file.getvalue().splitlines()
    assert len(lines) == 1 + 80 // 15 + 1
    assert lines[1] == "extract 35/100, 0:00:15, eta 0:01:05, [b]loss 14"
    assert lines[-1] == "extract 100/100, 0:01:20, [b]loss 79"


def test_an_interrupted_stage_says_where_it_was(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(progress.console, "_file", file)
    with progress.bar() as display:  # left without an end, as an error leaves it
        display.advance(display.add_task("extract", total=10, note=""), 4)
    assert file.getvalue().splitlines()[-1].startswith("extract 4/10")


def test_no_lines_where_nobody_wants_them(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(progress.console, "_file", file)
    with progress.bar(False) as display:
        display.advance(display.add_task("extract", total=1, note=""))
    assert file.getvalue() == ""


def failing(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b.bin"), "a/b.bin (make room or"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "denied: /x (give a folder"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "/x (give a folder that may be"),
        (ConnectionError("no answer\nsecond line"), "no answer (the traceback: INFODISENT_TRACE"),
        (RuntimeError("mat1 and mat2\nat frame 1"), "mat2 (the traceback: INFODISENT_TRACEBACK=1)"),
        (torch.OutOfMemoryError("CUDA out of memory\nmore"), "use smaller batches"),
        (KeyError("pixels"), "'pixels' (the traceback"),
        (AssertionError(), "AssertionError (the traceback"),
        (ValueError("fit: lr is -1, must be >= 0"), "ValueError: fit: lr is -1, must be >= 0\n"),
    ],
)
def test_every_error_is_one_line(go, monkeypatch, error, said):
    monkeypatch.setattr(cli, "app", failing(error))
    code, text = go("fit")
    assert code == 2
    assert said in text
    assert text.count("\n") == 1
    monkeypatch.setenv("INFODISENT_TRACEBACK", "1")
    with pytest.raises(type(error)):
        go("fit")


def test_a_package_that_a_file_of_the_user_lacks(go, tmp_path, image_folder):
    own = tmp_path / "own.py"
    own.write_text("import nobody_has_this\n")
    code, text = go("fit", image_folder, "--module", f"{own}:net", "-o", tmp_path / "run")
    assert code == 2
    said = f"No module named 'nobody_has_this', which {own} imports: install the package"
    assert said in text


def test_tuning_without_triton(go, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, text = go("tune", "--shape", "resnet50")
    assert code == 2
    assert "Triton is not installed: pip install triton (on Linux, for an NVIDIA GPU)" in text
    assert "the other backends need none" in text


def test_weights_that_cannot_be_fetched(go, monkeypatch, tmp_path, image_folder):
    import timm

    def fetch(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(timm, "create_model", fetch)
    monkeypatch.setattr(hub, "_answers", lambda: False)
    code, text = go("fit", image_folder, "-b", "resnet18", "-o", tmp_path / "run")
    assert code == 2
    said = text.partition("Without a network, give a file of them (--weights FILE")[2]
    assert "--no-pretrained) leaves the weights random, and features that mean little" in said


def test_our_own_errors_are_shown_whole():
    from infodisent.classifier import attach

    with pytest.raises(TypeError) as caught:
        attach("test_resnet", 2, input_fmt="NCHW")
    assert one_line(caught.value) == str(caught.value)


@contextlib.contextmanager
def small_files():
    """The system refuses files of more than 1000 bytes, as a full disk would.

    That of pytest's own output too, so this must not be a fixture: pytest writes before it ends.
    """
    resource = pytest.importorskip("resource", reason="limits on files are Unix's")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "x" * 10_000),
        lambda path: write_json(path, ["x" * 10_000]),
        lambda path: write_tensors(path, {"x": torch.zeros(10_000)}),
    ],
    ids=["text", "json", "tensors"],
)
def test_a_file_that_cannot_be_written_is_named(tmp_path, write):
    path = tmp_path / "kept.file"
    with pytest.raises(OSError) as caught, small_files():
        write(path)
    assert caught.value.errno == errno.EFBIG
    assert one_line(caught.value).endswith(f"too large: {path}")
    assert list(tmp_path.iterdir()) == []  # nothing half-written is left


def test_errors_of_other_files_keep_their_names(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "new"):
        (tmp_path / "missing").read_bytes()
    assert caught.value.filename.endswith("missing")


def test_text_of_names_that_are_no_text(tmp_path):
    write_text(tmp_path / "page.html", "caf\udce9 猫")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "caf? 猫"


@pytest.mark.parametrize("device", ["cuda:99", "mps", "meta", "xla", "gpu"])
def test_a_device_that_is_not_there(go, monkeypatch, device):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("it is there")
    monkeypatch.setattr("infodisent.data.images.scan_folder", failing(AssertionError("too late")))
    code, text = go("fit", "nowhere", "--device", device)
    assert code == 2
    assert f"device '{device}' cannot be used: " in text
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    ["", *(c.__name__ for c in cli.COMMANDS)],
)
def test_short_help_and_an_example(go, command):
    code, text = go(*([command] if command else []), "-h")
    assert code == 0
    assert "Usage" in text
    assert not command or f"Example: infodisent {command}" in text
