"""The main job in several processes: the same folder as one makes, up to the order of sums."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

from infodisent.cli.app import app
from infodisent.explanations.prototypes import Prototypes
from infodisent.files import read_tensors
from tests.ranks import ROOT, torchrun

METHODS = {"infodisent": [], "protopnet": ["-O", "per_class=2", "-O", "dimension=8"]}
METHODS["epic"] = ["-O", "images=6"]
METHODS["backbone"] = ["--train-backbone", "--backbone-lr", "1e-3", "--accumulate", "2"]
METHODS["backbone"] += ["--ema", "0.9"]
FIT = [
    "--backbone", "test_resnet", "--no-pretrained", "--epochs", "3", "--batch-size", "7",
    "--validation", "0.2", "--device", "cpu",
]  # fmt: skip


def command(folder, out, method):
    options = METHODS[method]
    return [
        "-m",
        "infodisent",
        "fit",
        str(folder),
        *FIT,
        "-o",
        str(out),
        *([] if method == "backbone" else ["--method", method]),
        *options,
    ]


def outcome(run):
    metrics = json.loads((run / "metrics.json").read_text())
    tensors, _ = read_tensors(run / "model.safetensors")
    return metrics, tensors, Prototypes.load(run / "prototypes.safetensors")


@pytest.mark.parametrize(
    ("method", "processes"),
    [
        ("infodisent", 2),
        pytest.param("protopnet", 2, marks=pytest.mark.slow),
        pytest.param("epic", 2, marks=pytest.mark.slow),
        pytest.param("backbone", 2, marks=pytest.mark.slow),
        pytest.param("backbone", 4, marks=pytest.mark.slow),
    ],
)
def test_several_processes_make_what_one_makes(method, processes, image_folder, tmp_path):
    alone = CliRunner().invoke(app, command(image_folder, tmp_path / "one", method)[2:])
    assert alone.exit_code == 0, alone.output
    done = torchrun(processes, *command(image_folder, tmp_path / "two", method))
    assert done.stdout.count("linear probe") == 1  # only the leading process speaks
    one, two = outcome(tmp_path / "one"), outcome(tmp_path / "two")
    for rows in zip(one[0]["rows"], two[0]["rows"], strict=True):
        assert rows[0]["head"] == rows[1]["head"]
        assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-3)
        assert rows[0]["accuracy"] == rows[1]["accuracy"]
    for name, value in one[1].items():
        torch.testing.assert_close(
            two[1][name], value, rtol=1e-3, atol=1e-4, equal_nan=True, msg=name
        )
    assert torch.equal(one[2].pos_image, two[2].pos_image)
    assert sorted(f.name for f in (tmp_path / "two").iterdir()) == sorted(
        f.name for f in (tmp_path / "one").iterdir()
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_killed_processes_lose_nothing(seed, image_folder, tmp_path):
    """Any process may end at any moment: the job ends, and the next start goes on."""
    random = torch.Generator().manual_seed(seed)
    out = tmp_path / "run"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    launch += command(image_folder, out, "infodisent")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(3):
        job = subprocess.Popen(
            launch, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        time.sleep(4 + 12 * torch.rand(1, generator=random).item())
        workers = _children(job.pid)
        if workers and job.poll() is None:
            victim = workers[int(torch.randint(len(workers), (1,), generator=random))]
            os.kill(victim, signal.SIGKILL)
        job.communicate(timeout=120)
    done = torchrun(2, *command(image_folder, out, "infodisent"))
    assert "linear probe" in done.stdout
    torchrun(2, *command(image_folder, tmp_path / "whole", "infodisent"))
    killed, whole = outcome(out), outcome(tmp_path / "whole")
    for name, value in whole[1].items():
        assert torch.equal(killed[1][name], value), name


def _children(pid):
    text = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    ).stdout
    return [int(line) for line in text.split()]
