"""The GPU report as tables and as a picture."""

from __future__ import annotations

from pathlib import Path

from benchmarks.gpu_cases import Report


def markdown(report: Report) -> str:
    """The report as tables: microseconds of ours, and the others as multiples of it."""
    lines = [", ".join(f"{k} {v}" for k, v in report["about"].items()), ""]
    for part in ("ceilings", "tests", "random", "overhead", "rotation", "sanitizer"):
        if part in report:
            shown = {k: v for k, v in report[part].items() if k not in ("tail", "files")}
            lines += [f"**{part}**: {shown}", ""]
    for part in ("forward", "backward", "head"):
        rows = report.get(part, [])
        if not rows:
            continue
        lines += [
            f"## {part}",
            "",
            "| map, batch, dtype, layout | ours, us | TFLOP/s | of ceiling | others, multiples |",
            "|---|---|---|---|---|",
        ]
        for row in rows:
            times = row["microseconds"]
            name = next(iter(times))
            ours = times[name]
            rate = row["gflop"] / ours * 1e3 * (2 if part == "backward" else 1)
            top = report.get("ceilings", {}).get(f"{row['dtype']}_tflops")
            share = f"{100 * rate / top:.0f}%" if top else ""
            others = ", ".join(f"{k} {v / ours:.2f}×" for k, v in times.items() if k != name)
            c, h, w = row["size"]
            what = f"{c}×{h}×{w}, {row['batch']}, {row['dtype']}, {row['layout']}"
            lines.append(f"| {what} | {ours:.1f} | {rate:.0f} | {share} | {others} |")
        lines.append("")
    return "\n".join(lines)


def plot(report: Report, path: Path) -> None:
    """Roofline: arithmetic intensity of the forward against what was reached."""
    rows = [r for r in report.get("forward", []) if r["dtype"] == "bf16" and r["layout"] == "NHWC"]
    if not rows or "ceilings" not in report:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    top, bandwidth = report["ceilings"]["bf16_tflops"], report["ceilings"]["copy_tbs"]
    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    intensities = [2**k for k in range(3, 13)]
    axes.plot(intensities, [min(top, bandwidth * i) for i in intensities], "k-", lw=1)
    for name, marker in (("triton", "o"), ("cuda", "s"), ("GEMM alone†", "x"), ("eager", ".")):
        points = []
        for row in rows:
            c, h, w = row["size"]
            moved = 2 * (row["batch"] * h * w * c + c * c) + 16 * row["batch"] * c
            us = row["microseconds"].get(name)
            if us:
                points.append((row["gflop"] * 1e9 / moved, row["gflop"] / us * 1e3))
        if points:
            axes.scatter(*zip(*points, strict=True), marker=marker, label=name, s=28, alpha=0.8)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="FLOP a byte that must be moved",
        ylabel="TFLOP/s of the rotation's product",
        title=f"rotate_pool forward, bfloat16, {report['about']['device']}",
    )
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
