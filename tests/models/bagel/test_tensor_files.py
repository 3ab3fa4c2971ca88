"""Safetensors files tensor by tensor: the library's very bytes, one tensor of memory, and every fault named."""

import json
import os
import weakref
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from unigrpo.models.bagel_files.tensor_files import CODES, TensorFiles, copy_into, load_into, require_fit, write_stream

PYTORCH = {"format": "pt"}


def one_of_each():
    """A tensor of every dtype, one without numbers, a scalar, one that is not contiguous, and an odd name."""
    draws = torch.randn(40, generator=torch.Generator().manual_seed(0))
    tensors = {f"{code}.weight": (8 * draws[:6]).to(dtype).reshape(2, 3) for code, dtype in CODES.items()}
    odd = {"empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5), "turned": draws.reshape(8, 5).T, 'ü "x"\n': draws}
    return tensors | odd


def same(ours, theirs):
    return ours.dtype == theirs.dtype and ours.shape == theirs.shape and torch.equal(ours, theirs)


def test_a_written_file_has_the_bytes_of_the_library_and_is_read_by_it(tmp_path):
    tensors, path = one_of_each(), tmp_path / "a.safetensors"
    write_stream(path, tensors)
    assert path.read_bytes() == save({n: t.contiguous() for n, t in tensors.items()}, metadata=PYTORCH)
    read = load_file(path)
    assert set(read) == set(tensors) and all(same(read[name], tensors[name]) for name in tensors)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == PYTORCH and same(file.get_tensor("turned"), tensors["turned"])


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=6).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(sorted(CODES)), st.lists(st.integers(0, 4), max_size=3)),
        max_size=8,
    )
)
def test_any_names_shapes_and_dtypes_are_as_the_library_writes_them(tmp_path_factory, wanted):
    path = tmp_path_factory.mktemp("any") / "a.safetensors"
    tensors = {name: torch.ones(shape).to(CODES[code]) for name, (code, shape) in wanted.items()}
    write_stream(path, tensors, metadata={})
    assert path.read_bytes() == save(tensors)
    files = TensorFiles.of(path)
    assert files.shapes == {name: tuple(shape) for name, (_, shape) in wanted.items()}
    assert files.dtypes == {name: CODES[code] for name, (code, _) in wanted.items()}
    assert all(same(files.read(name), tensors[name]) for name in tensors)


def test_dtypes_are_changed_on_the_way_out(tmp_path):
    tensors, path = {"a": torch.randn(5), "b": torch.randn(3)}, tmp_path / "a.safetensors"
    write_stream(path, tensors, dtype_of={"a": torch.bfloat16, "b": torch.float64}.__getitem__)
    read = load_file(path)
    assert same(read["a"], tensors["a"].bfloat16()) and same(read["b"], tensors["b"].double())


def test_a_dtype_that_cannot_be_kept_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"a\.safetensors cannot keep x as torch.complex64: convert it"):
        write_stream(tmp_path / "a.safetensors", {"x": torch.zeros(1, dtype=torch.complex64)})
    assert not list(tmp_path.iterdir())


def test_writing_is_whole_or_not_at_all_and_readable_by_others(tmp_path):
    path = tmp_path / "a.safetensors"
    write_stream(path, {"x": torch.ones(3)})
    before = path.read_bytes()

    class Broken(torch.Tensor):
        def detach(self):
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write_stream(path, {"x": torch.zeros(3), "y": torch.zeros(3).as_subclass(Broken)})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    umask = os.umask(0o022)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_what_was_read_does_not_hang_on_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    write_stream(path, {"x": torch.arange(1000.0)})
    value = TensorFiles.of(path).read("x")
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(value, torch.arange(1000.0))


# One file or several


def shards(folder, name="ema.safetensors"):
    """A model of three tensors in two shards."""
    tensors = {"a": torch.randn(4, 2), "b": torch.randn(3).bfloat16(), "c": torch.arange(5)}
    places = {"a": "one.safetensors", "b": "two.safetensors", "c": "one.safetensors"}
    for shard in ("one.safetensors", "two.safetensors"):
        write_stream(folder / shard, {n: t for n, t in tensors.items() if places[n] == shard})
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return tensors


def test_shards_are_read_as_one(tmp_path):
    tensors = shards(tmp_path)
    files = TensorFiles.open(tmp_path)
    assert files.path.name == "ema.safetensors.index.json"
    assert files.names == ["c", "a", "b"]  # as they lie on the disk
    assert files.shapes == {name: tuple(value.shape) for name, value in tensors.items()}
    assert all(same(files.read(name), value) for name, value in tensors.items())


