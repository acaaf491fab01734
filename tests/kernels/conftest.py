"""Without Triton, which PyTorch for CPUs does not bring, there is nothing here to import."""

import importlib.util

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header() -> str:
    missing = importlib.util.find_spec("triton") is None
    return "tests/kernels: " + (
        "left out, triton is not installed" if missing else "triton is there"
    )
