"""A pretend accelerator: tensors whose numbers lie on the CPU, but which refuse to meet CPU tensors as CUDA's do.

``enable()`` registers the device "pretend" for the whole process (torch cannot take it back). Numbers are real, so loops
that look at them work, and results can be compared with the CPU's bit for bit. What CUDA lets pass is let through: CPU
tensors without dimensions beside others in pointwise operations, CPU tensors as indices, copies.
"""

import functools

import torch
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretend"
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
TAKE_A_NUMBER = INDEXING | {aten.fill_.Tensor, aten.fill.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor}
FACTORIES = ("empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step")
LOW_PRECISION = ("linear", "matmul", "mm", "addmm", "bmm", "conv2d", "scaled_dot_product_attention")


class Pretend(torch.Tensor):
    """A tensor on the pretend device; ``inner`` holds its numbers."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=f"{NAME}:0",
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"Pretend({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        require_one_device(func, args, kwargs)
        device = kwargs.get("device")
        return run(func, args, kwargs, wrap=device is None or torch.device(device).type == NAME)


def run(func, args, kwargs, *, wrap):
    """Run an operation on the numbers; ``wrap``: new tensors are on the pretend device."""
    given = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)]
    known = {id(tensor.inner if isinstance(tensor, Pretend) else tensor): tensor for tensor in given}
    args, kwargs = tree_map_only(Pretend, lambda tensor: tensor.inner, (args, kwargs))
    if kwargs.get("device") is not None:
        kwargs["device"] = torch.device("cpu")
    out = func(*args, **kwargs)
    for tensor in given:
        if isinstance(tensor, Pretend):  # what is out of date would be wrong later, and far from here
            assert tensor.shape == tensor.inner.shape and tensor.stride() == tensor.inner.stride(), f"{func} reshaped"
    # an operation in place returns what it was given
    wrapped = (lambda tensor: known.get(id(tensor)) or Pretend(tensor)) if wrap else (lambda tensor: tensor)
    return tree_map_only(torch.Tensor, wrapped, out)


def require_one_device(func, args, kwargs):
    """RuntimeError where CUDA would find tensors on two devices."""
    if func in COPIES:
        return
    looked_at = (args[0], *args[2:]) if func in INDEXING else args
    given = [tensor for tensor in tree_leaves((looked_at, kwargs)) if isinstance(tensor, torch.Tensor)]
    strays = [tensor for tensor in given if not isinstance(tensor, Pretend)]
    number = torch.Tag.pointwise in func.tags or func in TAKE_A_NUMBER
    written = [
        value
        for argument, value in zip(func._schema.arguments, args, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    lost = any(stray is tensor for stray in strays for tensor in tree_leaves(written))
    if lost or any(stray.ndim or not number for stray in strays):
        shapes = [f"{tensor.device} {list(tensor.shape)}" for tensor in given]
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got {', '.join(shapes)}")


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


@functools.cache
def enable():
    """Register the device; return it."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    library = torch.library.Library("aten", "IMPL")
    for name in FACTORIES:
        operation = getattr(aten, name.partition(".")[0])
        overload = getattr(operation, name.partition(".")[2] or "default")

        def make(*args, overload=overload, **kwargs):
            return run(overload, args, kwargs, wrap=True)

        library.impl(name, make, "PrivateUse1")
    enable.library = library
    return torch.device(NAME)
