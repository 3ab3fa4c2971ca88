"""Words to ids: nothing is added, and unknown words are named."""

import pytest

from small_models import small_policy
from unigrpo.models.bagel.tokenizer import Tokenizer, word_tokenizer

WORDS = ["<|im_start|>", "<|im_end|>", "red", "blue", "circle"]


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
    system, prompt = policy.prompt_segments("a red circle", think=True)
    assert policy.decode_text(system.ids) == policy.config.system_prompt
    assert policy.decode_text(prompt.ids) == "a red circle"
    assert len(policy.prompt_segments("a red circle", think=False)) == 1
    assert len(policy.unconditional_segments(think=True)) == 1 and policy.unconditional_segments(think=False) == ()


def test_without_a_tokenizer_words_are_refused():
    policy = small_policy()
    policy.tokenizer = None
    with pytest.raises(ValueError, match="without a tokenizer"):
        policy.encode_text("red")
    with pytest.raises(ValueError, match="without a tokenizer"):
        policy.decode_text(None)