def test_the_first_name_that_is_there_is_taken(tmp_path):
    shards(tmp_path, "model.safetensors")
    assert TensorFiles.open(tmp_path).path.name == "model.safetensors.index.json"
    write_stream(tmp_path / "model.safetensors", {"whole": torch.zeros(1)})
    assert TensorFiles.open(tmp_path).names == ["whole"]
    shards(tmp_path, "ema.safetensors")
    assert TensorFiles.open(tmp_path).names == ["c", "a", "b"]
    with pytest.raises(ValueError, match=r"has no weights: it needs x.safetensors \(or x.safetensors.index.json\)$"):
        TensorFiles.open(tmp_path, ("x.safetensors",))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "is not an index of weights"),
        ('{"weight_map": {}}', "is damaged: its weight_map"),
        ('{"weight_map": {"a": 3}}', "is damaged: its weight_map"),
        ('{"weight_map": {"a": "../one.safetensors"}}', "is damaged: its weight_map"),
        ('{"weight_map": {"a": "lost.safetensors"}}', "names lost.safetensors, which is not in the folder"),
        ('{"weight_map": {"a": "one.safetensors"}}', "one.safetensors do not agree on the tensors in it: c$"),
        ('{"weight_map": {"b": "two.safetensors", "d": "two.safetensors"}}', "two.safetensors do not agree .*: d$"),
    ],
)
def test_a_bad_index_is_named(tmp_path, index, message):
    shards(tmp_path)
    (tmp_path / "ema.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=rf"ema\.safetensors\.index\.json.* {message}|index\.json {message}"):
        TensorFiles.open(tmp_path)


def file_of(header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DAMAGED = {
    "no bytes": (b"", "it has no header"),
    "words": (b"version https://git-lfs.github.com/spec/v1\n", "it has no header, or is cut short in it"),
    "cut in the header": (file_of({"a": ENTRY}, bytes(8))[:30], "it has no header, or is cut short in it"),
    "cut in the data": (file_of({"a": ENTRY}, bytes(7)), r"it is cut short: it has \d+ bytes, and its header asks for"),
    "too long": (file_of({"a": ENTRY}, bytes(9)), r"it has \d+ bytes, and its header asks for \d+; copy"),
    "not JSON": (file_of(b"{{"), "Expecting property name"),
    "not UTF-8": (file_of(b"\xff\xff"), "its header is not UTF-8 text"),
    "a list": (file_of([]), "is not a readable"),
    "no dtype": (file_of({"a": {"shape": [2]}}), "its entry for a is damaged"),
    "other size": (file_of({"a": {**ENTRY, "shape": [3]}}, bytes(8)), r"a has shape \(3,\) of F32, but 8 bytes"),
    "a negative size": (file_of({"a": {**ENTRY, "shape": [-1, -2]}}, bytes(8)), r"a has shape \[-1, -2\]"),
    "a hole": (file_of({"a": {**ENTRY, "data_offsets": [8, 16]}}, bytes(16)), "a does not begin where"),
    "an overlap": (file_of({"a": ENTRY, "b": {**ENTRY, "data_offsets": [4, 12]}}, bytes(12)), "b does not begin"),
}


@pytest.mark.parametrize(("content", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_named_in_one_sentence(tmp_path, content, message):
    path = tmp_path / "ema.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        TensorFiles.open(tmp_path)
    assert str(caught.value).startswith(f"{path} is not a readable safetensors file: ")
    assert "\n" not in str(caught.value)


def test_an_unknown_dtype_and_a_file_that_shrinks_are_named(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(file_of({"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}, bytes(2)))
    with pytest.raises(ValueError, match="keeps a as F8_E4M3, which is not supported: convert it to"):
        TensorFiles.of(path)
    write_stream(path, {"a": torch.zeros(100)})
    files = TensorFiles.of(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="became shorter while it was read"):
        files.read("a")
    with pytest.raises(ValueError, match=r"b\.safetensors does not exist"):
        TensorFiles.of(tmp_path / "b.safetensors")


# Into a module


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        self.table = nn.Parameter(torch.zeros(8, 8), requires_grad=False)
        self.register_buffer("scale", torch.ones(8, 8))


def saved(folder, **changes):
    """The file of a random ``Small`` in bf16 (a change of None leaves the tensor out), and its tensors."""
    tensors = {name: torch.randn(value.shape).bfloat16() for name, value in Small().state_dict().items()}
    tensors = {name: value for name, value in (tensors | changes).items() if value is not None}
    write_stream(folder / "model.safetensors", tensors)
    return TensorFiles.open(folder), tensors


def on_meta():
    with torch.device("meta"):
        return Small()


def test_loading_gives_every_tensor_its_dtype_and_keeps_requires_grad(tmp_path):
    files, tensors = saved(tmp_path)
    module = on_meta()
    load_into(module, files, device="cpu", dtype_of=lambda n: torch.float32 if "body.0" in n else torch.bfloat16)
    state = module.state_dict()
    assert set(state) == set(tensors)
    assert all(
        same(state[n], value.float() if n.startswith("body.0") else value) and state[n].device.type == "cpu"
        for n, value in tensors.items()
    )
    assert isinstance(module.table, nn.Parameter) and not module.table.requires_grad
    assert all(p.requires_grad for p in module.body.parameters())
    assert "scale" in dict(module.named_buffers())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table": None}, "model.safetensors does not fit the model: missing table$"),
        ({"more": torch.zeros(1)}, "unexpected more$"),
        ({"scale": torch.zeros(3)}, r"scale has shape \(3,\), the config asks for \(8, 8\)$"),
        (dict.fromkeys(Small().state_dict()) | {"x": torch.zeros(1), "y": torch.zeros(1)}, r"\(and 3 more\)$"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(tmp_path, changes, message):
    files, _ = saved(tmp_path, **changes)
    module, other = on_meta(), Small()
    with pytest.raises(ValueError, match=message):
        load_into(module, files, device="cpu", dtype_of=lambda n: torch.float32)
    assert all(value.is_meta for value in module.state_dict().values())
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        copy_into(other, files)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_tensors_of_a_part_that_the_module_lacks_can_be_left_out(tmp_path):
    files, _ = saved(tmp_path, **{"eye.weight": torch.zeros(1), "eyes": torch.zeros(1)})
    module = on_meta()
    with pytest.raises(ValueError, match=r"unexpected eyes$"):
        load_into(module, files, device="cpu", dtype_of=lambda n: torch.float32, ignore=("eye.",))
    load_into(module, files, device="cpu", dtype_of=lambda n: torch.float32, ignore=("eye.", "eyes"))


def test_copying_keeps_the_parameters_and_their_dtype(tmp_path):
    files, tensors = saved(tmp_path)
    module = Small()
    before = dict(module.named_parameters())
    copy_into(module, files)
    assert all(parameter is before[name] for name, parameter in module.named_parameters())
    assert all(same(value, tensors[name].float()) for name, value in module.state_dict().items())


@dataclass
class Alive:
    """How many of the tensors that it was shown live, now and at most."""

    most: int = 0
    seen: list = field(default_factory=list)

    def show(self, tensor):
        self.seen = [ref for ref in self.seen if ref() is not None] + [weakref.ref(tensor.untyped_storage())]
        self.most = max(self.most, len(self.seen))


@dataclass(frozen=True)
class Counting(TensorFiles):
    """A reader that keeps count of the tensors that it handed out."""

    alive: Alive = field(default_factory=Alive)

    def read(self, name):
        value = super().read(name)
        self.alive.show(value)
        return value


def counting(files):
    return Counting(files.path, files.entries, files.metadata)


def test_loading_holds_one_source_tensor_at_a_time(tmp_path):
    files = counting(saved(tmp_path)[0])
    load_into(on_meta(), files, device="cpu", dtype_of=lambda n: torch.float32)
    assert files.alive.most == 1
    files = counting(files)
    copy_into(Small(), files)
    assert files.alive.most == 1


def test_the_source_tensor_becomes_the_weight_where_nothing_changes(tmp_path):
    files, handed = saved(tmp_path)[0], {}

    class Noting(TensorFiles):
        def read(self, name):
            handed[name] = super().read(name)
            return handed[name]

    module = on_meta()
    load_into(module, Noting(files.path, files.entries, {}), device="cpu", dtype_of=lambda n: torch.bfloat16)
    assert all(value.data_ptr() == handed[name].data_ptr() for name, value in module.state_dict().items())


@contextmanager
def counted_results():
    """Count how many tensors that operations made live at a time."""
    alive = Alive()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            given = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, torch.Tensor)}
            if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in given:
                alive.show(result)
            return result

    with Watch():
        yield alive


def test_writing_converts_one_tensor_at_a_time(tmp_path):
    tensors = {f"{index}": torch.randn(100, 100) for index in range(6)}
    with counted_results() as alive:
        write_stream(tmp_path / "a.safetensors", tensors, dtype_of=lambda n: torch.bfloat16)
    assert alive.most == 1


def test_require_fit_is_silent_when_all_is_well():
    require_fit({"a": (1, 2)}, {"a": (1, 2)}, "x")
