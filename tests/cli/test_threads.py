"""Threads of a command: as many as there is processor time, and asleep while they wait."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from infodisent.cli import threads

VARIABLES = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")


def _settled(given: dict[str, str], quota: int | None) -> list[str]:
    code = "import os; from infodisent.cli import threads as t; "
    code += f"t.processor_quota = lambda: {quota}; os.cpu_count = lambda: 8; t.settle_threads(); "
    code += f"print(*[os.environ.get(v) for v in {VARIABLES}])"
    environment = {k: v for k, v in os.environ.items() if k not in VARIABLES} | given
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("given", "quota", "expected"),
    [
        ({}, None, ["passive", "None"]),
        ({}, 2, ["passive", "2"]),
        ({}, 8, ["passive", "None"]),
        ({"OMP_WAIT_POLICY": "active"}, None, ["active", "None"]),
        ({"OMP_NUM_THREADS": "3"}, 2, ["passive", "3"]),
    ],
)
def test_what_the_user_has_set_stays(given, quota, expected):
    assert _settled(given, quota) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "nonsense"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "1\n", "cpu/cpu.cfs_period_us": "0\n"}, None),
    ],
)
def test_the_quota_of_a_container(tmp_path, files, expected):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert threads.processor_quota(tmp_path) == expected
