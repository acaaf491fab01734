"""A process of a job may be killed at any moment: no file is torn, and the next start goes on.

Jobs are forks of a process that has imported everything, so that kills come while images are
extracted and heads train, not while modules load. ``KILL_SEEDS=34 pytest -m slow -rP
tests/training/test_kills.py`` makes 102 kills and says where each came.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from infodisent.data.fingerprints import LOOKS
from infodisent.explanations.prototypes import Prototypes
from infodisent.files import read_tensors
from tests.ranks import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")

SEEDS, KILLS, STARTS = int(os.environ.get("KILL_SEEDS", "3")), 3, 12
PROCESSES, IMAGES, SHARD, PATIENCE = 2, 60, 16, 120.0
SHARDS = -(-2 * IMAGES // SHARD)
OPTIONS = [
    "--backbone", "test_resnet", "--no-pretrained", "--epochs", "12", "--batch-size", "16",
    "--validation", "0.2", "--device", "cpu",
]  # fmt: skip

HOST = """
import os, sys, json
import torch, torch._dynamo, torch.distributed
torch.set_num_threads(1)
from infodisent.backbones.torchvision_import import ensure_torchvision
ensure_torchvision()
import timm, matplotlib.figure
import infodisent.cli.app, infodisent.training.run, infodisent.explanations.prototypes
from infodisent.cli.app import main
infodisent.data.extraction.extract.__kwdefaults__["shard_size"] = int(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    children = []
    for rank in range(job["processes"]):
        child = os.fork()
        if not child:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": job["port"],
                           "WORLD_SIZE": str(job["processes"]), "MASTER_ADDR": "127.0.0.1"}
            log = os.open(job["log"] + str(rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1), os.dup2(log, 2)
            sys.argv = ["infodisent", *job["arguments"]]
            code = 0
            try:
                main()
            except SystemExit as stop:
                code = stop.code or 0
            except BaseException:
                import traceback
                traceback.print_exc()
                code = 3
            sys.stdout.flush()
            os._exit(code)
        children.append(child)
    print(json.dumps(children), flush=True)
    for _ in children:
        child, status = os.wait()
        print(json.dumps([child, os.waitstatus_to_exitcode(status)]), flush=True)
"""


class Host:
    """Starts jobs of several processes, and tells how each ended."""

    def __init__(self, folder):
        self._folder = folder
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-c", HOST, str(SHARD)],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout.readline() == "ready\n"

    def start(self, arguments):
        """Numbers of the processes of a job."""
        for file in self._folder.glob("log*"):
            file.unlink()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        job = {"processes": PROCESSES, "arguments": arguments, "port": port}
        job["log"] = str(self._folder / "log")
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def ends(self, processes):
        """Exit codes, by the processes' numbers; one that outlives the others by long is killed."""
        codes, watch = {}, threading.Timer(PATIENCE, lambda: [_end(p) for p in processes])
        watch.start()
        for _ in processes:
            process, code = json.loads(self._process.stdout.readline())
            codes[process] = code
        watch.cancel()
        return codes

    def said(self):
        return "".join(file.read_text() for file in sorted(self._folder.glob("log*")))

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def _end(process):
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    made = Host(tmp_path_factory.mktemp("logs"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes of so many images: eight shards, one with an image that cannot be read."""
    random, root = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")
    for name, channel in (("red", 0), ("green", 1)):
        (root / name).mkdir()
        for number in range(IMAGES):
            pixels, at = random.integers(0, 60, (40, 48, 3), dtype=np.uint8), number % 20
            pixels[10:20, 10 + at : 20 + at, channel] = 255
            Image.fromarray(pixels).save(root / name / f"{number:02d}.png")
    (root / "red" / "20.png").write_bytes(b"no picture")
    return root


def arguments(pictures, out):
    return ["fit", str(pictures), *OPTIONS, "-o", str(out)]


@pytest.fixture(scope="module")
def whole(host, pictures, tmp_path_factory):
    """A run that nothing disturbs, and the seconds it takes."""
    out, start = tmp_path_factory.mktemp("whole") / "run", time.perf_counter()
    codes = host.ends(host.start(arguments(pictures, out)))
    assert set(codes.values()) == {0}, host.said()
    return out, time.perf_counter() - start


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS))
def test_killed_processes_lose_nothing_and_tear_no_file(seed, host, pictures, whole, tmp_path):
    random, (undisturbed, seconds) = torch.Generator().manual_seed(seed), whole
    out, moments = tmp_path / "run", []
    for _ in range(STARTS):
        if len(moments) == KILLS:
            break
        after = seconds * torch.rand(1, generator=random).item()
        moment = killed(host, arguments(pictures, out), out, after, random)
        check_files(out)
        if moment is None:  # it has ended: from the start again, and sooner
            shutil.rmtree(out)
            seconds *= 0.7
        else:
            moments.append(moment)
    print(f"seed {seed}: killed in {', '.join(moments)}")
    assert len(moments) == KILLS  # others came when the job had ended
    codes = host.ends(host.start(arguments(pictures, out)))
    assert set(codes.values()) == {0}, host.said()
    assert names(out) == names(undisturbed)  # nothing is left behind
    metrics, full = (json.loads((run / "metrics.json").read_text()) for run in (out, undisturbed))
    assert metrics["rows"] == full["rows"]
    assert metrics["history"] == full["history"]
    tensors, expected = (read_tensors(run / "model.safetensors")[0] for run in (out, undisturbed))
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(tensors[name], value, rtol=0, atol=0, equal_nan=True, msg=name)
    found, best = (Prototypes.load(run / "prototypes.safetensors") for run in (out, undisturbed))
    assert torch.equal(found.pos_image, best.pos_image)


def killed(host, arguments, out, after, random):
    """Start the job and kill one of its processes after so many seconds; how far it was then.

    None where it had ended before. The other process must end by itself, and say why; while they
    look for each other torchrun would end it.
    """
    processes = host.start(arguments)
    victim = processes[int(torch.randint(len(processes), (1,), generator=random))]
    time.sleep(after)
    # before the leading process speaks, they look for each other
    moment = where(out) if host.said() else "start"
    _end(victim)
    if moment == "start":
        time.sleep(1)
        [_end(process) for process in processes]
    codes = host.ends(processes)
    if codes[victim] != -signal.SIGKILL:  # too late
        assert set(codes.values()) == {0}, host.said()
        return None
    survivors = {code for process, code in codes.items() if process != victim}
    if moment != "start" and survivors != {0}:  # the victim may have been all but done
        assert survivors == {2}, (codes, host.said())
        assert "another process of this job has ended" in host.said()
    return moment


def where(out):
    """How far a job is, by what lies in its folder."""
    if len(list((out / "features").glob("shard-?????.safetensors"))) < SHARDS:
        return "extraction"
    if not (out / "training.safetensors").is_file():
        return "probe"
    return "end" if (out / "model.safetensors").is_file() else "training"


def check_files(out):
    """Whatever has its final name is whole."""
    for path in out.rglob("[!.]*"):
        if path.suffix == ".safetensors":
            read_tensors(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".png":
            Image.open(path).verify()


def names(out):
    """All files but the looks at the images, which a second start keeps."""
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.name != LOOKS)
