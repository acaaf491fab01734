"""softmax_alignment against its peers."""

from benchmarks.conftest import measure, parametrize


def pytest_generate_tests(metafunc):
    parametrize(metafunc, "softmax_alignment")


def test_softmax_alignment(benchmark, case, name):
    measure(benchmark, case, name)
