"""Words to ids: nothing is added, unknown words are named, and BAGEL's two ways to store a BPE give the same ids."""

import copy
import json
import pickle
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from small_models import small_policy
from unigrpo.models.bagel_files.tokenizer import (
    SPECIAL_TOKENS,
    SpecialTokens,
    Tokenizer,
    special_ids,
    train_tiny_tokenizer,
    word_tokenizer,
)
from unigrpo.trajectory import Prompt

WORDS = ["<|im_start|>", "<|im_end|>", "red", "blue", "circle"]
FILES = ["merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
EXTRA = ["<|endoftext|>", "<|box_start|>"]  # special tokens of Qwen2.5 that BAGEL has no use for
TINY = train_tiny_tokenizer()
# Words, signs, digits, spaces and line ends that the cut into words treats differently, and written special tokens.
PIECES = st.sampled_from(
    [*SPECIAL_TOKENS, *EXTRA, "<tool_call>", "<|im_", "end|>", "two red apples", "I'LL", "don't", " 's", "2024", "  ",
     "\n", "\r\n", " \n\n ", "\t", "?!\n", "<think>", "e\u0301", "ﬁ", "日本語", "🎨", "\u200d", "\x00", "\u00a0"]
)  # fmt: skip
TEXTS = st.lists(PIECES | st.text(max_size=8), max_size=8).map("".join)


def test_words_are_ids_and_nothing_is_added(tmp_path):
    tokenizer = word_tokenizer(WORDS)
    tokenizer.save(tmp_path / "tokenizer.json")
    for one in (tokenizer, Tokenizer.load(tmp_path / "tokenizer.json")):
        ids = one.encode("blue  circle\nred")
        assert ids.tolist() == [3, 4, 2] and str(ids.dtype) == "torch.int64"
        assert one.decode(ids) == "blue circle red"
        assert one.encode("").tolist() == []


def test_unknown_words_are_named_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"does not know the word\(s\) 'purple', 'dog' in .*; it knows: .*blue, circle"
    ):
        word_tokenizer(WORDS).encode("purple red dog")


def test_special_words_are_shown_when_decoding():
    assert word_tokenizer(WORDS).decode(word_tokenizer(WORDS).encode("<|im_start|> red")) == "<|im_start|> red"


def test_prompt_segments_begin_with_the_system_prompt_when_thinking():
    policy = small_policy()
    system, prompt = policy.prompt_segments(Prompt(0, "a red circle"), think=True)
    assert policy.decode_text(system.ids) == policy.config.system_prompt
    assert policy.decode_text(prompt.ids) == "a red circle"
    assert len(policy.prompt_segments(Prompt(0, "a red circle"), think=False)) == 1


def test_without_a_tokenizer_words_are_refused():
    policy = small_policy()
    policy.tokenizer = None
    with pytest.raises(ValueError, match="without a tokenizer"):
        policy.encode_text("red")
    with pytest.raises(ValueError, match="without a tokenizer"):
        policy.decode_text(None)


