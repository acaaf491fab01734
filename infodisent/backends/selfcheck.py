"""Whether the GPU kernels are right on this machine: found out once, remembered in a file.

``auto`` may choose a GPU kernel only where that was shown. The first call that would take one
compares it with float64 on a few awkward sizes (tens of seconds, nearly all of it compiling) and
writes the verdict to ``$XDG_CACHE_HOME/infodisent/selfcheck.json``, which holds for this GPU, these
versions and these kernels. ``INFODISENT_SELFCHECK=0`` leaves it out: then ``auto`` takes no GPU
kernel. While a CUDA graph is captured or torch.compile traces nothing can be compared: such calls
get a verdict only if there is one already.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch

from infodisent.files import cache_file as cached
from infodisent.files import read_json, write_json
from infodisent.tracing import nothing_watches
from infodisent.version import __version__

ENV = "INFODISENT_SELFCHECK"
Check = Callable[[str, torch.device, torch.dtype], str | None]
"""Compares the kernels of an operator with float64; whatever it raises is the verdict. Returns what
it covered, in words."""
_log = logging.getLogger("infodisent")
_verdicts: dict[tuple[str, str], str] = {}
OK = "ok"


def objection(op: str, device: torch.device, dtype: torch.dtype, check: Check) -> str | None:
    """Why ``auto`` does not trust the Triton kernels of `op` here, or None. May run `check`."""
    if os.environ.get(ENV) == "0":
        return f"{ENV}=0: not checked on this machine"
    key, what = machine(device), f"{op} {str(dtype).removeprefix('torch.')}"
    verdict = known(op, device, dtype)
    if verdict is None:
        if pending(device):
            return "not checked on this machine yet; call it once without tracing or capturing"
        verdict, lasting = _run(op, device, dtype, check)
        if lasting:
            _remember(key, what, verdict)
    _verdicts[key, what] = verdict
    return None if verdict == OK else f"the self-check on this machine failed: {verdict}"


def known(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """The verdict that there is already: "ok", what failed, or None; runs nothing."""
    key, what = machine(device), f"{op} {str(dtype).removeprefix('torch.')}"
    return _verdicts.get((key, what)) or _remembered().get(key, {}).get(what)


def pending(device: torch.device) -> bool:
    """Whether nothing can be checked at the moment, so that a refusal need not last.

    While something traces, transforms or captures, new tensors are not plain ones.
    """
    return (
        torch.compiler.is_compiling()
        or not nothing_watches()
        or (device.type == "cuda" and torch.cuda.is_current_stream_capturing())
    )


def machine(device: torch.device) -> str:
    """What a verdict holds for."""
    import triton

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    versions = f"torch {torch.__version__}, triton {triton.__version__}, infodisent {__version__}"
    return f"{name}, {versions}, kernels {_digest()}"


def _digest() -> str:
    from infodisent import kernels

    digest = hashlib.sha256()
    for path in sorted(Path(str(kernels.__file__)).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def cache_file() -> Path:
    """Where verdicts are remembered."""
    return cached("selfcheck.json")


def _remembered() -> dict[str, dict[str, str]]:
    try:
        verdicts = read_json(cache_file())
    except (OSError, ValueError):
        return {}
    good = isinstance(verdicts, dict) and all(isinstance(v, dict) for v in verdicts.values())
    return verdicts if good else {}


def _remember(key: str, what: str, verdict: str) -> None:
    verdicts = _remembered()
    verdicts.setdefault(key, {})[what] = verdict
    with contextlib.suppress(OSError):  # a read-only home: the verdict holds for this process
        write_json(cache_file(), verdicts)


def _run(op: str, device: torch.device, dtype: torch.dtype, check: Check) -> tuple[str, bool]:
    """The verdict, and whether it holds beyond this process."""
    name = str(dtype).removeprefix("torch.")
    _log.warning(
        "infodisent checks the Triton kernels of %s for %s on this GPU once (%s=0 leaves it out)",
        op,
        name,
        ENV,
    )
    try:
        # as if the caller had switched nothing on; and without gradients
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            covered = check(op, device, dtype)
    except Exception as error:
        # anything a kernel can raise, at compilation or launch, is a reason not to use it
        lines = str(error).splitlines() or [""]
        verdict = f"{type(error).__name__}: {lines[0]}"
        _log.warning("infodisent: auto will not use them: %s", verdict)
        return verdict, not isinstance(error, torch.OutOfMemoryError)
    _log.warning("infodisent: they are right here (%s)", covered or "what was covered is not told")
    return OK, True
