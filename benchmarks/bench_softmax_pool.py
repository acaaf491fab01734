"""softmax_pool against its peers."""

from benchmarks.conftest import measure, parametrize


def pytest_generate_tests(metafunc):
    parametrize(metafunc, "softmax_pool")


def test_softmax_pool(benchmark, case, name):
    measure(benchmark, case, name)
