"""Where tests of kernels run: on a GPU, else in Triton's interpreter, in another process.

A file of such tests ends in a `test_in_the_interpreter`, which runs it again under the interpreter
(`tests.kernels.kernel_compile.interpret`).
"""

from __future__ import annotations

import os

import pytest
import torch

GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")

runs = pytest.mark.skipif(
    not GPU and not INTERPRETED, reason="no GPU; test_in_the_interpreter runs it"
)
compiles = pytest.mark.skipif(INTERPRETED, reason="nothing is compiled in the interpreter")
outside = pytest.mark.skipif(
    INTERPRETED or GPU, reason="this is the interpreter, or there is a GPU"
)
