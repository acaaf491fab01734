"""rotation against its peers."""

from benchmarks.conftest import measure, parametrize


def pytest_generate_tests(metafunc):
    parametrize(metafunc, "rotation")


def test_rotation(benchmark, case, name):
    measure(benchmark, case, name)
