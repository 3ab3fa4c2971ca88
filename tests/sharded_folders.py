"""Checkpoints as two ranks write them together, made in one process from one that a single rank wrote."""

import json
import math
from pathlib import Path

from safetensors.torch import load_file, save_file

from unigrpo.shard_index import FOLDER, ShardIndex, index_path, key_of
from unigrpo.training import checkpoint, shards

MODEL = "model.safetensors"


def cut(folder, ranks=2):
    """Cut a checkpoint's weights and moments into rows, in place; step counts stay with rank 0."""
    folder = Path(folder)
    sets = {checkpoint.STATE_TENSORS: load_file(folder / checkpoint.STATE_TENSORS), MODEL: load_file(folder / MODEL)}
    (folder / FOLDER).mkdir()
    for number, (name, tensors) in enumerate(sets.items(), 1):
        rows = {n: t for n, t in tensors.items() if t.ndim}
        (folder / name).unlink()
        if name == checkpoint.STATE_TENSORS:
            save_file({n: t for n, t in tensors.items() if n not in rows}, folder / name)
        files = [_write(folder, rows, number, rank, ranks) for rank in range(ranks)]
        kinds = {n: shards.kind_of(t) for n, t in rows.items()}
        ShardIndex(index_path(folder, name), kinds, {path.name: key_of(path) for path in files}).write()
    facts = json.loads((folder / checkpoint.STATE_JSON).read_text())
    (folder / checkpoint.STATE_JSON).write_text(json.dumps({**facts, "shards": sorted(sets)}))
    return folder


def _write(folder, rows, number, rank, ranks):
    each = {n: math.ceil(t.shape[0] / ranks) for n, t in rows.items()}
    own = {n: t[rank * each[n] : (rank + 1) * each[n]].clone() for n, t in rows.items()}
    starts = {n: {"saved_offsets": [min(rank * each[n], t.shape[0]), *[0] * (t.ndim - 1)]} for n, t in rows.items()}
    path = folder / FOLDER / f"shard-{rank + 1:05d}-model-{number:05d}-of-00002.safetensors"
    save_file(own, path, metadata={"format": "pt", "DCP_SHARDING_INFO": json.dumps(starts)})
    return path
