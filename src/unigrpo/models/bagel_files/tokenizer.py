"""Words to ids and back: word-level for the micro model; for BAGEL, Qwen2.5's byte-level BPE.

A BAGEL folder holds the BPE twice: whole in ``tokenizer.json``, and as ``vocab.json`` and ``merges.txt``, to which the
reader brings Qwen2's way to cut a text. ``tokenizer_config.json`` lists the tokens added to either.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tokenizers
import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from unigrpo.files import read_json_object
from unigrpo.models.bagel import limits

ADVICE = "copy or download the model folder again"
SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")  # bos, eos, then a picture's
WHOLE, VOCABULARY, MERGES, CONFIG = "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"
NUM_BYTES = 256

# How Qwen2 cuts a text into words before BPE: English endings, letters with one sign before them, single digits,
# runs of signs, line ends, spaces. It is part of the format: another cut gives other ids.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens around a text (bos, eos) and around a picture.

    Source: docs/bagel-architecture.md#tokens-positions-masks.
    """

    bos: int
    eos: int
    vision_start: int
    vision_end: int


class Tokenizer:
    """A thin cover over ``tokenizers.Tokenizer`` that adds nothing to a text and names the words it does not know."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        inner.no_truncation()  # a tokenizer.json may ask for both; a text is neither cut nor filled up here
        inner.no_padding()
        self.inner = inner

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read ``tokenizer.json``; ValueError names a damaged one."""
        read_json_object(path, ADVICE)  # the library's own messages do not say where a file is broken
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # tokenizers raises a bare Exception for whatever is wrong
            raise ValueError(f"{path} is not a readable tokenizer: {error}") from error

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read the tokenizer of a BAGEL folder: ``tokenizer.json``, else ``vocab.json`` with ``merges.txt``.

        To either come the ``added_tokens_decoder`` of ``tokenizer_config.json``, where there is one. ValueError says
        which files are missing or damaged, and which of ``SPECIAL_TOKENS`` the tokenizer lacks. (The original appends
        the lacking ones and grows the embedding; a checkpoint whose control tokens are untrained is refused here.)
        """
        missing = [name for name in (VOCABULARY, MERGES) if not (folder / name).is_file()]
        if (folder / WHOLE).is_file():
            tokenizer = cls.load(folder / WHOLE)
        elif not missing:
            tokenizer = cls(_read_bpe(folder / VOCABULARY, folder / MERGES))
        else:
            raise ValueError(
                f"{folder} has no tokenizer: it needs {WHOLE}, or {VOCABULARY} and {MERGES}, "
                f"but there is no {WHOLE} and no {' and no '.join(missing)}"
            )
        if (folder / CONFIG).is_file():
            _add_tokens(tokenizer.inner, folder / CONFIG)
        try:
            special_ids(tokenizer)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error
        _guard(tokenizer.inner)
        return tokenizer

    @property
    def words(self) -> frozenset[str] | None:
        """All words that it knows; None where it can spell any."""
        return frozenset(self.inner.get_vocab()) if isinstance(self.inner.model, models.WordLevel) else None

    def save(self, path: Path) -> None:
        """Write ``tokenizer.json``."""
        path.write_text(self.inner.to_str(pretty=False), encoding="utf-8")

    def save_files(self, folder: Path) -> None:
        """Write vocab.json, merges.txt, tokenizer.json and tokenizer_config.json, each whole or not at all.

        :meth:`from_folder` and transformers' ``AutoTokenizer`` read them. ValueError for a tokenizer without merges.
        """
        if not isinstance(self.inner.model, models.BPE):
            kind = type(self.inner.model).__name__
            raise ValueError(
                f"a {kind} tokenizer has no merges to write to {folder / MERGES}: only {WHOLE} can hold it"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".tokenizer-", dir=folder) as name:
            draft = Path(name)
            self.inner.model.save(str(draft))
            self.save(draft / WHOLE)
            config = json.dumps(_config_of(self.inner), indent=2, ensure_ascii=False)
            (draft / CONFIG).write_text(config + "\n", encoding="utf-8")
            for file in (VOCABULARY, MERGES, CONFIG, WHOLE):
                os.replace(draft / file, folder / file)

    def encode(self, text: str) -> Tensor:
        """Text -> int64 [n], no bos, no eos. ValueError names the unknown words.

        A special token of a BPE that is written in the text (a prompt that says "<|im_end|>") is read as plain letters:
        control tokens come from the program alone. (The original reads it as the control token.)
        """
        _refuse_surrogates(text)
        self.inner.encode_special_tokens = True  # each time: neither tokenizer.json nor a pickle keeps it
        try:
            ids = self.inner.encode(text, add_special_tokens=False).ids
        except Exception as error:  # tokenizers raises a bare Exception for a word outside a word-level vocabulary
            known = ", ".join(sorted(self.inner.get_vocab()))
            unknown = ", ".join(map(repr, self.unknown(text)))
            raise ValueError(f"the model does not know the word(s) {unknown} in {text!r}; it knows: {known}") from error
        return torch.tensor(ids, dtype=torch.int64)

    def unknown(self, text: str) -> list[str]:
        """The words of a text that are not in a closed vocabulary."""
        if self.words is None or self.inner.pre_tokenizer is None:
            return []
        pieces = [piece for piece, _ in self.inner.pre_tokenizer.pre_tokenize_str(text)]
        return [piece for piece in pieces if self.inner.token_to_id(piece) is None]

    def decode(self, ids: Tensor) -> str:
        """Ids -> text, for people only.

        An id that no token has (a 7B model scores 152064 ids, its tokenizer has fewer) gives no letters; bytes that
        are not UTF-8 give U+FFFD.
        """
        return self.inner.decode(ids.tolist(), skip_special_tokens=False)


def word_tokenizer(words: list[str], *, spells: bool = False) -> Tokenizer:
    """A word-level tokenizer: id = index in ``words``; text is split at white space.

    ``spells``: every capital letter is a word of its own, so that "CAB" is read as "C A B".
    """
    vocabulary = {word: index for index, word in enumerate(words)}
    inner = tokenizers.Tokenizer(models.WordLevel(vocabulary))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if spells:
        capitals = pre_tokenizers.Split(Regex("[A-Z]"), behavior="isolated")
        inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), capitals])
    return Tokenizer(inner)


def special_ids(tokenizer: Tokenizer) -> SpecialTokens:
    """The ids of ``SPECIAL_TOKENS``; ValueError names those that the tokenizer lacks."""
    found = [(token, tokenizer.inner.token_to_id(token)) for token in SPECIAL_TOKENS]
    if lacking := [token for token, index in found if index is None]:
        raise ValueError(
            f"the tokenizer lacks {', '.join(lacking)}, which BAGEL needs around texts and pictures: "
            f"take the tokenizer files, with {CONFIG}, from the model's own folder"
        )
    return SpecialTokens(*(index for _, index in found if index is not None))


def require_ids(tokenizer: Tokenizer, vocab_size: int, folder: Path) -> None:
    """ValueError where a token has an id that a model of ``vocab_size`` ids has no embedding for."""
    token, index = max(tokenizer.inner.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    if index >= vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer gives {token!r} the id {index}, but the weights have {vocab_size} tokens: "
            "take both from one model"
        )


def train_tiny_tokenizer(vocab_size: int = 512) -> Tokenizer:
    """Train a byte-level BPE of Qwen2's make on the package's own English text; the same one each time.

    ``vocab_size`` counts all: 256 bytes, then merges, and ``SPECIAL_TOKENS`` as the last four ids. ValueError if it is
    less than the bytes and the special tokens, or more than the text gives merges for.
    """
    least = NUM_BYTES + len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise ValueError(f"vocab_size is {vocab_size}, but bytes and special tokens alone are {least}: raise it")
    text = (resources.files("unigrpo") / "assets" / "tiny-bagel" / "text.txt").read_text(encoding="utf-8")
    inner = _qwen2(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([text], trainer)
    inner.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    if (size := inner.get_vocab_size()) < vocab_size:
        raise ValueError(f"vocab_size is {vocab_size}, but the bundled text gives at most {size} tokens: lower it")
    return Tokenizer(inner)


def _qwen2(model: models.BPE) -> tokenizers.Tokenizer:
    """The steps around the BPE of Qwen2: NFC, the cut into words, bytes as letters and back."""
    inner = tokenizers.Tokenizer(model)
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    return inner


def _read_bpe(vocabulary: Path, merges: Path) -> tokenizers.Tokenizer:
    ids = read_json_object(vocabulary, ADVICE)
    for token, index in ids.items():
        if not limits.IDS.allows(index):
            raise ValueError(
                f"{vocabulary} is not a vocabulary: it gives {limits.shown(token)} the id {limits.shown(index)}, which "
                f"should be {limits.IDS}"
            )
    pairs = _read_merges(merges)
    try:
        return _qwen2(models.BPE(ids, pairs))
    except Exception as error:  # tokenizers raises a bare Exception for whatever is wrong
        raise ValueError(f"{vocabulary} and {merges} do not make one tokenizer: {error}") from error


def _read_merges(path: Path) -> list[tuple[str, str]]:
    """One pair per line, best first; blank lines and a first line ``#version...`` say nothing."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not readable as text: {error}") from error
    pairs = []
    for number, line in enumerate(lines, start=1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise ValueError(
                f"{path} is damaged: line {number} should be two tokens with a space between, not {line!r}"
            )
        pairs.append((parts[0], parts[1]))
    return pairs


def _add_tokens(inner: tokenizers.Tokenizer, path: Path) -> None:
    """Add the ``added_tokens_decoder`` of a tokenizer_config.json, in the order of its ids, which must come out."""
    entries = read_json_object(path, ADVICE).get("added_tokens_decoder", {})
    try:
        tokens = {int(index): _added_token(entries[index]) for index in sorted(entries, key=int)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: its added_tokens_decoder should map ids to tokens") from error
    for index, token in tokens.items():
        if not token.content or not limits.IDS.allows(index):
            raise ValueError(
                f"{path} is damaged: its added_tokens_decoder gives {token.content!r} the id {limits.shown(index)}, "
                f"but a token has letters, and an id is {limits.IDS}"
            )
    inner.add_tokens(list(tokens.values()))
    for index, token in tokens.items():
        if (got := inner.token_to_id(token.content)) != index:
            raise ValueError(
                f"{path} gives {token.content} the id {index}, but after the vocabulary beside it, it is {got}: "
                "the files are not of one tokenizer"
            )


def _added_token(entry: dict[str, Any]) -> AddedToken:
    special = entry.get("special", False)
    return AddedToken(
        entry["content"],
        single_word=entry.get("single_word", False),
        lstrip=entry.get("lstrip", False),
        rstrip=entry.get("rstrip", False),
        normalized=entry.get("normalized", not special),
        special=special,
    )


def _guard(inner: tokenizers.Tokenizer) -> None:
    """Mark added SPECIAL_TOKENS as special where a file does not: only special ones are read as plain letters."""
    added = inner.get_added_tokens_decoder().values()
    loose = {token.content for token in added if not token.special} & set(SPECIAL_TOKENS)
    inner.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in sorted(loose)])


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise ValueError(f"the text {text!r} holds {half!r}, which is half of a character: remove it") from error


def _config_of(inner: tokenizers.Tokenizer) -> dict[str, Any]:
    """A tokenizer_config.json as of Qwen2.5; where there is no <|endoftext|>, eos pads, and no reader adds a token."""
    entries = {str(entry.pop("id")): entry for entry in json.loads(inner.to_str())["added_tokens"]}
    eos = SPECIAL_TOKENS[1]
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": entries,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "pad_token": "<|endoftext|>" if inner.token_to_id("<|endoftext|>") is not None else eos,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
