"""Names of tensors in somebody's file -> names in a model's state, and what did not fit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from torch import Tensor

Tensors = Mapping[str, Tensor]

# written between the names of modules by wrappers round parts of a model
_INSIDE = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# counters and tables that a constructor makes: a file may lack them
_DERIVED = re.compile(
    r"(num_batches_tracked|relative_position_index|relative_coords_table|attn_mask|attention_bias_idxs"
    r"|position_ids)$"
)


def is_derived(name: str) -> bool:
    """A counter, or a table that follows from the architecture."""
    return bool(_DERIVED.search(name))


def fits(a: Tensor, b: Tensor) -> bool:
    """One can be copied into the other without a change of meaning."""
    return a.shape == b.shape and a.is_floating_point() == b.is_floating_point()


def matched(wanted: Tensors, given: Tensors) -> int:
    """How many tensors of the model have one of the file with their name and shape."""
    return sum(name in given and fits(tensor, given[name]) for name, tensor in wanted.items())


def renamed(wanted: Tensors, given: Tensors) -> tuple[dict[str, Tensor], str]:
    """The file's tensors under the model's names where prefixes are the whole difference.

    Returns:
        The tensors, those under another prefix left out, and the prefix taken off ("" for none;
        "+p" where the model's names have p before them and the file's have not).
    """
    given = {_INSIDE.sub(r"\1", name): tensor for name, tensor in given.items()}
    best, best_prefix, best_count = dict(given), "", matched(wanted, given)
    for prefix in _prefixes(wanted, given):
        if prefix.startswith("+"):
            trial = {prefix[1:] + name: tensor for name, tensor in given.items()}
        else:
            trial = {n[len(prefix) :]: t for n, t in given.items() if n.startswith(prefix)}
        count = matched(wanted, trial)
        if count > best_count:
            best, best_prefix, best_count = trial, prefix, count
    if best_prefix.startswith("+"):  # the classifier stands beside what the prefix is for
        best |= {n: t for n, t in given.items() if n in wanted and n not in best}
    return best, best_prefix


def _prefixes(wanted: Tensors, given: Tensors) -> list[str]:
    """Prefixes that occur, those of most names first; at equal numbers averaged weights first."""
    names = set(wanted)
    counts: Counter[str] = Counter()
    for name in given:
        parts = name.split(".")
        for i in range(1, len(parts)):
            if ".".join(parts[i:]) in names:
                counts[".".join(parts[:i]) + "."] += 1
    theirs = set(given)
    for name in wanted:
        parts = name.split(".")
        for i in range(1, min(len(parts), 4)):
            if ".".join(parts[i:]) in theirs:
                counts["+" + ".".join(parts[:i]) + "."] += 1
    averaged = ("ema", "teacher", "target")
    return sorted(
        counts, key=lambda p: (-counts[p], not any(word in p.lower() for word in averaged), p)
    )[:8]


def in_order(wanted: Tensors, given: Tensors) -> dict[str, Tensor] | None:
    """The file's tensors under the model's names, by order alone; None unless all fit one to one.

    Two implementations of an architecture define the same layers in the same order under other
    names. Order, shapes and the last part of every name must agree.
    """
    ours = [(n, t) for n, t in wanted.items() if not n.endswith("num_batches_tracked")]
    theirs = [(n, t) for n, t in given.items() if not n.endswith("num_batches_tracked")]
    if not ours or len(ours) != len(theirs):
        return None
    for (a, x), (b, y) in zip(ours, theirs, strict=True):
        if not fits(x, y) or a.rpartition(".")[2] != b.rpartition(".")[2]:
            return None
    found = {a: y for (a, _), (_, y) in zip(ours, theirs, strict=True)}
    return found


def siblings(names: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Names that are those of the model but for their numbers: layers it does not have."""
    patterns = {re.sub(r"\d+", "#", name) for name in wanted}
    return [name for name in names if re.sub(r"\d+", "#", name) in patterns]


def some(names: Iterable[str], count: int = 3) -> str:
    """A few names, and how many there are besides."""
    names = list(names)
    rest = f" … ({len(names)} in all)" if len(names) > count else ""
    return ", ".join(names[:count]) + rest


def difference(wanted: Tensors, given: Tensors) -> str:
    """In a line what keeps a state from fitting; "" where it fits."""
    shapes = [
        f"{n} is {tuple(given[n].shape)}, the model has {tuple(t.shape)}"
        for n, t in wanted.items()
        if n in given and given[n].shape != t.shape
    ]
    missing = [n for n in wanted if n not in given]
    extra = [n for n in given if n not in wanted]
    said = []
    if shapes:
        said.append(f"{len(shapes)} tensors of other shapes: {'; '.join(shapes[:2])}")
    if missing:
        said.append(f"missing: {some(missing)}")
    if extra:
        said.append(f"not in the model: {some(extra)}")
    return "; ".join(said)
