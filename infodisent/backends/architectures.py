"""GPU architectures by name, and what is known of the kernels on each."""

from __future__ import annotations

import torch

from infodisent.backends.reported import REPORTS

NVIDIA = {
    (8, 0): ("sm_80", "Ampere: A100, A30"),
    (8, 6): ("sm_86", "Ampere: A10, A40, RTX 30"),
    (8, 9): ("sm_89", "Ada: L4, L40, RTX 40"),
    (9, 0): ("sm_90", "Hopper: H100, H200, GH200"),
    (10, 0): ("sm_100", "Blackwell: B200, GB200"),
    (12, 0): ("sm_120", "Blackwell: RTX 50, RTX PRO"),
}
"""By compute capability."""
AMD = {"gfx942": "CDNA 3: MI300", "gfx950": "CDNA 4: MI350"}
COMPILED = ("sm_80", "sm_90", "sm_100")
"""For which tests compile every Triton kernel ahead of time."""
NONE = "none"


def architecture(device: torch.device | None) -> tuple[str, str]:
    """Name and family of a GPU, or "none" where there is no GPU."""
    if device is None or device.type != "cuda":
        return NONE, ""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        name = str(properties.gcnArchName).partition(":")[0]
        return name, AMD.get(name, "an AMD GPU")
    capability = properties.major, properties.minor
    other = f"sm_{properties.major}{properties.minor}", "not among those that were looked at"
    return NVIDIA.get(capability, other)


def knowledge(name: str) -> str:
    """What is known of the kernels on an architecture: measured where, compiled, or nothing."""
    if name == NONE:
        return "no kernel for GPUs concerns this machine"
    if name.startswith("gfx"):
        return "the Triton kernels were never compiled for it nor run on it: PyTorch alone serves"
    reports = [report for report in REPORTS if _name(report.capability) == name]
    if reports:
        told = []
        for report in reports:
            failed = f", {report.failed} checks FAILED" if report.failed else ""
            told.append(f"benchmarks/results/{report.file} ({report.device}{failed})")
        return f"measured in {', '.join(told)}"
    cuda = "; so are the CUDA kernels, which are for it alone" if name == "sm_90" else ""
    if name in COMPILED:
        return f"the Triton kernels are compiled for it by the tests and never ran on one{cuda}"
    return "the Triton kernels were never compiled for it by the tests nor run on one"


def _name(capability: str) -> str:
    major, minor = (int(number) for number in capability.split("."))
    return NVIDIA.get((major, minor), (f"sm_{major}{minor}", ""))[0]
