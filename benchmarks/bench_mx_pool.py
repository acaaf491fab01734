"""mx_pool against its peers."""

from benchmarks.conftest import measure, parametrize


def pytest_generate_tests(metafunc):
    parametrize(metafunc, "mx_pool")


def test_mx_pool(benchmark, case, name):
    measure(benchmark, case, name)
