"""Checks of GPUs: are they seen, do they multiply right, can several talk to each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unigrpo.plurals import counted
from unigrpo.tools.doctor.finding import Finding, first_line, gigabytes

SIDE, ALLOWED = 512, 0.02
"""Of the matrices that are multiplied, and the relative error of a product in bfloat16 that rounding explains."""


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, all its memory and what is free of it in bytes, and whether it computes in bfloat16."""

    name: str
    total: int
    free: int
    bfloat16: bool


@dataclass(frozen=True)
class Devices:
    """The GPUs that torch sees; ``driver``: those whose files are there; ``built``: torch's CUDA (None: without)."""

    gpus: tuple[Gpu, ...]
    driver: int
    built: str | None

    @property
    def memory(self) -> int | None:
        """Bytes of the smallest GPU."""
        return min((gpu.total for gpu in self.gpus), default=None)


def devices_here() -> Devices:
    """What is here."""
    import torch

    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            with torch.cuda.device(index):
                gpus.append(Gpu(torch.cuda.get_device_name(index), total, free, torch.cuda.is_bf16_supported()))
    driver = len([path for path in Path("/dev").glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit()])
    return Devices(tuple(gpus), driver, torch.version.cuda)


def check_devices(facts: Devices, torch_version: str) -> Finding:
    """Failed where there are GPUs that torch cannot use; a note where one has no bfloat16."""
    figures = {"gpus": [vars(gpu) for gpu in facts.gpus], "driver": facts.driver, "cuda": facts.built}
    if facts.driver and not facts.gpus:
        said = f"{facts.driver} GPUs are in /dev, and torch {torch_version} uses none"
        todo = (
            "this torch is for CPUs: install one with CUDA (pytorch.org says how)"
            if facts.built is None
            else f"torch wants CUDA {facts.built}: update the driver, and see that CUDA_VISIBLE_DEVICES is not empty"
        )
        return Finding("devices", "failed", said, todo, figures)
    if not facts.gpus:
        return Finding("devices", "ok", "no GPU: everything runs on the CPU (micro models take minutes)", "", figures)
    said = "; ".join(f"{gpu.name}, {gigabytes(gpu.free)} of {gigabytes(gpu.total)} free" for gpu in facts.gpus)
    if old := [gpu.name for gpu in facts.gpus if not gpu.bfloat16]:
        return Finding("devices", "note", said, f"{old[0]} has no bfloat16: set model.dtype to float32", figures)
    return Finding("devices", "ok", said, "", figures)


def product_error(index: int) -> float:
    """The relative error of a product in bfloat16 on a GPU, against fp64 on the CPU."""
    import torch

    source = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SIDE, SIDE, generator=source).bfloat16() for _ in range(2))
    right = a.double() @ b.double()
    made = (a.to(f"cuda:{index}") @ b.to(f"cuda:{index}")).double().cpu()
    return float((made - right).norm() / right.norm())


def check_products(count: int, error_of: Callable[[int], float] = product_error) -> Finding:
    """Failed where a GPU multiplies wrong, or not at all."""
    if not count:
        return Finding("matmul", "ok", "no GPU to try", "", {})
    errors = []
    for index in range(count):
        try:
            errors.append(error_of(index))
        except Exception as error:
            todo = "restart what uses this GPU, or leave it out by CUDA_VISIBLE_DEVICES"
            return Finding("matmul", "failed", f"GPU {index}: {first_line(error)}", todo, {})
        if not errors[-1] <= ALLOWED:
            said = f"GPU {index}: a bfloat16 product is off by {errors[-1]:.2g} of its norm (allowed {ALLOWED})"
            return Finding("matmul", "failed", said, "leave it out by CUDA_VISIBLE_DEVICES: it computes wrong", {})
    said = f"bfloat16 products are right to {max(errors):.1g} on {counted(count, 'GPU')}"
    return Finding("matmul", "ok", said, "", {"relative_error": errors})


def nccl_version() -> str | None:
    """The version of NCCL that torch brings; None without."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_nccl_available()):
        return None
    from torch.cuda import nccl

    return ".".join(map(str, nccl.version()))


def check_nccl(gpus: int, nccl: str | None) -> Finding:
    """Failed where there are several GPUs and no NCCL."""
    if nccl is None and gpus > 1:
        todo = "install a torch with CUDA and NCCL; without it only one GPU can be used"
        return Finding("nccl", "failed", f"{gpus} GPUs and no NCCL", todo, {"nccl": None})
    said = f"NCCL {nccl}" if nccl else "no NCCL (it is for several GPUs)"
    return Finding("nccl", "ok", said, "", {"nccl": nccl})
