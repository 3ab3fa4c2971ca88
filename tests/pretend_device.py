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
# What does not come to ``__torch_dispatch__``: makers of tensors, and what torch would put together from other operations.
OWN_KERNELS = ("empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "silu_backward")
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

    def tolist(self):
        return self.inner.tolist()

    def untyped_storage(self):
        return self.inner.untyped_storage()

    @property
    def data(self):
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, other):  # how a module on the device changes its dtype
        torch.Tensor.data.__set__(self, other)
        self.inner = other.inner

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        require_one_device(func, args, kwargs)
        device = kwargs.get("device")
        return run(func, args, kwargs, wrap=device is None or torch.device(device).type == NAME)


def facts(tensor):
    return tensor.shape, tensor.stride(), tensor.dtype


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
            assert facts(tensor) == facts(tensor.inner), f"{func}: {facts(tensor)}, {facts(tensor.inner)}"

    def placed(tensor):  # an operation in place returns what it was given
        return known[id(tensor)] if id(tensor) in known else Pretend(tensor) if wrap else tensor

    return tree_map_only(torch.Tensor, placed, out)


def require_one_device(func, args, kwargs):
    """RuntimeError where CUDA would find tensors on two devices, and where random numbers are drawn on this one."""
    if torch.Tag.nondeterministic_seeded in func.tags:
        raise RuntimeError(f"{func} draws random numbers on the device: draw on the CPU, and move them")
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


def autocasting(name):
    """The kernel of an operation under autocast: its floating-point inputs (but fp64) in autocast's dtype."""
    operation, key = getattr(aten, name).default, torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(tensor):
        eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(torch.get_autocast_dtype(NAME)) if eligible else tensor

    def kernel(*args, **kwargs):
        with torch._C._ExcludeDispatchKeyGuard(key):
            args, kwargs = tree_map_only(torch.Tensor, cast, (args, kwargs))
            return operation(*args, **kwargs)

    return kernel


@functools.cache
def enable():
    """Register the device; return it."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    library, every = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    for name in OWN_KERNELS:
        operation, _, overload = name.partition(".")
        function = getattr(getattr(aten, operation), overload or "default")
        library.impl(name, lambda *args, function=function, **kw: run(function, args, kw, wrap=True), "PrivateUse1")
    # how torch.tensor(..., device=) fills what it made
    fill = lambda source, place, _=False: run(aten.copy_.default, (place, source), {}, wrap=True)  # noqa: E731
    library.impl("_copy_from", fill, "PrivateUse1")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in LOW_PRECISION:
        library.impl(name, autocasting(name), "AutocastPrivateUse1")
    return torch.device(NAME), library, every  # a library that is dropped takes its kernels along
