"""Everything there is to know about the GPU kernels on one machine, by one command.

    pip install -e . --no-deps --no-build-isolation      # or any other installation
    python -m benchmarks.gpu_report

Runs the GPU tests, compares random shapes with float64, times every operator at every size of the
named backbones beside its peers, and writes ``benchmarks/results/<device>.json``, ``.md`` and
``.png``. Results are written after every case; a run that was stopped goes on where it was if
machine and commit are the same. ``--parts`` runs some of it, ``--minutes`` ends it in time.

Times are medians of interleaved runs by CUDA events. Before each, half a gigabyte is written, so
that nothing is left in L2 and the launches of Python are ahead of the device. What is wrong is not
timed.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_cases, gpu_machine, gpu_random, gpu_rotation, gpu_tables
from infodisent.backbones.torchvision_import import ensure_torchvision
from infodisent.files import read_json, write_json, write_text

ROOT = Path(__file__).parents[1]
Report = dict[str, Any]


def facts(commit: str | None) -> Report:
    """Machine, versions and commit."""
    import triton

    if commit is None:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
        )
        commit = done.stdout.strip() or "unknown"
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": getattr(properties, "L2_cache_size", 0) / 2**20,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "commit": commit,
    }


def run_tests() -> Report:
    """The tests that need a GPU, in a process of their own."""
    files = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tests" / "kernels").glob("test_*.py"))
    start = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    command += ["--deselect", "tests/kernels/test_rotation.py::test_compiles"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    tail = "\n".join(done.stdout.splitlines()[-40:])
    return {
        "files": files,
        "returncode": done.returncode,
        "seconds": round(time.perf_counter() - start),
        "summary": tail.splitlines()[-1] if tail else done.stderr[-500:],
        "failures": re.findall(r"^FAILED .*", done.stdout, re.MULTILINE),
        "tail": tail if done.returncode else "",
    }


SMALL = """
import torch
from infodisent import backends, ops
torch.manual_seed(0)
for dtype in (torch.bfloat16, torch.float32):
    for b, c, h in ((4, 64, 7), (1, 512, 7), (3, 72, 6), (2, 64, 14), (1, 64, 25)):
        x = torch.randn(b, c, h, h, device="cuda", dtype=dtype, requires_grad=True)
        u = torch.randn(c, c, device="cuda").to(dtype).requires_grad_()
        weight = torch.randn(10, c, device="cuda", requires_grad=True)
        with backends.use_backend("triton"):
            ops.infodisent_head(x, u, weight).sum().backward()
with backends.use_backend("triton"):
    a = torch.randn(70, 70, device="cuda", requires_grad=True)
    ops.rotation(a * 0.1).square().sum().backward()
torch.cuda.synchronize()
print("ran")
"""


def sanitize() -> Report:
    """compute-sanitizer over every kernel at small sizes."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"missing": "compute-sanitizer is not on the PATH"}
    outcomes: Report = {}
    for check in ("memcheck", "racecheck", "initcheck", "synccheck"):
        command = [tool, "--tool", check, "--print-limit", "5", sys.executable, "-c", SMALL]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=420)
        except subprocess.TimeoutExpired:
            outcomes[check] = {"timeout": 420}
            continue
        output = done.stdout + done.stderr
        summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", output)
        outcomes[check] = {"ran": "ran" in output, "summary": summaries[-1:] or output[-800:]}
    return outcomes


def load(path: Path, about: Report) -> Report:
    """What an earlier run on the same machine and commit found."""
    if path.is_file():
        before: Report = read_json(path)
        if before.get("about") == about:
            return before
    return {"about": about}


def do_part(part: str, report: Report, save: Callable[[], None], deadline: float) -> None:
    """One part; what is in the report already is left out."""
    if part in ("tests", "sanitizer", "ceilings", "overhead", "random"):
        if part not in report:
            done = {
                "tests": run_tests,
                "sanitizer": sanitize,
                "ceilings": gpu_machine.ceilings,
                "overhead": gpu_machine.overhead,
                "random": lambda: gpu_random.random_shapes(deadline=deadline),
            }[part]
            report[part] = done()
        print(part, report[part], flush=True)
        return
    if part == "rotation":
        if part not in report and time.monotonic() < deadline:
            target = ROOT / "benchmarks" / "results" / "gpu-rotation.json"
            sys.argv = ["gpu_rotation", "--out", str(target), "--rounds", "15"]
            report[part] = {"failed": bool(gpu_rotation.main()), "file": target.name}
        return
    rows = report.setdefault(part, [])
    seen = {row["case"] for row in rows}
    for case in gpu_cases.cases(part):
        if str(case) in seen:
            continue
        if time.monotonic() > deadline:
            print(f"{part}: out of time, {case} and what follows is left", flush=True)
            return
        rows.append(gpu_cases.compare(case))
        print(gpu_cases.line(rows[-1]), flush=True)
        save()


PARTS = (
    "ceilings",
    "tests",
    "random",
    "head",
    "forward",
    "backward",
    "overhead",
    "rotation",
    "sanitizer",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--minutes", type=float, default=600, help="start nothing after these")
    parser.add_argument("--commit", help="name of the code, where there is no git")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_report: there is no CUDA GPU here; nothing was measured", file=sys.stderr)
        return 2
    if importlib.util.find_spec("infodisent.kernels") is None:
        print("gpu_report: install the package first, see --help", file=sys.stderr)
        return 2
    ensure_torchvision()
    about = facts(options.commit)
    name = re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    path = options.out / f"{name}.json"
    report = load(path, about)
    deadline = time.monotonic() + 60 * options.minutes

    def save() -> None:
        write_json(path, report)

    for part in options.parts:
        if time.monotonic() > deadline:
            break
        do_part(part, report, save, deadline)
        save()
    write_text(path.with_suffix(".md"), gpu_tables.markdown(report))
    gpu_tables.plot(report, path.with_suffix(".png"))
    print(path)
    failed = report.get("tests", {}).get("returncode") or report.get("random", {}).get("mismatches")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
