"""What the text of a compiled kernel tells: of its loops in TTGIR, of its instructions in PTX."""

from __future__ import annotations

import re
from collections.abc import Iterator

PRODUCT = re.compile(r"\b(?:tt\.dot|ttng\.warp_group_dot|ttng\.tc_gen5_mma)\b(?!_)")
TENSOR_CORE = re.compile(r"(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)[\w.:]*")
ADDITION = re.compile(r"arith\.addf .* : tensor<\d+x\d+xf32")
DRAIN = re.compile(r"warp_group_dot_wait .*pendings = 0")
LOAD = re.compile(r"= tt\.load .*tensor<(\d+)x(\d+)x")
WARPS = re.compile(r"warpsPerCTA = \[(\d+), (\d+)\], instrShape = \[(\d+), (\d+)")
FENCE = re.compile(
    r"^[ \t]*(?:@!?%p\d+ )?(?:fence\.(?:acq_rel|sc)\.gpu|membar\.gl"
    r"|(?:atom|red|st)\.\S*(?:acq_rel|release)\S*)",
    re.MULTILINE,
)
COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global \[[^\]]*\], \[[^\]]*\], (0x[0-9a-f]+|\d+)")


def product_loops(ttgir: str) -> Iterator[list[tuple[int, str]]]:
    """The lines of every innermost loop that multiplies, each with its depth in ``scf.if``."""
    lines = ttgir.splitlines()
    for start, line in enumerate(lines):
        if "scf.for" not in line:
            continue
        depth, inside, body = 1, [0], []
        for text in lines[start + 1 :]:
            if text.strip().startswith("}"):
                depth -= 1
                inside.pop()
            if depth == 0:
                break
            body.append((sum(inside), text))
            if text.split(" loc(")[0].rstrip().endswith("{"):
                depth += 1
                inside.append(int("scf.if" in text or "else" in text))
        nested = any("scf.for" in text for _, text in body)
        if not nested and any(PRODUCT.search(text) for _, text in body):
            yield body


def facts(ttgir: str, ptx: str) -> dict[str, object]:
    """What tests ask of a compiled kernel.

    Returns:
        instructions: the tensor-core instructions; adds: fewest additions of tiles in plain float32
        in a loop that multiplies; drains: most waits there for the matrix unit to be idle, in every
        step; loads: of matrices, most there that no asynchronous copy does; copies: bytes that one
        such copies; warps: of each layout of a product's result, warps down and to the right, and
        rows and columns of a warp's instruction; fences: what orders memory for the whole device;
        stores: most to memory in a loop that multiplies.
    """
    loops = list(product_loops(ttgir))
    return {
        "instructions": sorted(set(TENSOR_CORE.findall(ptx))),
        "adds": min((sum(bool(ADDITION.search(t)) for _, t in loop) for loop in loops), default=0),
        "drains": max(
            (sum(bool(DRAIN.search(t)) and not d for d, t in loop) for loop in loops), default=0
        ),
        "loads": max(
            (
                sum("1" not in m.groups() for _, t in loop if (m := LOAD.search(t)))
                for loop in loops
            ),
            default=0,
        ),
        "copies": sorted({int(size, 0) for size in COPY.findall(ptx)}),
        "warps": [list(map(int, numbers)) for numbers in sorted(set(WARPS.findall(ttgir)))],
        "fences": len(FENCE.findall(ptx)),
        "stores": max((sum("tt.store" in t for _, t in loop) for loop in loops), default=0),
    }


AMD_FACTS = {"registers": r"\.vgpr_count: +(\d+)", "spills": r"\.[vs]gpr_spill_count: +(\d+)"}


def of_amd(text: str) -> dict[str, object]:
    """Registers, spilled ones, and matrix instructions of a kernel compiled for AMD."""
    numbers = {name: sum(map(int, re.findall(p, text))) for name, p in AMD_FACTS.items()}
    return {**numbers, "instructions": sorted(set(re.findall(r"v_mfma_\w+", text)))}
