"""The roofline of the forward: what was reached of what the machine can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.gpu.cases import AMINMAX, PRODUCT

Report = dict[str, Any]
MARKS = {
    "cuda": ("D", "#b2182b"),
    "triton": ("o", "#d6604d"),
    "native": ("D", "#b2182b"),
    "sparse": ("o", "#d6604d"),
    PRODUCT: ("x", "#333333"),
    AMINMAX: ("^", "#4393c3"),
    "eager": ("v", "#92c5de"),
}
"""Implementations that are drawn: ours in red, the bare product black, peers blue."""


def moved_bytes(row: Report) -> float:
    """What a forward must at least read and write: the map, U, and the four results."""
    c, h, w = row["size"]
    size = 4 if row["dtype"] == "fp32" else 2
    return float(size * (row["batch"] * h * w * c + c * c) + 16 * row["batch"] * c)


def plot(report: Report, path: Path, dtype: str = "bf16") -> bool:
    """Write the picture, if there is something to draw; whether there was."""
    ceilings = report["stages"].get("ceilings", {}).get("ceilings", {})
    rows = [
        row
        for row in report["stages"].get("forward", {}).values()
        if "microseconds" in row and row["dtype"] == dtype and row["layout"] == "NHWC"
    ]
    if not rows or f"{dtype}_tflops" not in ceilings:
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    top, bandwidth = ceilings[f"{dtype}_tflops"], ceilings["copy_tbs"]
    intensities = [row["gflop"] * 1e9 / moved_bytes(row) for row in rows]
    ridge = top / bandwidth
    ends = [min([*intensities, ridge]) / 1.6, ridge, max([*intensities, ridge]) * 1.6]
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    axes.plot(ends, [min(top, bandwidth * i) for i in ends], "-", color="#999999", lw=1.5, zorder=1)
    axes.annotate(
        f"large torch.mm: {top:.3g} TFLOP/s", (ends[2], top), (0, 5), color="#666666",
        textcoords="offset points", ha="right", fontsize=9,
    )  # fmt: skip
    axes.annotate(
        f"copy: {bandwidth:.3g} TB/s", (ends[0], bandwidth * ends[0]), (6, -2), color="#666666",
        textcoords="offset points", va="top", fontsize=9,
    )  # fmt: skip
    for name, (marker, color) in MARKS.items():
        points = [
            (intensity, row["gflop"] / row["microseconds"][name] * 1e3, row["batch"])
            for row, intensity in zip(rows, intensities, strict=True)
            if name in row["microseconds"]
        ]
        if points:
            across, up, batches = zip(*points, strict=True)
            largest = max(batches)
            sizes = [18 + 40 * batch / largest for batch in batches]
            axes.scatter(across, up, sizes, color, marker, label=name, alpha=0.85, zorder=2)
    best = max(row["batch"] for row in rows)
    for row, intensity in zip(rows, intensities, strict=True):
        if row["batch"] == best:
            c, h, w = row["size"]
            lowest = min(row["gflop"] / us * 1e3 for us in row["microseconds"].values())
            axes.annotate(
                f"{c}×{h * w}", (intensity, lowest), (0, -12), textcoords="offset points",
                ha="center", fontsize=8, color="#444444",
            )  # fmt: skip
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="FLOP of the product for each byte that must be moved",
        ylabel="TFLOP/s of the product",
        title=f"rotate_pool forward, {dtype}: {report['about']['device']}",
    )
    axes.legend(title="larger: larger batch", fontsize=9, loc="lower right")
    axes.grid(alpha=0.25, which="both")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True
