"""The house: arrows that point one way, files short enough to read, imports that stay light."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forks import forked

ROOT = Path(__file__).parents[1]
SOURCES = ("infodisent", "kernels", "benchmarks", "tests")
LIMITS = {".py": 400, ".cpp": 450, ".h": 450, ".cu": 450, ".cuh": 450}
"""Lines that a file may have."""
IMPORTERS = ("infodisent/__init__.py", "infodisent/moved.py")
IMPORTERS += ("infodisent/backbones/torchvision_import.py",)
"""Files that may import by a string: names on first use, names of version 0.1, a library that
fails at its first import. Everywhere else arrows are import statements, which can be checked."""


def python_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def test_layers(tmp_path):
    """The contracts of pyproject.toml, with kernels/ where it is installed."""
    linter = Path(sys.executable).with_name("lint-imports")
    if not linter.exists():
        pytest.skip("import-linter is not installed: pip install 'infodisent[dev]'")
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "infodisent", tmp_path / "infodisent", ignore=ignored)
    shutil.copytree(ROOT / "kernels", tmp_path / "infodisent" / "kernels", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = [str(linter), "--no-cache"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", python_files("infodisent", "kernels"), ids=str)
def test_no_import_hides_in_a_string(path):
    if str(path.relative_to(ROOT)) in IMPORTERS:
        return
    names = {
        node.attr if isinstance(node, ast.Attribute) else node.id
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Attribute, ast.Name))
    }
    assert not names & {"import_module", "__import__"}


def test_files_can_be_read_at_one_sitting():
    lengths = {
        str(path.relative_to(ROOT)): (len(path.read_text(encoding="utf-8").splitlines()), limit)
        for folder in (*SOURCES, "csrc")
        for suffix, limit in LIMITS.items()
        for path in (ROOT / folder).rglob(f"*{suffix}")
    }
    assert len(lengths) > 100
    assert not {name: lines for name, (lines, limit) in lengths.items() if lines > limit}


def test_operators_load_no_libraries_of_models():
    """Each imported where torch is and nothing of the package."""
    others = {"torchvision", "matplotlib", "triton", "rich", "typer", "torchmetrics"}
    programs = [
        f"import {module}; print(sorted({names} & set(sys.modules)))"
        for module, names in (
            ("infodisent", {"timm", *others}),
            ("infodisent.ops", {"timm", *others}),
            ("infodisent.nn", {"timm", *others}),
            ("infodisent.classifier", {"timm"}),
        )
    ]
    assert forked("import sys, torch", programs).split() == ["[]"] * 4


def test_benchmarks_import_nothing_from_the_tests():
    for path in python_files("benchmarks"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert node.module.split(".")[0] != "tests", path
            if isinstance(node, ast.Import):
                assert all(alias.name.split(".")[0] != "tests" for alias in node.names), path
