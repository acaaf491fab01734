"""The rotation against its peers: time, products, errors, orthogonality, in one interleaved run.

    python benchmarks/rotation_report.py                     # all sizes; 10 minutes on 2 cores
    python benchmarks/rotation_report.py --channels 512      # one size; half a minute
    python benchmarks/rotation_report.py --table             # the Markdown table of what is stored

Writes ``benchmarks/results/<device>-rotation.json``. Two matrices: "random" has independent normal
entries (sigma 0.01), "trained" is what Adam makes of A within some steps: a few directions of large
norm (||S||_2 = 12.5, as the demo's), the rest small. Products are the multiplications that the
profiler saw in matrix products, in units of one C x C product.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from infodisent import backends, ops, reference
from infodisent.bench import cases as bench
from infodisent.files import read_json, write_json

RESULTS = Path(__file__).parent / "results"
CHANNELS = (512, 768, 1024, 1280, 1536, 2048)
# A peer is left out above this size, where one call takes longer than all others together.
LARGEST = {
    "eigh": 768,
    "orthogonal(householder)*": 768,
    "orthogonal(matrix_exp)*": 1280,
    "infodisent, no compiled passes": 1280,
}


def matrix(kind: str, c: int) -> Tensor:
    """A, float32 [C, C]."""
    g = torch.Generator().manual_seed(0)
    if kind == "random":
        return torch.randn(c, c, generator=g) * 0.01
    a = torch.randn(c, 3, generator=g).sign() @ torch.randn(3, c, generator=g).sign()
    a += 0.02 * torch.randn(c, c, generator=g)
    return a * (12.5 / torch.linalg.matrix_norm((a - a.mT).double(), 2)).float()


def by_eigenvalues(a: Tensor) -> Tensor:
    """exp of the skew matrix from the eigenvalues of the Hermitian ``-i (A - A^T)``."""
    values, vectors = torch.linalg.eigh(-1j * (a - a.mT))
    return ((vectors * torch.exp(1j * values)) @ vectors.mH).real


def implementations(a: Tensor, device: str) -> dict[str, bench.Function]:
    """Ours first. A star: another map of another parameter, so neither error can be compared."""
    found: dict[str, bench.Function] = {
        "infodisent": ops.rotation,
        "infodisent, precision half": lambda a: ops.rotation(a, precision="half"),
    }
    c = len(a)
    if backends.explain("rotation", device)["native"] == "ok":

        def plain(a: Tensor) -> Tensor:
            with backends.use_backend("sparse"):
                return ops.rotation(a)

        found["infodisent, no compiled passes"] = plain
    found["torch.matrix_exp"] = reference.rotation
    found["eigh"] = by_eigenvalues
    for method in ("matrix_exp", "cayley", "householder"):
        found[f"orthogonal({method})*"] = bench.Orthogonal(a, method)
    return {name: f for name, f in found.items() if c <= LARGEST.get(name, c)}


def run_once(function: bench.Function, a: Tensor, grad: Tensor, mode: str) -> tuple[Tensor, ...]:
    """U, and dA unless `mode` is "forward"."""
    if mode == "forward":
        with torch.no_grad():
            return (function(a),)
    leaf = a.requires_grad_() if not isinstance(function, nn.Module) else None
    leaves = [leaf] if leaf is not None else list(function.parameters())
    u = function(a)
    return u, torch.autograd.grad(u, leaves, grad)[0]


def products(function: bench.Function, a: Tensor, grad: Tensor, mode: str) -> float:
    """Multiplications in matrix products, in C x C products."""
    with torch.profiler.profile(with_flops=True, record_shapes=True) as profile:
        run_once(function, a, grad, mode)
    flops = sum(event.flops or 0 for event in profile.key_averages(group_by_input_shape=True))
    return flops / (2 * len(a) ** 3)


def truth(a: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """U and dA in float64, by torch."""
    leaf = a.detach().double().requires_grad_()
    u = reference.rotation(leaf)
    return u.detach(), torch.autograd.grad(u, leaf, grad.double())[0]


def measure(kind: str, c: int, rounds: int, device: str) -> list[dict[str, object]]:
    """One size and matrix: every implementation in turn, `rounds` times."""
    a = matrix(kind, c).to(device)
    grad = torch.randn(c, c, generator=torch.Generator().manual_seed(1)).to(device)
    exact = truth(a, grad)
    functions = implementations(a, device)
    if kind == "trained":  # the peers' time does not depend on their parameter
        functions = {name: f for name, f in functions.items() if not name.endswith("*")}
    synchronise = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    found = []
    for mode in bench.MODES:
        times: dict[str, list[float]] = {name: [] for name in functions}
        rows = {}
        for name, function in functions.items():  # warm-up, and everything but time
            u, *d = run_once(function, a, grad, mode)
            wide = u.detach().double()
            eye = torch.eye(c, dtype=wide.dtype, device=device)
            row = rows[name] = {"orthogonality": (wide @ wide.mT - eye).abs().max().item()}
            if not name.endswith("*"):
                row["error of U"] = (wide - exact[0]).abs().max().item()
                row["relative error of U"] = ((wide - exact[0]).norm() / c**0.5).item()
                if d:
                    row["error of dA"] = (
                        (d[0].double() - exact[1]).norm() / exact[1].norm()
                    ).item()
            row["products"] = round(products(function, a, grad, mode), 2)
        for _ in range(rounds):
            for name, function in functions.items():
                synchronise()
                start = time.perf_counter()
                run_once(function, a, grad, mode)
                synchronise()
                times[name].append((time.perf_counter() - start) * 1e3)
        for name, row in rows.items():
            row["milliseconds"] = round(statistics.median(times[name]), 3)
        ours = rows["infodisent"]["milliseconds"]
        for name, row in rows.items():
            entry = {"matrix": kind, "channels": c, "mode": mode, "implementation": name, **row}
            entry["speedup"] = round(row["milliseconds"] / ours, 3)
            found.append(entry)
            print(
                f"{kind:8} {c:5} {mode:16} {name:32} {row['milliseconds']:10.2f} ms "
                f"{entry['speedup']:6.2f}x  products {row['products']:5.1f}  "
                f"U {row.get('error of U', float('nan')):.1e} "
                f"dA {row.get('error of dA', float('nan')):.1e} orth {row['orthogonality']:.1e}",
                flush=True,
            )
    return found


def table(rows: list[dict[str, object]]) -> str:
    """Markdown: one line a size, matrix and mode."""
    lines = [
        "| C | A | | infodisent, ms | products | error of U | of dA | torch.matrix_exp | "
        "its error of U | of dA | other peers |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[object, ...], dict[str, dict[str, object]]] = {}
    for row in rows:
        key = (row["channels"], row["matrix"], row["mode"])
        groups.setdefault(key, {})[str(row["implementation"])] = row
    for (c, kind, mode), group in groups.items():

        def error(name: str, what: str, group: dict[str, dict[str, object]] = group) -> str:
            value = group[name].get(what)
            return "" if value is None else f"{value:.0e}"

        ours = group["infodisent"]
        others = ", ".join(
            f"{name} {row['speedup']:.2f}×"
            for name, row in group.items()
            if name not in ("infodisent", "torch.matrix_exp")
        )
        torchs = group["torch.matrix_exp"]
        lines.append(
            f"| {c} | {kind} | {mode} | {ours['milliseconds']:.1f} | {ours['products']:.1f} | "
            f"{error('infodisent', 'error of U')} | {error('infodisent', 'error of dA')} | "
            f"**{torchs['speedup']:.1f}×** | {error('torch.matrix_exp', 'error of U')} | "
            f"{error('torch.matrix_exp', 'error of dA')} | {others} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and store, or print the stored table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--channels", type=int, nargs="+", default=list(CHANNELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", action="store_true", help="print the stored table only")
    options = parser.parse_args()
    out = options.out or RESULTS / f"{options.device}-rotation.json"
    if options.table:
        print(table(read_json(out)["rows"]))
        return
    rows: list[dict[str, object]] = []
    for c in options.channels:
        for kind in ("random", "trained"):
            rounds = options.rounds if c < 1536 else min(options.rounds, 2)
            rows += measure(kind, c, rounds, options.device)
            stored = {"machine": bench.machine(options.device), "rows": rows}
            write_json(out, stored)
    print(table(rows))


if __name__ == "__main__":
    main()
