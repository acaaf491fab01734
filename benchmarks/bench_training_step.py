"""One training step of the head, rotation included, against torch.matrix_exp and eager code."""

from benchmarks.conftest import measure, parametrize


def pytest_generate_tests(metafunc):
    parametrize(metafunc, "training_step")


def test_training_step(benchmark, case, name):
    measure(benchmark, case, name)
