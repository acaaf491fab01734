"""What runs in a process of its own: tests, other scripts, compute-sanitizer, ncu."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu.cases import Report
from benchmarks.gpu.machine import ROOT, Machine
from infodisent.files import read_json

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
"""Every Triton kernel at small sizes."""

PROFILED = """
import sys
import torch
from infodisent import backends, ops
x = torch.randn(256, 2048, 7, 7, device="cuda", dtype=torch.bfloat16)
x = x.contiguous(memory_format=torch.channels_last)
u = torch.linalg.qr(torch.randn(2048, 2048, device="cuda"))[0].bfloat16().requires_grad_()
def step():
    with backends.use_backend(sys.argv[1]):
        ops.rotate_pool(x, u).pooled.sum().backward()
step()
torch.cuda.synchronize()
torch.cuda.profiler.start()
step()
torch.cuda.synchronize()
torch.cuda.profiler.stop()
"""
"""The kernels of one step on ResNet-50's map, after a first one that compiles."""

METRICS = {
    "us": "gpu__time_duration.sum",
    "sm_percent": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram_percent": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "l2_percent": "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "warps_percent": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
}
"""What ncu is asked for, of each kernel."""


def run(command: list[str], limit: float) -> tuple[int, str]:
    """Exit status, or -1 where it took too long, and what was printed."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired as late:
        printed = (late.stdout or b"") + (late.stderr or b"")
        text = printed.decode(errors="replace") if isinstance(printed, bytes) else printed
        return -1, f"{text}\nstopped after {limit:.0f} s"
    return done.returncode, done.stdout + done.stderr


def tests(file: str, limit: float) -> Report:
    """One file of the tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    command += ["-k", "not compiles and not in_the_interpreter"]
    code, text = run(command, limit)
    lines = text.rstrip().splitlines()
    return {
        "code": code,
        "summary": lines[-1] if lines else "",
        "failures": re.findall(r"^FAILED .*", text, re.MULTILINE)[:20],
        "tail": "" if code in (0, 5) else "\n".join(lines[-40:]),
        "ok": code in (0, 5),  # 5: none of its tests is for here
    }


def test_files() -> list[str]:
    """Of the Triton kernels."""
    folder = ROOT / "tests" / "kernels"
    return sorted(p.relative_to(ROOT).as_posix() for p in folder.glob("test_*.py"))


def script(module: str, limit: float, *options: str) -> Report:
    """Another script of this folder, and the file that it writes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        code, text = run([sys.executable, "-m", module, "--out", str(out), *options], limit)
        written: Any = read_json(out) if out.is_file() else None
    return {"code": code, "tail": text[-1500:], "report": written, "ok": code == 0}


def sanitize(machine: Machine, check: str, limit: float) -> Report:
    """compute-sanitizer over every Triton kernel at small sizes; `cuda` has a stage of its own."""
    program = machine.tool("compute-sanitizer")
    if program is None:
        return {"missing": "there is no compute-sanitizer", "ok": True}
    command = [program, "--tool", check, "--print-limit", "5", sys.executable, "-c", SMALL]
    return sanitized(*run(command, limit))


def sanitized(code: int, text: str) -> Report:
    """What it found: right only if the program ran to its end without an error."""
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", text)
    clean = bool(summaries) and all(
        re.search(r"SUMMARY: 0 (?:errors|hazards)", line) for line in summaries
    )
    ran = re.search(r"^ran$", text, re.MULTILINE) is not None
    late = code == -1  # too slow under the tool is no fault of a kernel
    found: Report = {"code": code, "ran": ran, "summary": summaries}
    return {**found, "tail": "" if clean else text[-800:], "ok": (ran and clean) or late}


def profile(machine: Machine, backend: str, limit: float) -> Report:
    """ncu's counters of each kernel of a step."""
    program = machine.tool("ncu")
    if program is None:
        return {"missing": "there is no ncu", "ok": True}
    command = [program, "--csv", "--profile-from-start", "off", "--target-processes", "all"]
    command += ["--metrics", ",".join(METRICS.values()), sys.executable, "-c", PROFILED, backend]
    code, text = run(command, limit)
    kernels = counters(text)
    # without the right to read counters there is nothing to say about the kernels
    return {"code": code, "kernels": kernels, "tail": "" if kernels else text[-800:], "ok": True}


def counters(text: str) -> list[Report]:
    """A row a kernel of ncu's comma-separated output, whatever else was printed around it."""
    lines = text.splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith('"ID"')]
    if not heads:
        return []
    names = {metric: name for name, metric in METRICS.items()}
    kernels: dict[str, Report] = {}
    for row in csv.DictReader(io.StringIO("\n".join(lines[heads[0] :]))):
        name = names.get(row.get("Metric Name") or "")
        if name is None:
            continue
        value = float(row["Metric Value"].replace(",", ""))
        if name == "us" and row["Metric Unit"] in ("ns", "nsecond"):
            value /= 1e3
        kernel = kernels.setdefault(row["ID"], {"kernel": row["Kernel Name"]})
        kernel[name] = value
    return list(kernels.values())
