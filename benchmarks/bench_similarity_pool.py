"""similarity_pool against its peers."""

from benchmarks.conftest import measure, parametrize


def pytest_generate_tests(metafunc):
    parametrize(metafunc, "similarity_pool")


def test_similarity_pool(benchmark, case, name):
    measure(benchmark, case, name)
