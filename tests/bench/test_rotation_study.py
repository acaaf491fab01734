"""What the study of rotations builds by itself."""

import pytest
import torch

from benchmarks import rotation_study


@pytest.mark.parametrize("sign", [1, -1])
def test_logarithm_of_a_rotation(sign: int) -> None:
    generator = torch.Generator().manual_seed(3)
    normal = torch.randn(16, 16, generator=generator, dtype=torch.float64)
    q = torch.linalg.qr(normal).Q
    if torch.linalg.det(q) * sign < 0:
        q[0] = -q[0]
    skew = rotation_study.logarithm(q)
    expected = q if sign > 0 else torch.cat([q[:-1], -q[-1:]])
    torch.testing.assert_close(skew, -skew.mT, rtol=0, atol=1e-15)
    torch.testing.assert_close(torch.matrix_exp(skew), expected, rtol=0, atol=1e-12)


def test_logarithm_refuses_what_is_no_rotation() -> None:
    with pytest.raises(ArithmeticError, match="is off by"):
        rotation_study.logarithm(2 * torch.eye(4, dtype=torch.float64))


def test_table_has_a_line_a_variant() -> None:
    run = {"images": "a", "variant": "learned U", "accuracy": 0.9, "size": 3.0, "used": 5}
    runs = {"1": run | {"seed": 0}, "2": run | {"seed": 1, "accuracy": 0.92}}
    lines = rotation_study.table({"runs": runs}, "a").splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| learned U | 2 | 91.0% ± 1.4 | 3 ± 0 | 5 ± 0 | – |")
