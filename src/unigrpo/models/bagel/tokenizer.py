"""Words to ids and back, read from a ``tokenizer.json`` (word-level for the micro model, byte-level BPE for BAGEL)."""

from __future__ import annotations

from pathlib import Path

import tokenizers
import torch
from torch import Tensor


class Tokenizer:
    """A thin cover over ``tokenizers.Tokenizer`` that adds nothing to a text and names the words it does not know."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self.inner = inner

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read ``tokenizer.json``; ValueError names a damaged one."""
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # tokenizers raises a bare Exception for whatever is wrong
            raise ValueError(f"{path} is not a readable tokenizer: {error}") from error

    def save(self, path: Path) -> None:
        """Write ``tokenizer.json``."""
        path.write_text(self.inner.to_str(pretty=False), encoding="utf-8")

    def encode(self, text: str) -> Tensor:
        """Text -> int64 [n], no bos, no eos. ValueError names the unknown words."""
        try:
            ids = self.inner.encode(text, add_special_tokens=False).ids
        except Exception as error:  # tokenizers raises a bare Exception for a word outside a word-level vocabulary
            unknown = [word for word in text.split() if self.inner.token_to_id(word) is None]
            known = ", ".join(sorted(self.inner.get_vocab()))
            raise ValueError(
                f"the model does not know the word(s) {', '.join(map(repr, unknown))} in {text!r}; it knows: {known}"
            ) from error
        return torch.tensor(ids, dtype=torch.int64)

    def decode(self, ids: Tensor) -> str:
        """Ids -> text, for people only."""
        return self.inner.decode(ids.tolist(), skip_special_tokens=False)


def word_tokenizer(words: list[str]) -> Tokenizer:
    """A word-level tokenizer: id = index in ``words``; text is split at white space."""
    vocabulary = {word: index for index, word in enumerate(words)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return Tokenizer(inner)
