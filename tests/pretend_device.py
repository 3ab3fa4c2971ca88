"""A pretend accelerator: tensors whose numbers lie on the CPU, but which refuse to meet CPU tensors as CUDA's do.

``enable()`` registers the device "pretend" for the whole process (torch cannot take it back). Numbers are real, so loops
that look at them work, and results can be compared with the CPU's bit for bit. What CUDA lets pass is let through: CPU
tensors without dimensions beside others in pointwise operations, CPU tensors as indices, copies. Random numbers may not
be drawn on it: this package draws on the CPU.
"""

import functools

import torch
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretend"
CROSSINGS = []
"""Every operation for which the CPU would wait for the device: tests clear it and count."""

aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
FILLING = {aten.fill_.Tensor, aten.fill.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor}
# What does not come to ``__torch_dispatch__``: makers of tensors, and what torch would put together from other operations.
OWN_KERNELS = ("empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "silu_backward")
LOW_PRECISION = ("linear", "matmul", "mm", "addmm", "bmm", "conv2d", "scaled_dot_product_attention")  # under autocast


class Pretend(torch.Tensor):
    """A tensor on the pretend device; ``inner`` holds its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        size, stride, offset = inner.shape, inner.stride(), inner.storage_offset()
        return torch.Tensor._make_wrapper_subclass(
            cls, size, strides=stride, storage_offset=offset, dtype=inner.dtype, device=f"{NAME}:0"
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"Pretend({self.inner!r})"

    def tolist(self):
        CROSSINGS.append("tolist")
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

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        require_one_device(func, args, kwargs)
        device = kwargs.get("device")
        wrap = device is None or torch.device(device).type == NAME
        if waits(func, args, wrap):
            CROSSINGS.append(str(func))
        return run(func, args, kwargs, wrap=wrap)


def tensors(values):
    """All tensors in arguments and in lists of them."""
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors(value)
    return found


def mapped(change, value):
    """The same with every tensor changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    return type(value)(mapped(change, part) for part in value) if isinstance(value, list | tuple) else value


def inner(tensor):
    return tensor.inner if isinstance(tensor, Pretend) else tensor


def run(func, args, kwargs, *, wrap):
    """Run an operation on the numbers; ``wrap``: new tensors are on the pretend device."""
    given = tensors((args, list(kwargs.values())))
    known = {id(inner(tensor)): tensor for tensor in given}  # an operation in place returns what it was given
    options = {name: mapped(inner, value) for name, value in kwargs.items()}
    if options.get("device") is not None:
        options["device"] = torch.device("cpu")
    out = func(*mapped(inner, args), **options)
    for tensor in given:
        facts = [(t.shape, t.stride(), t.dtype) for t in (tensor, inner(tensor))]
        assert facts[0] == facts[1], f"{func} changed a tensor's shape in place, which this tool cannot follow"
    return mapped(lambda t: known[id(t)] if id(t) in known else Pretend(t) if wrap else t, out)


@functools.cache
def written(func):
    """Places of the arguments that an operation writes to."""
    infos = [argument.alias_info for argument in func._schema.arguments]
    return [place for place, info in enumerate(infos) if info is not None and info.is_write]


def require_one_device(func, args, kwargs):
    """RuntimeError where CUDA would find tensors on two devices, and where random numbers are drawn on this one."""
    if torch.Tag.nondeterministic_seeded in func.tags:
        raise RuntimeError(f"{func} draws random numbers on the device: draw on the CPU, and move them")
    if func in COPIES:
        return
    given = tensors(((args[0], *args[2:]) if func in INDEXING else args, list(kwargs.values())))
    strays = [tensor for tensor in given if not isinstance(tensor, Pretend)]
    if not strays:
        return
    number = torch.Tag.pointwise in func.tags or func in FILLING | INDEXING
    lost = {id(tensor) for tensor in tensors([args[place] for place in written(func) if place < len(args)])}
    if any(stray.ndim or not number or id(stray) in lost for stray in strays):
        found = ", ".join(f"{tensor.device} {list(tensor.shape)}" for tensor in given)
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got {found}")


def waits(func, args, wrap):
    """Whether numbers are read, shapes follow from numbers, or numbers go from one device to the other."""
    if func in COPIES:
        return not wrap or any(not isinstance(tensor, Pretend) for tensor in tensors(args))
    if func in INDEXING:
        return any(index.dtype == torch.bool or not isinstance(index, Pretend) for index in tensors(args[1]))
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags


def from_list(source, place, non_blocking=False):
    """How ``torch.tensor(..., device=)`` fills what it made."""
    CROSSINGS.append("torch.tensor")
    return run(aten.copy_.default, (place, source), {}, wrap=True)


def autocasting(name):
    """The kernel of an operation under autocast: its floating-point inputs (but fp64) in autocast's dtype."""
    operation, key = getattr(aten, name).default, torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(tensor):
        eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(torch.get_autocast_dtype(NAME)) if eligible else tensor

    def kernel(*args, **kwargs):
        with torch._C._ExcludeDispatchKeyGuard(key):
            return operation(*mapped(cast, args), **{name: mapped(cast, value) for name, value in kwargs.items()})

    return kernel


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


@functools.cache
def enable():
    """Register the device; return it, and what must be kept (kernels go with the library that registered them)."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    library, every = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    for name in OWN_KERNELS:
        operation, _, overload = name.partition(".")
        function = getattr(getattr(aten, operation), overload or "default")
        library.impl(name, lambda *args, function=function, **kw: run(function, args, kw, wrap=True), "PrivateUse1")
    library.impl("_copy_from", from_list, "PrivateUse1")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in LOW_PRECISION:
        library.impl(name, autocasting(name), "AutocastPrivateUse1")
    return torch.device(NAME), library, every
