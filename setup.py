"""Builds the native modules of csrc/; everything else is in pyproject.toml.

``infodisent._C`` is for CPUs; ``infodisent._cuda``, for Hopper GPUs, takes minutes of nvcc (in
``CUDA_HOME``, ``CUDA_PATH`` or the ``PATH``), so by default only a machine with a GPU driver builds
it. Building needs no GPU and no torch.

INFODISENT_BUILD=auto  build what this machine can use; without a compiler pure Python (default)
INFODISENT_BUILD=1     build all that can be compiled, and fail if that does not work; no nvcc is no
                       failure
INFODISENT_BUILD=cuda  as 1, and no nvcc is a failure too
INFODISENT_BUILD=cpu   as auto, without the CUDA module
INFODISENT_BUILD=0     pure Python

What was built, and why not more, is written into the package and printed by ``infodisent doctor``.
Objects stay in ``build/`` and are compiled again only where something they depend on has changed.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_ext import build_ext as _build_ext

ENV = "INFODISENT_BUILD"
MODE = os.environ.get(ENV, "auto")
if MODE not in ("auto", "0", "1", "cpu", "cuda"):
    sys.exit(f"{ENV} is {MODE!r}, allowed are auto, 0, 1, cpu, cuda")
STRICT = MODE in ("1", "cuda")
SOURCES = [
    "csrc/cpu/bindings.cpp",
    "csrc/cpu/half_rows.cpp",
    "csrc/cpu/matrix_product.cpp",
    "csrc/cpu/mx_pool.cpp",
    "csrc/cpu/rotate_pool.cpp",
    "csrc/cpu/rotate_pool_backward.cpp",
    "csrc/cpu/rotate_pool_pack.cpp",
    "csrc/cpu/rotate_pool_screen.cpp",
    "csrc/cpu/rotate_pool_screen_tiles.cpp",
    "csrc/cpu/rotate_pool_tiles.cpp",
    "csrc/cpu/rotation.cpp",
    "csrc/cpu/similarity_pool.cpp",
    "csrc/cpu/similarity_pool_screen.cpp",
    "csrc/cpu/softmax_alignment.cpp",
    "csrc/cpu/softmax_pool.cpp",
]
FLAGS = ["-O3", "-fno-math-errno", "-ffp-contract=fast", "-fvisibility=hidden", "-Wall", "-Wextra"]
CUDA = "infodisent._cuda"
CUDA_SOURCES = [
    "csrc/sm90/rotate_pool.cu",
    "csrc/sm90/rotate_pool_backward.cu",
    "csrc/sm90/rotate_pool_float8.cu",
    "csrc/sm90/channels_last.cu",
]
# wgmma and setmaxnreg exist for the architecture with an "a" only, so there is no PTX for others
CUDA_FLAGS = ["-gencode=arch=compute_90a,code=sm_90a", "-O3", "-std=c++17", "-Xptxas", "-v"]
CUDA_FLAGS += ["-lineinfo", "-cudart", "static", "-Xcompiler", "-fPIC,-fvisibility=hidden"]


def find_nvcc():
    """The path of nvcc, or None."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        folder = os.environ.get(name)
        nvcc = shutil.which("nvcc", path=str(Path(folder) / "bin")) if folder else None
        if nvcc:
            return nvcc
    return shutil.which("nvcc")


def has_gpu_driver():
    """Whether NVIDIA's driver is there: its library loads, whatever GPU it serves."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def jobs():
    """How many compilers run at a time: the processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def say(line):
    """A line for whoever watches the build (pip shows it with -v)."""
    print(f"infodisent: {line}", file=sys.stderr, flush=True)


def cuda_extension(pybind11_extension):
    """The module for GPUs, or the reason why it is not built."""
    if MODE == "cpu":
        return f"{ENV}=cpu"
    if platform.system() != "Linux":
        return "it is built on Linux only"
    nvcc = find_nvcc()
    if nvcc is None:
        reason = "no nvcc at installation (in CUDA_HOME, CUDA_PATH or the PATH)"
        if MODE == "cuda":
            sys.exit(f"{ENV}=cuda: {reason}")
        return reason
    if MODE == "auto" and not has_gpu_driver():
        return f"no GPU driver at installation; {ENV}=cuda builds it without one"
    # nvcc may be a link or a script elsewhere: it says itself where its headers and libraries are
    dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
    top = next((line[7:] for line in dry.stderr.splitlines() if line.startswith("#$ TOP=")), "")
    top = Path(top) if top else Path(nvcc).resolve().parents[1]
    extension = pybind11_extension(
        CUDA,
        ["csrc/sm90/bindings.cpp"],
        depends=[*CUDA_SOURCES, *headers("sm90")],
        include_dirs=["csrc", "csrc/sm90", str(top / "include")],
        library_dirs=[str(top / lib) for lib in ("lib64", "lib") if (top / lib).is_dir()],
        libraries=["cudart_static", "rt", "pthread", "dl"],
        cxx_std=17,
        extra_compile_args=FLAGS,
    )
    extension.nvcc = nvcc
    return extension


def headers(folder):
    """Whatever the sources of ``csrc/<folder>`` may include: its headers and the common ones."""
    own = [path for pattern in ("*.h", "*.cuh") for path in Path("csrc", folder).rglob(pattern)]
    return [str(path) for path in [*Path("csrc").glob("*.h"), *own]]


