"""A pretend accelerator: tensors whose numbers lie on the CPU, but which refuse to meet CPU tensors as CUDA's do.

``enable()`` registers the device "pretend" for the whole process (torch cannot take it back). Numbers are real, so
loops that look at them work, and results can be compared with the CPU's bit for bit. What CUDA lets pass is let
through: CPU tensors without dimensions in pointwise operations, CPU tensors as indices, copies.
"""

import functools

import torch
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretend"
WAITS: list[str] = []  # every operation for which the CPU would wait for the device, for tests to clear and count
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
# What does not come to ``__torch_dispatch__``: makers of tensors, and what torch would make of other operations.
OWN_KERNELS = ("empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "silu_backward")
LOW_PRECISION = ("linear", "matmul", "scaled_dot_product_attention")  # under autocast


class Pretend(torch.Tensor):
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        facts = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, device=f"{NAME}:0", **facts)
        made.inner = inner  # which holds the numbers
        return made

    def tolist(self):
        WAITS.append("tolist")
        return self.inner.tolist()

    def untyped_storage(self):
        return self.inner.untyped_storage()

    @property
    def data(self):
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, other):  # how a module that is on the device changes its dtype
        torch.Tensor.data.__set__(self, other)
        self.inner = other.inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        require_one_device(func, args, kwargs)
        here = kwargs.get("device") is None or torch.device(kwargs["device"]).type == NAME
        if waits(func, args, here):
            WAITS.append(str(func))
        return run(func, args, kwargs, here=here)


def tensors(value):
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in tensors(part)]
    return [value] if isinstance(value, torch.Tensor) else []


def mapped(change, value):
    if isinstance(value, list | tuple):
        return type(value)(mapped(change, part) for part in value)
    return change(value) if isinstance(value, torch.Tensor) else value


def numbers(tensor):
    return tensor.inner if isinstance(tensor, Pretend) else tensor


def run(func, args, kwargs, *, here):
    """Run an operation on the numbers; ``here``: new tensors are on the pretend device."""
    given = tensors((args, list(kwargs.values())))
    known = {id(numbers(tensor)): tensor for tensor in given}  # an operation in place returns what it was given
    options = {name: mapped(numbers, value) for name, value in kwargs.items()}
    if options.get("device") is not None:
        options["device"] = torch.device("cpu")
    out = func(*mapped(numbers, args), **options)
    for tensor in given if written(func) else ():
        facts = [(t.shape, t.stride(), t.dtype) for t in (tensor, numbers(tensor))]
        assert facts[0] == facts[1], f"{func} changed a tensor's shape in place, which this tool cannot follow"
    return mapped(lambda t: known[id(t)] if id(t) in known else Pretend(t) if here else t, out)


@functools.cache
def written(func):
    return [i for i, one in enumerate(func._schema.arguments) if one.alias_info is not None and one.alias_info.is_write]


def require_one_device(func, args, kwargs):
    """RuntimeError where CUDA would find tensors on two devices, or numbers are drawn (in this package: on the CPU)."""
    if torch.Tag.nondeterministic_seeded in func.tags:
        raise RuntimeError(f"{func} draws random numbers on the device: draw on the CPU, and move them")
    given = tensors(((args[0], *args[2:]) if func in INDEXING else args, list(kwargs.values())))
    strays = [tensor for tensor in given if not isinstance(tensor, Pretend)]
    if not strays or func in COPIES:
        return
    lost = {id(tensor) for tensor in tensors([args[place] for place in written(func) if place < len(args)])}
    passes = torch.Tag.pointwise in func.tags or func in INDEXING
    if any(stray.ndim or not passes or id(stray) in lost for stray in strays):
        found = ", ".join(f"{tensor.device} {list(tensor.shape)}" for tensor in given)
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got {found}")


def waits(func, args, here):
    """Whether numbers are read, shapes follow from numbers, or numbers go from one device to the other."""
    if func in COPIES:
        return not here or any(not isinstance(tensor, Pretend) for tensor in tensors(args))
    if func in INDEXING:
        return any(index.dtype == torch.bool or not isinstance(index, Pretend) for index in tensors(args[1]))
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags


def autocasting(name):
    """The kernel of an operation under autocast: its fp32 inputs are cast."""
    operation, key = getattr(aten, name).default, torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(tensor):
        return tensor.to(torch.get_autocast_dtype(NAME)) if tensor.dtype == torch.float32 else tensor

    def kernel(*args, **kwargs):
        with torch._C._ExcludeDispatchKeyGuard(key):
            return operation(*mapped(cast, args), **{name: mapped(cast, value) for name, value in kwargs.items()})

    return kernel


@functools.cache
def enable():
    """Register the device; return it, and the libraries whose kernels would go with them."""
    module = type("Module", (_DummyBackendModule,), {"get_amp_supported_dtype": lambda self: [torch.bfloat16]})
    _setup_privateuseone_for_python_backend(NAME, backend_module=module())
    library, every = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    for name in OWN_KERNELS:
        function = getattr(getattr(aten, name.partition(".")[0]), name.partition(".")[2] or "default")
        library.impl(name, lambda *args, function=function, **kw: run(function, args, kw, here=True), "PrivateUse1")

    def from_list(source, place, non_blocking=False):  # how torch.tensor(..., device=) fills what it made
        WAITS.append("torch.tensor")
        return run(aten.copy_.default, (place, source), {}, here=True)

    library.impl("_copy_from", from_list, "PrivateUse1")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in LOW_PRECISION:
        library.impl(name, autocasting(name), "AutocastPrivateUse1")
    return torch.device(NAME), library, every