# BAGEL's byte-level BPE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The four files of a BPE with more added tokens than BAGEL uses, one of them not special, as Qwen2.5 has them."""
    tokenizer = train_tiny_tokenizer()
    tokenizer.inner.add_special_tokens(EXTRA)
    tokenizer.inner.add_tokens([AddedToken("<tool_call>", normalized=False, special=False)])
    path = tmp_path_factory.mktemp("model")
    tokenizer.save_files(path)
    return path


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of the folder, to damage."""
    return shutil.copytree(folder, tmp_path / "model")


@pytest.fixture(scope="module")
def pair(folder, tmp_path_factory):
    """The tokenizer read from tokenizer.json, and from vocab.json, merges.txt and tokenizer_config.json."""
    parts = shutil.copytree(folder, tmp_path_factory.mktemp("parts") / "model")
    (parts / "tokenizer.json").unlink()
    return Tokenizer.from_folder(folder), Tokenizer.from_folder(parts)


def edit_config(folder, change):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    change(config["added_tokens_decoder"])
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_tiny_tokenizer_is_bytes_then_merges_then_special_tokens():
    vocabulary = TINY.inner.get_vocab()
    assert sorted(vocabulary.values()) == list(range(512))
    assert special_ids(TINY) == SpecialTokens(bos=508, eos=509, vision_start=510, vision_end=511)
    assert all(len(TINY.inner.id_to_token(index)) == 1 for index in range(256))
    assert train_tiny_tokenizer().inner.to_str() == TINY.inner.to_str()
    assert special_ids(train_tiny_tokenizer(300)).bos == 296
    assert len(TINY.encode(" picture")) == 1 and len(TINY.encode("a picture of two red apples")) < 12


@pytest.mark.parametrize(
    ("size", "fault"),
    [
        (259, "vocab_size is 259, but bytes and special tokens alone are 260: raise it"),
        (100_000, r"vocab_size is 100000, but the bundled text gives at most \d{3} tokens: lower it"),
    ],
)
def test_tiny_sizes_that_cannot_be_are_refused(size, fault):
    with pytest.raises(ValueError, match=fault):
        train_tiny_tokenizer(size)


def test_the_smallest_tiny_tokenizer_has_no_merges():
    tokenizer = train_tiny_tokenizer(260)
    assert tokenizer.inner.get_vocab_size() == 260 and len(tokenizer.encode("the the the")) == 11


def test_all_characters_come_back():
    """One character for every first byte and every continuation byte that UTF-8 has."""
    edges = [0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFD, 0x10000, 0x10FFFF]
    text = "".join(map(chr, [*range(0x180), *range(0x400, 0x800, 0x40), *range(0x1000, 0xD000, 0x1000), *edges]))
    tokenizer = train_tiny_tokenizer(260)  # without merges every id is one byte
    normal = tokenizer.inner.normalizer.normalize_str(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == normal and len(ids) == len(normal.encode())
    letters = {byte: TINY.inner.id_to_token(int(tokenizer.encode(chr(byte)))) for byte in range(128)}
    assert letters[32] == "Ġ" and len(set(letters.values())) == 128


@given(TEXTS)
def test_texts_come_back_as_nfc(text):
    assert TINY.decode(TINY.encode(text)) == TINY.inner.normalizer.normalize_str(text)


def test_composed_characters_are_one():
    assert TINY.encode("e\u0301").tolist() == TINY.encode("\u00e9").tolist() != TINY.encode("e").tolist()


def words_of(inner, text):
    return [word for word, _ in inner.pre_tokenizer.pre_tokenize_str(text)]


def test_texts_are_cut_as_qwen2_cuts_them(pair):
    words = ["We", "'LL", "Ġsee", "Ġ", "1", "2", "Ġcats", "?!ĊĊ", "not", "Ġ", "Ġtwo", "ĠĊ", "Ġ(", "or", "ĉone", ")."]
    for tokenizer in pair:
        assert words_of(tokenizer.inner, "We'LL see 12 cats?!\n\nnot  two \n (or\tone).") == words


def test_decoding_never_fails():
    assert TINY.decode(torch.arange(256)).count("\ufffd") > 0
    assert TINY.decode(torch.tensor([64, 512, 152_063, 65, 2**31])) == "ab"
    assert TINY.decode(torch.tensor([], dtype=torch.int64)) == ""
    assert TINY.decode(torch.tensor([508, 64, 509])) == "<|im_start|>a<|im_end|>"


@given(TEXTS)
def test_both_ways_to_store_it_give_the_same_ids(pair, text):
    whole, parts = pair
    assert whole.encode(text).tolist() == parts.encode(text).tolist()


def test_both_ways_to_store_it_have_the_same_tokens(pair):
    whole, parts = pair
    assert whole.inner.get_vocab() == parts.inner.get_vocab() and special_ids(whole) == special_ids(parts)
    assert whole.inner.get_vocab_size() == 515 and whole.encode("a<tool_call>").tolist()[1:] == [514]
    every = torch.arange(515)
    assert whole.decode(every) == parts.decode(every)


@given(TEXTS)
def test_written_special_tokens_are_plain_letters(pair, text):
    for tokenizer in (TINY, *pair, pickle.loads(pickle.dumps(TINY)), copy.deepcopy(TINY)):
        assert not set(tokenizer.encode(text).tolist()) & set(range(508, 514))


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_a_special_token_that_a_folder_calls_ordinary_is_still_not_written(copied, token):
    edit_config(copied, lambda added: [entry.update(special=False) for entry in added.values()])
    (copied / "tokenizer.json").unlink()
    tokenizer = Tokenizer.from_folder(copied)
    assert tokenizer.encode(f"a{token}").tolist() == TINY.encode(f"a{token}").tolist()
    assert tokenizer.encode("<|endoftext|>").tolist() == [512]  # no control token of BAGEL: as the folder says


def test_tokens_of_the_config_are_added_to_tokenizer_json(copied):
    without = train_tiny_tokenizer()
    whole = json.loads(without.inner.to_str())
    whole["added_tokens"] = []
    (copied / "tokenizer.json").write_text(json.dumps(whole))
    assert special_ids(Tokenizer.from_folder(copied)) == special_ids(TINY)


def test_a_text_is_neither_cut_nor_filled_up(copied):
    inner = Tokenizer.load(copied / "tokenizer.json").inner
    inner.enable_truncation(2)
    inner.enable_padding(length=30)
    inner.save(str(copied / "tokenizer.json"))
    text = "three white cats on a table"
    assert Tokenizer.from_folder(copied).encode(text).tolist() == TINY.encode(text).tolist()


def test_merges_may_have_other_line_ends_blank_lines_or_no_first_line(copied):
    lines = (copied / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("#version")
    (copied / "tokenizer.json").unlink()
    for text in ("\r\n".join(lines) + "\r\n\r\n", "\n".join(lines[1:])):
        (copied / "merges.txt").write_bytes(text.encode())
        text = "A photo of two red apples under a table."
        assert Tokenizer.from_folder(copied).encode(text).tolist() == TINY.encode(text).tolist()


def test_saved_files_are_whole_and_can_be_written_again(copied):
    assert sorted(path.name for path in copied.iterdir()) == FILES
    before = {name: (copied / name).read_bytes() for name in FILES}
    Tokenizer.from_folder(copied).save_files(copied)
    assert {name: (copied / name).read_bytes() for name in FILES} == before
    assert sorted(path.name for path in copied.iterdir()) == FILES


def test_saving_that_fails_leaves_the_old_files(copied, monkeypatch):
    before = {name: (copied / name).read_bytes() for name in FILES}

    def full(self, path):
        path.write_text("{")
        raise OSError("no space left")

    monkeypatch.setattr(Tokenizer, "save", full)
    with pytest.raises(OSError, match="no space"):
        TINY.save_files(copied)
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


@pytest.mark.parametrize("way", ["AutoTokenizer", "AutoTokenizer of the parts", "Qwen2Tokenizer", "vocab and merges"])
def test_transformers_reads_the_same_ids(copied, way, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ours = Tokenizer.from_folder(copied)
    if "parts" in way:
        (copied / "tokenizer.json").unlink()
    if way.startswith("Auto"):
        theirs = transformers.AutoTokenizer.from_pretrained(copied, local_files_only=True)
    elif way == "Qwen2Tokenizer":
        theirs = transformers.Qwen2Tokenizer.from_pretrained(copied, local_files_only=True)
    else:
        theirs = transformers.Qwen2Tokenizer(
            vocab=str(copied / "vocab.json"), merges=str(copied / "merges.txt"), unk_token=None, pad_token=None,
            eos_token="<|im_start|>", extra_special_tokens=[*SPECIAL_TOKENS[1:], *EXTRA],
        )  # fmt: skip
        theirs.add_tokens([AddedToken("<tool_call>", normalized=False, special=False)])
    assert theirs.convert_tokens_to_ids([*SPECIAL_TOKENS, *EXTRA, "<tool_call>"]) == list(range(508, 515))
    assert len(theirs) == ours.inner.get_vocab_size()

    @given(TEXTS)
    def agree(text):
        ids = ours.encode(text).tolist()
        assert words_of(ours.inner, text) == words_of(theirs.backend_tokenizer, text)  # few merges show few of the cuts
        assert ids == theirs.encode(text, split_special_tokens=True)
        assert ours.decode(torch.tensor(ids)) == theirs.decode(ids)
        if not any(token in text for token in (*SPECIAL_TOKENS, *EXTRA)):
            assert ids == theirs.encode(text)

    agree()
    assert theirs.encode("a<|im_end|>") == [64, 509]  # the difference that encode names


def test_the_tiny_tokenizer_has_no_more_tokens_for_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    TINY.save_files(tmp_path / "new" / "folder")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "new" / "folder", local_files_only=True)
    assert len(theirs) == 512 and theirs.eos_token == theirs.pad_token == "<|im_end|>"


# Errors


@pytest.mark.parametrize(
    ("gone", "fault"),
    [
        (FILES, "no tokenizer.json and no vocab.json and no merges.txt"),
        (["tokenizer.json", "merges.txt"], "no tokenizer.json and no merges.txt"),
        (["tokenizer.json", "vocab.json"], "no tokenizer.json and no vocab.json"),
    ],
)
def test_missing_files_are_named(copied, gone, fault):
    for name in gone:
        (copied / name).unlink()
    fault = rf"model has no tokenizer: it needs tokenizer.json, or vocab.json and merges.txt, but there is {fault}$"
    with pytest.raises(ValueError, match=fault):
        Tokenizer.from_folder(copied)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("vocab.json", b'{"a": 0,', "vocab.json is not JSON "),
        ("vocab.json", b"\xff\xfe", "vocab.json is not UTF-8 text"),
        ("vocab.json", b'["a"]', "vocab.json is not a JSON object"),
        ("vocab.json", b'{"a": "b"}', "vocab.json is not a vocabulary: it gives 'a' the id 'b', which should be a"),
        ("vocab.json", b'{"a": 0}', "vocab.json and .*merges.txt do not make one tokenizer: "),
        ("vocab.json", b'{"a": -1}', "vocab.json is not a vocabulary: it gives 'a' the id -1, which should be a"),
        ("merges.txt", b"\xff", "merges.txt is not readable as text: "),
        ("merges.txt", b"h e\nhe", "merges.txt is damaged: line 2 should be two tokens with a space between, not 'he'"),
        ("tokenizer_config.json", b"{", "tokenizer_config.json is not JSON "),
        (
            "tokenizer_config.json",
            b'{"added_tokens_decoder": null}',
            "tokenizer_config.json is damaged: its added_tokens",
        ),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {"content": "a"}}}', "should map ids to tokens"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"508": {}}}', "should map ids to tokens"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"508": "<|im_start|>"}}', "should map ids to tokens"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"508": {"content": 5}}}', "should map ids to tokens"),
        (
            "tokenizer_config.json",
            b'{"added_tokens_decoder": {"600": {"content": "<x>"}}}',
            "gives <x> the id 600, but after the vocabulary beside it, it is 508: the files are not of one tokenizer",
        ),
    ],
)
def test_damaged_parts_are_named(copied, name, content, fault):
    (copied / "tokenizer.json").unlink()
    (copied / name).write_bytes(content)
    with pytest.raises(ValueError, match=fault):
        Tokenizer.from_folder(copied)


@pytest.mark.parametrize("content", [b"{}", b"", b"\xff", b'{"version": "1.0", "model": {"type": "BPE"'])
def test_a_damaged_tokenizer_json_is_named_even_with_the_parts_beside_it(copied, content):
    (copied / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"model.tokenizer.json is not (a readable tokenizer: |JSON |UTF-8 text )"):
        Tokenizer.from_folder(copied)


def test_missing_special_tokens_are_named(copied):
    (copied / "tokenizer.json").unlink()
    edit_config(copied, lambda added: [added.pop(str(index)) for index in range(510, 515)])
    fault = (
        r"model: the tokenizer lacks <\|vision_start\|>, <\|vision_end\|>, which BAGEL needs .*: take the tokenizer "
    )
    with pytest.raises(ValueError, match=fault):
        Tokenizer.from_folder(copied)
    (copied / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match=r"lacks <\|im_start\|>, <\|im_end\|>, <\|vision_start\|>, <\|vision_end\|>,"):
        Tokenizer.from_folder(copied)
    with pytest.raises(ValueError, match=r"^the tokenizer lacks <\|vision_start\|>, <\|vision_end\|>, which"):
        special_ids(word_tokenizer(WORDS))


def test_half_a_character_is_refused():
    with pytest.raises(
        ValueError, match=r"the text 'a\\ud83d' holds '\\ud83d', which is half of a character: remove it"
    ):
        TINY.encode("a\ud83d")


def test_only_a_bpe_has_the_four_files(tmp_path):
    with pytest.raises(
        ValueError, match=r"a WordLevel tokenizer has no merges to write to .*merges.txt: only tokenizer"
    ):
        word_tokenizer(WORDS).save_files(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    word_tokenizer([*SPECIAL_TOKENS, "red"]).save(tmp_path / "tokenizer.json")
    assert Tokenizer.from_folder(tmp_path).encode("red").tolist() == [4]