def extensions():
    """The native modules, or nothing where that was asked for or pybind11 is missing."""
    if MODE == "0":
        say(f"{ENV}=0: nothing is built, pure Python")
        return []
    try:
        from pybind11.setup_helpers import Pybind11Extension
    except ImportError:
        if STRICT:
            raise
        say("no pybind11: nothing is built, pure Python")
        return []
    windows = platform.system() == "Windows"
    modules = [
        Pybind11Extension(
            "infodisent._C",
            SOURCES,
            depends=headers("cpu"),
            include_dirs=["csrc", "csrc/cpu"],
            cxx_std=17,
            extra_compile_args=["/O2"] if windows else FLAGS,
        )
    ]
    gpu = cuda_extension(Pybind11Extension)
    if isinstance(gpu, str):
        build_ext.note_cuda = gpu
    else:
        modules.append(gpu)
    return modules


def _is_older(target, inputs):
    """Whether a file is missing or older than one of those it is made from."""
    target = Path(target)
    if not target.exists():
        return True
    made = target.stat().st_mtime
    return any(Path(path).stat().st_mtime > made for path in inputs)


class build_ext(_build_ext):  # noqa: N801  (setuptools' name)
    """Adds OpenMP where the compiler has it, and turns a failure into a note unless asked to."""

    note = ""
    note_cuda = ""
    reused = False

    def finalize_options(self):
        """Keep objects in the source folder, also where the frontend wants a temporary one."""
        super().finalize_options()
        flags = repr((FLAGS, CUDA_FLAGS, os.environ.get("CXX"), os.environ.get("CXXFLAGS")))
        kind = f"{platform.system()}-{platform.machine()}-{sys.implementation.cache_tag}"
        digest = hashlib.sha256(flags.encode()).hexdigest()[:8]
        self.build_temp = str(Path("build", f"objects-{kind}-{digest}").absolute())

    def run(self):
        """Build, then leave the notes beside the modules: in the source folder or in the wheel."""
        super().run()
        folder = Path("infodisent" if self.inplace else f"{self.build_lib}/infodisent")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "_build_note.txt").write_text(self.note + "\n")
        (folder / "_build_note_cuda.txt").write_text(self.note_cuda + "\n")
        # pip shows it with -v only; `infodisent doctor` says the same ever after
        names = [extension.name for extension in self.extensions]
        say(f"built {', '.join(names)}" if names else "built nothing: pure Python, slower")
        for what, note in (("CPU", self.note), ("CUDA", self.note_cuda)):
            if note:
                say(f"no module for {what}: {note}")

    def build_extensions(self):
        """Compile; under "auto" a machine without a compiler still gets the package."""
        gpu = [extension for extension in self.extensions if extension.name == CUDA]
        self.extensions = [extension for extension in self.extensions if extension.name != CUDA]
        try:
            if self.compiler.compiler_type == "msvc":
                self._use_clang_cl()
            self._compile_in_parallel()
            say(f"compiling {len(SOURCES)} C++ files, {jobs()} at a time")
            if self._has_openmp():
                for extension in self.extensions:
                    extension.extra_compile_args.append("-fopenmp")
                    extension.extra_link_args.append("-fopenmp")
            try:
                super().build_extensions()
            except Exception:
                if not self.reused:
                    raise
                self.force = True  # an object may be what a killed compiler has left
                super().build_extensions()
        except Exception as error:
            if STRICT:
                raise
            self.note = f"the compiler failed at installation: {str(error).splitlines()[0]}"
            self.extensions = []
        for extension in gpu:
            try:
                extension.extra_objects = self._nvcc(extension)
                self.build_extension(extension)
                self.extensions.append(extension)
            except Exception as error:
                if STRICT:
                    raise
                self.note_cuda = f"nvcc failed at installation: {str(error).splitlines()[0]}"

    def _use_clang_cl(self):
        """Compile with LLVM's clang-cl, which takes the same options: cl has no vector types."""
        path = os.pathsep.join([os.environ.get("PATH", ""), r"C:\Program Files\LLVM\bin"])
        clang_cl = shutil.which("clang-cl", path=path)
        if clang_cl is None:
            raise RuntimeError("csrc needs clang-cl (part of LLVM) on Windows, which is not there")
        if not self.compiler.initialized:
            self.compiler.initialize()
        self.compiler.cc = clang_cl

    def _compile_in_parallel(self):
        """Several compilers at a time, for files that changed or whose headers did."""
        from pybind11.setup_helpers import ParallelCompile

        def changed(target, source):
            own = headers(Path(source).parent.name)
            stale = self.force or _is_older(target, [source, *own, "setup.py"])
            self.reused = self.reused or not stale
            return stale

        ParallelCompile(default=jobs(), needs_recompile=changed).install()

    def _nvcc(self, extension):
        """Objects of the .cu files, several compilers at a time."""
        say(f"compiling {len(CUDA_SOURCES)} CUDA files with {extension.nvcc}: minutes")

        def compiled(source):
            target = Path(self.build_temp, source).with_suffix(".o")
            target.parent.mkdir(parents=True, exist_ok=True)
            if self.force or _is_older(target, [source, *headers("sm90"), "setup.py"]):
                partial = target.with_suffix(".partial.o")
                command = [extension.nvcc, *CUDA_FLAGS, "-Icsrc", "-Icsrc/sm90"]
                command += ["-c", source, "-o", str(partial)]
                print(*command)
                done = subprocess.run(command, capture_output=True, text=True)
                target.with_suffix(".log").write_text(done.stdout + done.stderr)
                if done.returncode:
                    lines = [line for line in done.stderr.splitlines() if "error" in line]
                    raise RuntimeError("; ".join(lines[:3]) or f"{source}: {done.returncode}")
                partial.replace(target)
            return str(target)

        with ThreadPoolExecutor(jobs()) as pool:
            return list(pool.map(compiled, CUDA_SOURCES))

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
    packages=[
        *find_packages(include=["infodisent", "infodisent.*"]),
        *(f"infodisent.{name}" for name in find_packages(include=["kernels", "kernels.*"])),
    ],
    ext_modules=extensions(),
    cmdclass={"build_ext": build_ext},
)
