"""Where a model came from: what has to be known to hand it back in the very folder layout that it had."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from unigrpo.files import parse_json_object
from unigrpo.models.bagel_files.tensor_files import CODE_OF, CODES, TensorFiles
from unigrpo.shard_index import SUFFIX

NOTE = "unigrpo.origin"  # the key, in a weights file's metadata, of what a later export needs
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".partial")
LARGEST_COMPANION = 64 * 2**20


@dataclass(frozen=True)
class Origin:
    """A public folder as it was when it was read.

    ``weights`` is the name of its weights file, ``dtypes`` what each tensor had there, ``metadata`` that file's;
    ``companions`` are the other files (configs, tokenizer, README), byte for byte, so that the folder may go away.
    """

    folder: Path
    weights: str
    dtypes: Mapping[str, torch.dtype]
    autoencoder_dtypes: Mapping[str, torch.dtype]
    metadata: Mapping[str, str]
    companions: Mapping[str, bytes]

    @classmethod
    def of(cls, folder: Path, files: TensorFiles, autoencoder: TensorFiles) -> Origin:
        """Take note of a folder; one that this package wrote in training says itself what it came from."""
        index = files.path.name if files.path.name.endswith(".index.json") else ""
        weights = files.path.name.removesuffix(".index.json").removesuffix(SUFFIX)
        if (note := files.metadata.get(NOTE)) is None:
            companions = _companions(folder, leave_out=index)
            return cls(folder, weights, files.dtypes, autoencoder.dtypes, files.metadata, companions)
        try:
            said = parse_json_object(note, "it")
            usual, others = CODES[said["dtype"]], {name: CODES[code] for name, code in said["others"].items()}
            companions = {name: (folder / name).read_bytes() for name in said["companions"]}
            dtypes = {name: others.get(name, usual) for name in files.entries}
            metadata = {str(key): str(text) for key, text in said["metadata"].items()}
            return cls(folder, weights, dtypes, autoencoder.dtypes, metadata, companions)
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise ValueError(f"{files.path} is damaged: its note on where it came from says {error!r}") from error

    def note(self) -> dict[str, str]:
        """Metadata for a file that keeps other dtypes than the source did, with all that :meth:`of` needs."""
        usual = Counter(self.dtypes.values()).most_common(1)[0][0]
        said = {
            "dtype": CODE_OF[usual],
            "others": {name: CODE_OF[dtype] for name, dtype in sorted(self.dtypes.items()) if dtype != usual},
            "metadata": dict(self.metadata),
            "companions": sorted(self.companions),
        }
        return {"format": "pt", NOTE: json.dumps(said)}


def _companions(folder: Path, leave_out: str) -> dict[str, bytes]:
    """All small files right in the folder that hold no weights, but for the index of shards that become one file."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.is_file()
        and path.name != leave_out
        and path.suffix not in WEIGHT_SUFFIXES
        and path.stat().st_size <= LARGEST_COMPANION
    }
