"""rotate_pool against its peers."""

from benchmarks.conftest import measure, parametrize


def pytest_generate_tests(metafunc):
    parametrize(metafunc, "rotate_pool")


def test_rotate_pool(benchmark, case, name):
    measure(benchmark, case, name)
