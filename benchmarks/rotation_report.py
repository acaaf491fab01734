"""The rotation against its peers: time, products, errors, orthogonality, in one interleaved run.

    python benchmarks/rotation_report.py                     # all sizes; 10 minutes on 2 cores
    python benchmarks/rotation_report.py --channels 512      # one size; half a minute
    python benchmarks/rotation_report.py --table             # the Markdown table of what is stored
    python benchmarks/rotation_report.py --only "no compiled passes"    # these rows again

Writes ``benchmarks/results/<device>-rotation.json``. Two matrices: "random" has independent normal
entries (sigma 0.01), "trained" is what Adam makes of A within some steps: a few directions of large
norm (||S||_2 = 12.5, as the demo's), the rest small. Products are the multiplications in matrix
products, those that the profiler saw and those of the compiled module, in units of one C x C
product.

``--only`` measures the rows whose name contains the text, in turn with ours, and puts them in place
of the stored ones. Each such row keeps what ours took in the same run ("beside infodisent, ms"),
and its multiple is of that; the stored times of ours and of the others stay.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from infodisent import backends, ops, reference
from infodisent.allocator import keep_memory
from infodisent.backends.native import module as native
from infodisent.bench import peers as ways
from infodisent.bench.cases import MODES, machine
from infodisent.bench.labels import check_served
from infodisent.bench.shapes import CHANNELS
from infodisent.bench.timing import host_clock, medians
from infodisent.files import read_json, write_json

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results"
OURS = "infodisent"
UNCOMPILED = "infodisent, no compiled passes"
# A peer is left out above this size, where one call takes longer than all others together.
LARGEST = {
    "eigh": 768,
    "orthogonal(householder)*": 768,
    "orthogonal(matrix_exp)*": 1280,
    UNCOMPILED: 1280,
}


def matrix(kind: str, c: int) -> Tensor:
    """A, float32 [C, C]."""
    g = torch.Generator().manual_seed(0)
    if kind == "random":
        return torch.randn(c, c, generator=g) * 0.01
    a = torch.randn(c, 3, generator=g).sign() @ torch.randn(3, c, generator=g).sign()
    a += 0.02 * torch.randn(c, c, generator=g)
    return a * (12.5 / torch.linalg.matrix_norm((a - a.mT).double(), 2)).float()


def implementations(a: Tensor, device: str) -> dict[str, ways.Function]:
    """Ours first. A star: another map of another parameter, so neither error can be compared."""
    compared: dict[str, ways.Function] = {
        OURS: ops.rotation,
        "infodisent, precision half": lambda a: ops.rotation(a, precision="half"),
    }
    c = len(a)
    if backends.explain("rotation", device)["native"] == "ok":
        compared[UNCOMPILED] = ways.by("sparse", ops.rotation)
    compared["torch.matrix_exp"] = reference.rotation
    compared["eigh"] = ways.eigenvalues
    for method in ("matrix_exp", "cayley", "householder"):
        compared[f"orthogonal({method})*"] = ways.Orthogonal(a, method)
    return {name: f for name, f in compared.items() if c <= LARGEST.get(name, c)}


def run_once(function: ways.Function, a: Tensor, grad: Tensor, mode: str) -> tuple[Tensor, ...]:
    """U, and dA unless `mode` is "forward"."""
    if mode == "forward":
        with torch.no_grad():
            return (function(a),)
    leaf = a.requires_grad_() if not isinstance(function, nn.Module) else None
    leaves = [leaf] if leaf is not None else list(function.parameters())
    u = function(a)
    return u, torch.autograd.grad(u, leaves, grad)[0]


def products(function: ways.Function, a: Tensor, grad: Tensor, mode: str) -> float:
    """Multiplications in matrix products, in C x C products: the library's and the module's own."""
    own = 0.0

    def counted(*arguments: Any, parity: int = 0, **options: Any) -> None:
        nonlocal own
        own += 0.5 if parity else 1.0  # half of a symmetric result is computed
        plain(*arguments, parity=parity, **options)

    plain = native.matrix_product
    with mock.patch.object(native, "matrix_product", counted):
        with torch.profiler.profile(with_flops=True, record_shapes=True) as profile:
            run_once(function, a, grad, mode)
    flops = sum(event.flops or 0 for event in profile.key_averages(group_by_input_shape=True))
    return own + flops / (2 * len(a) ** 3)


def truth(a: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """U and dA in float64, by torch."""
    leaf = a.detach().double().requires_grad_()
    u = reference.rotation(leaf)
    return u.detach(), torch.autograd.grad(u, leaf, grad.double())[0]


def measure(kind: str, c: int, rounds: int, device: str, only: str | None = None) -> list[Row]:
    """One size and matrix: every implementation in turn, `rounds` times.

    With `only`, ours and those whose name contains it; nothing where there are none.
    """
    a = matrix(kind, c).to(device)
    grad = torch.randn(c, c, generator=torch.Generator().manual_seed(1)).to(device)
    functions = implementations(a, device)
    if kind == "trained":  # the peers' time does not depend on their parameter
        functions = {name: f for name, f in functions.items() if not name.endswith("*")}
    if only is not None:
        functions = {name: f for name, f in functions.items() if name == OURS or only in name}
        if len(functions) == 1:
            return []
    exact = truth(a, grad)
    measured: list[Row] = []
    for mode in MODES:
        rows: dict[str, Row] = {}
        if UNCOMPILED in functions:
            call = functools.partial(run_once, functions[UNCOMPILED], a, grad, mode)
            check_served(UNCOMPILED, call, ("sparse",))
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
        runs = {
            name: functools.partial(run_once, function, a, grad, mode)
            for name, function in functions.items()
        }
        for name, seconds in medians(runs, rounds, host_clock(device), warmup=0).items():
            rows[name]["milliseconds"] = round(1e3 * seconds, 3)
        ours = rows[OURS]["milliseconds"]
        for name, row in rows.items():
            entry = {"matrix": kind, "channels": c, "mode": mode, "implementation": name, **row}
            entry["speedup"] = round(row["milliseconds"] / ours, 3)
            measured.append(entry)
            print(
                f"{kind:8} {c:5} {mode:16} {name:32} {row['milliseconds']:10.2f} ms "
                f"{entry['speedup']:6.2f}x  products {row['products']:5.1f}  "
                f"U {row.get('error of U', float('nan')):.1e} "
                f"dA {row.get('error of dA', float('nan')):.1e} orth {row['orthogonality']:.1e}",
                flush=True,
            )
    return measured


def merge(stored: list[Row], again: list[Row]) -> list[Row]:
    """The stored rows with those measured again in their places; ours stay as they were.

    Raises:
        KeyError: a row was never stored, so that there is no place for it.
    """

    def key(row: Row) -> tuple[object, ...]:
        return tuple(row[k] for k in ("matrix", "channels", "mode", "implementation"))

    beside = {key(row)[:3]: row["milliseconds"] for row in again if row["implementation"] == OURS}
    fresh = {
        key(row): {**row, "beside infodisent, ms": beside[key(row)[:3]]}
        for row in again
        if row["implementation"] != OURS
    }
    missing = set(fresh) - {key(row) for row in stored}
    if missing:
        raise KeyError(f"never stored: {sorted(missing, key=str)}")
    return [fresh.get(key(row), row) for row in stored]


def table(rows: list[Row]) -> str:
    """Markdown: one line a size, matrix and mode."""
    lines = [
        "| C | A | | infodisent, ms | products | error of U | of dA | torch.matrix_exp | "
        "its error of U | of dA | other peers |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[object, ...], dict[str, Row]] = {}
    for row in rows:
        key = (row["channels"], row["matrix"], row["mode"])
        groups.setdefault(key, {})[str(row["implementation"])] = row
    for (c, kind, mode), group in groups.items():

        def error(name: str, what: str, group: dict[str, Row] = group) -> str:
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
    parser.add_argument("--only", metavar="TEXT", help="measure the rows so named again")
    options = parser.parse_args()
    keep_memory(all_of_it=True)
    out = options.out or RESULTS / f"{options.device}-rotation.json"
    if options.table:
        print(table(read_json(out)["rows"]))
        return
    stored = read_json(out) if options.only else None
    rows: list[Row] = []
    for c in options.channels:
        for kind in ("random", "trained"):
            rounds = options.rounds if c < 1536 else min(options.rounds, 2)
            rows += measure(kind, c, rounds, options.device, options.only)
            if stored is None:
                write_json(out, {"machine": machine(options.device), "rows": rows})
    if stored is not None:
        if not rows:
            parser.error(f"--only {options.only!r}: no implementation has such a name")
        again = {**stored.get("measured again", {}), options.only: machine(options.device)}
        rows = merge(stored["rows"], rows)
        write_json(out, {**stored, "rows": rows, "measured again": again})
    print(table(rows))


if __name__ == "__main__":
    main()
