"""The CUDA module of rotate_pool on a Hopper GPU: correctness first, then times.

    python setup.py build_ext --inplace && python -m benchmarks.gpu_cuda --out /tmp/gpu-cuda.json

From the repository root. Every stage is a process with a time limit, so that a kernel that hangs
ends its stage alone; later stages are skipped once one has failed. The stages: every kernel once;
1,000 random problems against float64; the gradient of U by every kernel; locations and values of
the Triton kernels; float8 beside its emulation; a CUDA graph and the same bits in every run;
compute-sanitizer; times beside a bare product and Triton, of replayed CUDA graphs with L2 flushed,
medians of interleaved runs, so that no time of the host is in them.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu import cuda_checks, cuda_gradient, cuda_times
from benchmarks.gpu.cuda_problems import Row
from infodisent.backends.cuda import module as cuda
from infodisent.files import read_json, write_json

LIMITS = {
    "smoke": 70,
    "random": 100,
    "gradient": 100,
    "triton": 100,
    "float8": 60,
    "graph": 40,
    "sanitize": 100,
    "times": 170,
}
"""Stages and the seconds that they may take."""
STAGES: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "smoke": cuda_checks.smoke,
    "random": cuda_checks.randomly,
    "gradient": cuda_gradient.gradient,
    "triton": cuda_checks.triton,
    "float8": cuda_checks.float8,
    "graph": cuda_checks.graph,
    "sanitize": cuda_checks.sanitize,
    "times": cuda_times.times,
    "few": cuda_checks.few,
}


def main() -> int:
    """Run the stages and write their rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--stage", choices=STAGES, help="this one only, in this process")
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--batch", type=int, nargs="+", default=[256, 64, 8])
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    if options.stage:
        reason = cuda.device_objection(torch.device("cuda"))
        if reason:
            sys.exit(reason)
        rows = STAGES[options.stage](options)
        if options.out:
            write_json(options.out, {"rows": rows})
        return 0 if all(row["ok"] for row in rows) else 1
    report: Row = {"module": cuda.describe(), "torch": torch.__version__}
    report["python"] = platform.python_version()
    if torch.cuda.is_available():
        report["device"] = torch.cuda.get_device_name()
    failed = ""
    for stage, limit in LIMITS.items():
        if failed:
            report[stage] = {"skipped": f"{failed} failed"}
            continue
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "rows.json"
            command = [sys.executable, "-m", "benchmarks.gpu_cuda", "--stage", stage]
            command += ["--out", str(out), "--problems", str(options.problems), "--rounds"]
            command += [str(options.rounds), "--batch", *map(str, options.batch)]
            began = time.monotonic()
            try:
                code = subprocess.run(command, timeout=limit).returncode
            except subprocess.TimeoutExpired:
                code = -1
            seconds = round(time.monotonic() - began, 1)
            rows = read_json(out)["rows"] if out.exists() else []
        report[stage] = {"code": code, "seconds": seconds, "rows": rows}
        print(f"--- {stage}: {'ok' if code == 0 else f'failed ({code})'}, {seconds} s", flush=True)
        if code:
            failed = failed or stage
        if options.out:
            write_json(options.out, report)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
