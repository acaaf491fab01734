"""`infodisent judge`: how good a run's explanations are, and several runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infodisent.cli.modules import ModuleOption, module_from
from infodisent.cli.options import ImagesRootOption, SeedOption
from infodisent.cli.tables import print_result

if TYPE_CHECKING:
    from rich.table import Table


def judge(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, made by `fit` or `demo`.")],
    compare: Annotated[
        bool, typer.Option("--compare", help="Print the runs side by side, and draw them.")
    ] = False,
    images: Annotated[
        int, typer.Option(min=1, help="Held-out images to judge on, at most.")
    ] = 1000,
    pictures: Annotated[
        int,
        typer.Option(min=0, help="Of them to attack, delete and blur, which is slow; 0: none."),
    ] = 16,
    parts: Annotated[
        str | None,
        typer.Option(
            "--parts",
            metavar="KIND:FOLDER",
            help="Parts and masks of the held-out images: cub, funnybirds, coco, scenes or masks.",
        ),
    ] = None,
    epsilon: Annotated[
        list[float] | None,
        typer.Option(
            "--epsilon",
            min=0,
            help="Of the attack, in normalised pixels; several, each with its option. Default: "
            "0.4, as published, which leaves nothing of most heads; 0.01 tells them apart.",
        ),
    ] = None,
    seed: SeedOption = 0,
    again: Annotated[
        bool, typer.Option("--again", help="Compute also what the run's folder has already.")
    ] = False,
    each: Annotated[
        bool,
        typer.Option("--each", help="Show runs that differ only in their seed by themselves."),
    ] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG of --compare to write.")] = Path(
        "judge.png"
    ),
    images_root: ImagesRootOption = None,
    module: ModuleOption = None,
) -> None:
    """Judge explanations: size, faithfulness, purity, stability, misalignment.

    Figures are means over held-out images with 95 % bootstrap intervals, and stay in judge.json of
    the run. "random" is a control: what an explanation must be better than. Runs that differ only
    in their seed are pooled: means over seeds, intervals over seeds and images.

    Example: infodisent judge runs/fit

    Example: infodisent judge runs/birds --parts cub:CUB_200_2011 --epsilon 0.4 --epsilon 0.01

    Example: infodisent judge --compare runs/infodisent runs/protopnet
    """
    from infodisent import ranks
    from infodisent.files import replacing
    from infodisent.progress import console
    from infodisent.report.judged import comparison_figure, judge_run, unlike_images
    from infodisent.report.table import check_file

    if compare:  # before the work
        check_file(out, "judge")
    ranks.start()
    architecture = module_from(module)
    names = _names(runs)
    asked: dict[str, Any] = {"annotations": parts}
    if epsilon:
        asked["epsilons"] = tuple(dict.fromkeys(epsilon))
    judged: dict[str, dict[str, Any]] = {}
    for name, run in zip(names, runs, strict=True):
        known = judged[name] = judge_run(
            run, images=images, pictures=pictures, seed=seed, again=again,
            images_root=images_root, module=architecture, **asked,
        )  # fmt: skip
        if not compare and ranks.leads():
            _print_run(name, known)
            print_result("stored", run / "judge.json")
    leads = ranks.leads()
    merged = judged
    if leads and not each:
        merged = _pooled(judged, dict(zip(names, runs, strict=True)), seed)
    for name in merged if leads and not compare else ():
        if name not in judged:
            _print_run(name, merged[name])
    if leads and compare:
        different, judged = unlike_images(judged), merged
        for name, known in judged.items():
            console.print(_title(name, known), markup=False, highlight=False, soft_wrap=True)
        console.print(_side_by_side(judged))
        for known in judged.values():
            _print_notes(known)
        for note in different:
            console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
        with replacing(out) as temporary:
            comparison_figure(judged).savefig(temporary, dpi=150, format="png")
        print_result("picture", out)
    ranks.stop()


def _print_run(name: str, known: dict[str, Any]) -> None:
    from infodisent.progress import console

    console.print(_title(name, known), markup=False, highlight=False, soft_wrap=True)
    console.print(_table(known))
    _print_notes(known)


def _pooled(
    judged: dict[str, dict[str, Any]], runs: dict[str, Path], seed: int
) -> dict[str, dict[str, Any]]:
    """Runs of one method with several seeds as one, and said so; the others as they are."""
    from infodisent.progress import console
    from infodisent.report.pooled import pooled, read_images, seed_groups

    result = {}
    for names in seed_groups(judged):
        if len(names) == 1:
            result[names[0]] = judged[names[0]]
            continue
        known = [judged[name] for name in names]
        images = [read_images(runs[name], judged[name]) for name in names]
        made = pooled(known, images, seed)
        seeds = ", ".join(str(one) for one in made["run_seed"])
        console.print(
            f"pooled: {', '.join(names)} differ only in their seed ({seeds}); means are over "
            "seeds, intervals over seeds and images (--each shows them by themselves)",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
        result[f"{names[0]} … {len(names)} seeds"] = made
    return result


def _names(runs: list[Path]) -> list[str]:
    """What runs are called: the last part of their path, more of it where those are equal.

    Raises:
        ValueError: a run is given twice.
    """
    paths = [run.resolve() for run in runs]
    if len(set(paths)) < len(paths):
        raise ValueError("judge: a run is given twice")
    for parts in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _title(name: str, known: dict[str, Any]) -> str:
    count = known["judged_images"]
    text = f"{name}: {known['title']} on {known.get('backbone', 'a backbone')}, "
    text += f"{count['held out']} held-out images"
    text += f", {count['pictures']} of them changed" if count["pictures"] else ""
    return text + (f", {count['annotated']} annotated" if count.get("annotated") else "")


def _label(key: tuple[str, str]) -> str:
    from infodisent.evaluation.judgement import MEASURES

    return MEASURES[key[0]].title + (f": {key[1]}" if key[1] else "")


def _number(row: Any) -> str:
    from infodisent.evaluation.judgement import MEASURES

    return "–" if row is None or row["mean"] is None else MEASURES[row["measure"]].form.format(
        row["mean"]
    )  # fmt: skip


def _range(row: Any) -> str:
    from infodisent.evaluation.judgement import MEASURES

    if row is None or row["low"] is None:
        return ""
    form = MEASURES[row["measure"]].form
    return f"{form.format(row['low'])} … {form.format(row['high'])}"


def _table(known: dict[str, Any]) -> Table:
    """One run: a figure a row."""
    from rich.table import Table

    from infodisent.evaluation.judgement import MEASURES
    from infodisent.report.judged import by_measure

    table = Table()
    table.add_column("figure")
    for column in ("mean", "95 % interval"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("better")
    group = None
    for key, row in by_measure(known).items():
        measure = MEASURES[key[0]]
        if measure.group != group:
            table.add_section()
            table.add_row(f"[dim]{measure.group}")
            group = measure.group
        table.add_row(_label(key), _number(row), _range(row), measure.better)
    return table


def _side_by_side(judged: dict[str, dict[str, Any]]) -> Table:
    """Several runs: a run a column, the best of each figure in bold."""
    from rich.markup import escape
    from rich.table import Table

    from infodisent.evaluation.judgement import MEASURES
    from infodisent.report.judged import by_measure

    tables = [by_measure(known) for known in judged.values()]
    table = Table()
    table.add_column("figure")
    table.add_column("better")
    for name in judged:
        table.add_column(escape(name), justify="right", overflow="fold")
    keys = list(dict.fromkeys(key for rows in tables for key in rows))
    keys.sort(key=lambda key: list(MEASURES).index(key[0]))
    group = None
    for key in keys:
        measure = MEASURES[key[0]]
        if measure.group != group:
            table.add_section()
            table.add_row(f"[dim]{measure.group}")
            group = measure.group
        rows = [known.get(key) for known in tables]
        means = [row["mean"] for row in rows if row is not None and row["mean"] is not None]
        pick = min if measure.better == "lower" else max
        best = pick(means) if len(set(means)) > 1 else None
        cells = []
        for row in rows:
            interval = f" [dim]{_range(row)}[/dim]" if _range(row) else ""
            bold = row is not None and best is not None and row["mean"] == best
            cells.append((f"[bold]{_number(row)}[/bold]" if bold else _number(row)) + interval)
        table.add_row(_label(key), measure.better, *cells)
    return table


def _print_notes(known: dict[str, Any]) -> None:
    from infodisent.progress import console

    for note in known["notes"]:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
