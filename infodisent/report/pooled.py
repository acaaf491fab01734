"""Runs of one method with several seeds, judged as one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infodisent.evaluation.intervals import bootstrap_runs
from infodisent.evaluation.judgement import Judgement
from infodisent.files import read_tensors, reading, write_tensors
from infodisent.training.folder import JUDGED_IMAGES

Judged = Mapping[str, Any]
"""What `infodisent.report.judged.judge_run` returns."""


def write_images(
    folder: str | os.PathLike[str], judged: Judgement, made_from: Mapping[str, Any]
) -> None:
    """Keep the figures of every single image beside the judgement, for `pooled`."""
    names = [list(key) for key in judged.values]
    tensors = {str(i): values for i, values in enumerate(judged.values.values())}
    write_tensors(
        Path(folder) / JUDGED_IMAGES, tensors, {"made_from": dict(made_from), "names": names}
    )


def read_images(folder: str | os.PathLike[str], judged: Judged) -> dict[tuple[str, str], Tensor]:
    """The figures of every image, by measure and what it is of, of a run that has been judged.

    Raises:
        FileNotFoundError: there are none.
        ValueError: the file is damaged, or of another judgement.
    """
    path = Path(folder) / JUDGED_IMAGES
    tensors, written = read_tensors(path)
    with reading(path):
        if written["made_from"] != judged["made_from"]:
            raise ValueError(f"{path} is of another judgement; judge the run --again")
        names = [(measure, of) for measure, of in written["names"]]
        return {name: tensors[str(i)] for i, name in enumerate(names)}


def seed_groups(judged: Mapping[str, Judged]) -> list[list[str]]:
    """Names of runs that differ in nothing but their seed, together; others by themselves.

    In the order of the first of each. They must have been judged alike, and no seed may be there
    twice: two runs of one seed are not two seeds.
    """
    groups: dict[str, list[str]] = {}
    for name, known in judged.items():
        arguments = {
            k: v for k, v in known["made_from"].items() if k not in ("model", "annotations")
        }
        recipe = known.get("recipe")
        key = json.dumps([recipe, arguments], sort_keys=True) if recipe else name
        groups.setdefault(key, []).append(name)
    result = []
    for names in groups.values():
        seeds = [judged[name].get("run_seed") for name in names]
        alone = None in seeds or len(set(seeds)) < len(seeds)
        result += [[name] for name in names] if alone else [names]
    order = list(judged)
    return sorted(result, key=lambda names: order.index(names[0]))


def pooled(
    judged: Sequence[Judged],
    images: Sequence[Mapping[tuple[str, str], Tensor]],
    seed: int = 0,
) -> dict[str, Any]:
    """Several judgements as one: means over runs, intervals over runs and images.

    A row also has "runs", the mean of each run. What only some of the runs have is left out.

    Args:
        judged: of runs of one method.
        images: what `read_images` read of each.
        seed: of the draws.
    """
    tables = [{(row["measure"], row["of"]): row for row in known["rows"]} for known in judged]
    rows = []
    for key in tables[0]:
        found = [table[key] for table in tables if key in table]
        if len(found) < len(tables) or any(row["mean"] is None for row in found):
            continue
        means = [row["mean"] for row in found]
        values = [
            known[key] if key in known else torch.tensor([mean])
            for known, mean in zip(images, means, strict=True)
        ]
        interval = asdict(bootstrap_runs(values, seed=seed))
        interval["images"] = max(row["images"] for row in found)
        rows.append({"measure": key[0], "of": key[1], **interval, "runs": means})
    notes = dict.fromkeys(note for known in judged for note in known["notes"])
    seeds = [known["run_seed"] for known in judged]
    return {**judged[0], "rows": rows, "notes": list(notes), "run_seed": seeds}
