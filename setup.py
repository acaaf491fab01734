"""Builds the native module infodisent._C (csrc/); everything else is in pyproject.toml.

INFODISENT_BUILD=auto  build what this machine can; without a compiler install pure Python (default)
INFODISENT_BUILD=1     build, and fail if that does not work
INFODISENT_BUILD=0     pure Python

What was built, and why not more, is written into the package and printed by ``infodisent doctor``.
"""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_ext import build_ext as _build_ext

ENV = "INFODISENT_BUILD"
MODE = os.environ.get(ENV, "auto")
if MODE not in ("auto", "0", "1"):
    sys.exit(f"{ENV} is {MODE!r}, allowed are auto, 0, 1")
SOURCES = [
    "csrc/bindings.cpp",
    "csrc/mx_pool_cpu.cpp",
    "csrc/rotate_pool_backward_cpu.cpp",
    "csrc/rotate_pool_cpu.cpp",
    "csrc/rotate_pool_pack_cpu.cpp",
    "csrc/rotate_pool_tiles_cpu.cpp",
    "csrc/rotation_cpu.cpp",
]
FLAGS = ["-O3", "-fno-math-errno", "-ffp-contract=fast", "-fvisibility=hidden", "-Wall", "-Wextra"]


def extensions():
    """The native module, or nothing where that was asked for or pybind11 is missing."""
    if MODE == "0":
        return []
    try:
        from pybind11.setup_helpers import Pybind11Extension
    except ImportError:
        if MODE == "1":
            raise
        return []
    windows = platform.system() == "Windows"
    return [
        Pybind11Extension(
            "infodisent._C",
            SOURCES,
            depends=[str(path) for path in Path("csrc").glob("*.h")],
            cxx_std=17,
            extra_compile_args=["/O2"] if windows else FLAGS,
        )
    ]


class build_ext(_build_ext):  # noqa: N801  (setuptools' name)
    """Adds OpenMP where the compiler has it, and turns a failure into a note unless asked to."""

    note = ""

    def run(self):
        """Build, then leave the note beside the modules: in the source folder or in the wheel."""
        super().run()
        folder = Path("infodisent" if self.inplace else f"{self.build_lib}/infodisent")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "_build_note.txt").write_text(self.note + "\n")

    def build_extensions(self):
        """Compile; under "auto" a machine without a compiler still gets the package."""
        try:
            if self._has_openmp():
                for extension in self.extensions:
                    extension.extra_compile_args.append("-fopenmp")
                    extension.extra_link_args.append("-fopenmp")
            super().build_extensions()
        except Exception as error:
            if MODE == "1":
                raise
            self.note = f"the compiler failed at installation: {str(error).splitlines()[0]}"
            print(f"infodisent: {self.note}; installing pure Python", file=sys.stderr)
            self.extensions = []

    def _has_openmp(self):
        if self.compiler.compiler_type == "msvc":
            return False
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "probe.cpp"
            source.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }")
            command = [*self.compiler.compiler_cxx, "-fopenmp", str(source)]
            command += ["-o", str(Path(folder) / "probe")]
            try:
                return subprocess.run(command, capture_output=True).returncode == 0
            except OSError:
                return False

    def get_outputs(self):
        """What was built: nothing, after a failure that was not fatal."""
        return [path for path in super().get_outputs() if Path(path).exists()]


setup(
    # Triton kernels have a folder of their own and are installed as infodisent.kernels
    package_dir={"infodisent.kernels": "kernels"},
    packages=[*find_packages(include=["infodisent", "infodisent.*"]), "infodisent.kernels"],
    ext_modules=extensions(),
    cmdclass={"build_ext": build_ext},
)
