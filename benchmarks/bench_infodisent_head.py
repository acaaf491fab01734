"""infodisent_head against its peers."""

from benchmarks.conftest import measure, parametrize


def pytest_generate_tests(metafunc):
    parametrize(metafunc, "infodisent_head")


def test_infodisent_head(benchmark, case, name):
    measure(benchmark, case, name)
