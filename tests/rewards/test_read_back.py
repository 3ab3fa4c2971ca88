"""bagel/self: the sum of a hand-made replay, in both layouts; neighbours, symmetric cases, errors; the canary."""

import math
from dataclasses import replace

import pytest
import torch
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from small_models import counted_forwards, randomise, small_policy
from tolerances import assert_same_answers
from unigrpo.build.self_reward import BagelSelf
from unigrpo.models.bagel.autoencoder import ConvAutoencoder, ConvAutoencoderConfig
from unigrpo.models.bagel.config import VisionConfig
from unigrpo.models.bagel.transformer import BagelModel
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.models.bagel_files.tokenizer import word_tokenizer
from unigrpo.models.micro import SPECIAL_WORDS, micro_config
from unigrpo.policy import ReplayItem
from unigrpo.ranges import ConfigError
from unigrpo.rewards.protocol import RewardFault, RewardInput, call
from unigrpo.rewards.read_back import PromptLikelihood
from unigrpo.rewards.written import overlap, written_share
from unigrpo.tools.tiny_bagel import make_tiny_bagel
from unigrpo.trajectory import Image, Prompt, Text, View

PROMPTS = ["red circle", "make it blue", "circle"]


def micro():
    """A micro BAGEL that sees, with a closed vocabulary."""
    autoencoder = ConvAutoencoder(ConvAutoencoderConfig(width=4, groups=2))
    randomise(autoencoder, 1)
    words = [*SPECIAL_WORDS, "red", "blue", "circle", "make", "it"]
    vision = VisionConfig(24, 40, 2, 2, image_size=40, patch_size=4, max_patches_per_side=10)
    config = replace(
        micro_config(len(words), autoencoder, hidden_size=32, num_layers=2), image_size=(32, 16), vision=vision
    )
    model = BagelModel(config)
    randomise(model, 0)
    return Bagel(model, word_tokenizer(words), autoencoder.requires_grad_(False))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The public layout of the 7B model in small, in bf16."""
    folder = tmp_path_factory.mktemp("tiny") / "bagel"
    make_tiny_bagel(folder)
    return folder


@pytest.fixture(scope="module")
def policies(folder):
    return {"micro": micro(), "public": Bagel.load(folder, image_size=(64, 32))}


def pictures(count=3, height=32, width=16, seed=0):
    return torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(seed)) / 255.0


def scores(reward, images, prompts):
    output = reward(images, prompts, [{}] * len(prompts), [None] * len(prompts))
    return torch.tensor(output.values), output


@pytest.mark.parametrize(("layout", "latents"), [("micro", True), ("micro", False), ("public", False)])
def test_it_is_the_mean_of_a_hand_made_replay(policies, layout, latents):
    """Token by token: log p of the next one is read from the logits after the picture, the bos and those before."""
    policy = policies[layout]
    images = pictures(3 if layout == "micro" else 2)  # the public layout reads them at 512 pixels
    wanted, lowest = [], []
    for picture, prompt in zip((images * 255).byte(), PROMPTS, strict=False):
        config, found = policy.config, []
        given = policy.picture_segments(picture, latents=latents)
        assert [type(segment) for segment in given] == ([Image, View] if latents else [View])
        cache, token = policy.prefill([given]), config.bos_token_id
        for target in policy.encode_text(prompt).tolist():
            with torch.no_grad():
                logits = policy.feed(cache, torch.tensor([token]), torch.tensor([True]))
            found.append(logits[0].log_softmax(-1)[target])
            token = target
        wanted.append(torch.stack(found).mean())
        lowest.append(torch.stack(found).min())
    found, output = scores(PromptLikelihood(policy=policy, latents=latents), images, PROMPTS[: len(images)])
    assert_same_answers(found, torch.stack(wanted), policy)
    assert_same_answers(torch.tensor(output.parts["lowest"]), torch.stack(lowest), policy)
    assert not output.errors and float(found.std()) > 0.01


def test_it_is_that_of_the_policys_replay_in_one_forward(policies):
    policy, images = policies["micro"], pictures()
    given = [policy.prompt_segments(Prompt(0, "", images=(p,)), think=False)[:-1] for p in (images * 255).byte()]
    texts = [Text(policy.encode_text(prompt), ended=False, target=True) for prompt in PROMPTS]
    items = [ReplayItem((*segments, text)) for segments, text in zip(given, texts, strict=True)]
    with counted_forwards(policy) as calls, torch.no_grad():
        wanted = torch.stack([one.log_probs.mean() for one in policy.replay(items)])
        found, _ = scores(PromptLikelihood(policy=policy, batch=8), images, PROMPTS)
    assert len(calls) == 2 and torch.allclose(found, wanted, atol=1e-6)


def test_neighbours_and_the_batch_change_no_number(policies):
    policy, images = policies["micro"], pictures(5, 48, 24)
    prompts = ["red", "make it red circle", "blue circle", "it", "red"]
    alone = torch.cat([scores(PromptLikelihood(policy=policy), images[i : i + 1], [prompts[i]])[0] for i in range(5)])
    for batch in (2, 5):
        assert_same_answers(scores(PromptLikelihood(policy=policy, batch=batch), images, prompts)[0], alone, policy)
    order = [3, 0, 4, 2, 1]
    found = scores(PromptLikelihood(policy=policy, batch=2), images[order], [prompts[i] for i in order])[0]
    assert_same_answers(found, alone[order], policy)


def test_it_prefers_nothing_by_construction():
    """Equal pictures score alike; a model whose head says nothing gives -log V to every picture and prompt."""
    policy = micro()
    same, _ = scores(PromptLikelihood(policy=policy), pictures(1).expand(3, -1, -1, -1), ["red circle"] * 3)
    assert_same_answers(same, same[:1].expand(3), policy)
    with torch.no_grad():
        policy.model.language_model.lm_head.weight.zero_()
    flat, output = scores(PromptLikelihood(policy=policy), pictures(), PROMPTS)
    even = torch.full((3,), -math.log(policy.config.vocab_size))
    assert_same_answers(flat, even, policy)
    assert_same_answers(torch.tensor(output.parts["lowest"]), even, policy)


def test_what_it_looks_at_is_the_picture_and_not_its_own_weights(policies):
    policy = policies["micro"]
    reward, images = PromptLikelihood(policy=policy), pictures(1)
    assert abs(float(scores(reward, images, ["red"])[0] - scores(reward, 1 - images, ["red"])[0])) > 1e-3
    assert not any(parameter.requires_grad for parameter in policy.module.parameters())


def test_a_prompt_that_cannot_be_read_is_an_error_and_never_a_zero(policies):
    reward, images = PromptLikelihood(policy=policies["micro"], batch=2), pictures(4)
    prompts = ["red", "a green dog", "", "red <image> circle"]
    found, output = scores(reward, images, prompts)
    assert math.isfinite(found[0]) and all(math.isnan(value) for value in found[1:])
    assert sorted(output.errors) == [1, 2, 3] and "does not know the word(s)" in output.errors[1]
    assert output.errors[2] == "the prompt has no words that could be read back"
    with pytest.raises(RewardFault, match=r"failed on 3 of 4 pictures; picture 1 \('a green dog'\)"):
        call("self", reward, RewardInput(images, prompts, [{}] * 4, [None] * 4))
    public = PromptLikelihood(policy=policies["public"], latents=False)
    found, output = scores(public, images[:1], ["a <image> <|im_end|> dog"])
    assert math.isfinite(found[0]) and not output.errors  # plain letters of the prompt, and no second picture


def test_by_the_name_of_a_model(folder, policies):
    """With the latents too, in the layout of the 7B model."""
    named = BagelSelf(model=str(folder), dtype="float32", device="cpu")
    wanted, _ = scores(PromptLikelihood(policy=policies["public"]), pictures(1), PROMPTS[:1])
    assert_same_answers(scores(named, pictures(1), PROMPTS[:1])[0], wanted, policies["public"])


def test_what_cannot_work_is_said_in_one_sentence():
    with pytest.raises(ConfigError, match=r"needs a model .*: set args: \{model: \.\.\.\}"):
        BagelSelf()
    with pytest.raises(ConfigError, match="batch = 0 must be a whole number"):
        PromptLikelihood(policy=small_policy(), batch=0)
    with pytest.raises(ConfigError, match=r"cannot see pictures.*: name a model that can look at its pictures"):
        PromptLikelihood(policy=small_policy())


# ------------------------------------------------------------------------------------------------ the canary


@pytest.mark.parametrize(
    ("read", "prompt", "share"),
    [
        ("a red circle", "a red circle", 1),
        ("REDCIRCLE!", "a red circle", 1),  # gaps that the reader missed
        ("re d", "a red circle", 1 / 2),
        ("", "a red circle", 0),
        ("a", "a red circle", 0),
        ("HI", 'a sign that says "HI"', 0),  # asked for
        ("a sign that says HI", 'a sign that says "HI"', 1),
        ("cats", "the word 'cats'", 0),
        ("x", "", 0),
        ("1234", 'only "1234"', 0),
    ],
)
def test_the_share_of_the_prompts_words_that_were_read(read, prompt, share):
    assert overlap(read, prompt) == pytest.approx(share)


def test_the_share_of_pictures_with_their_prompt_in_letters():
    read = {0: "red circle", 1: "", 2: "circle"}
    images = torch.arange(3.0)[:, None, None, None].expand(3, 3, 2, 2)
    reader = lambda given: [read[int(one[0, 0, 0])] for one in given]  # noqa: E731
    assert written_share(images, ["a red circle"] * 3, reader) == pytest.approx(2 / 3)
    assert written_share(images, ["a red circle"] * 3, reader, enough=0.6) == pytest.approx(1 / 3)
    assert written_share(images[:0], [], reader) == 0


def test_the_canary_sees_letters_where_an_ocr_is_installed(policies):
    pytest.importorskip("rapidocr")
    drawn = Picture.new("RGB", (192, 96), "white")
    ImageDraw.Draw(drawn).text((12, 30), "red circle", fill="black", font=ImageFont.load_default(28))
    letters = torch.frombuffer(bytearray(drawn.tobytes()), dtype=torch.uint8).reshape(96, 192, 3).permute(2, 0, 1)
    images = torch.stack([letters / 255.0, torch.ones(3, 96, 192)])
    _, output = scores(PromptLikelihood(policy=policies["micro"], canary=True), images, ["red circle"] * 2)
    assert output.parts["written"] == [1, 0]


def test_a_canary_without_ocr_is_refused(policies, monkeypatch):
    monkeypatch.setattr("unigrpo.rewards.frozen.find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=r"needs the package rapidocr: pip install '\.\[ocr\]'"):
        PromptLikelihood(policy=policies["micro"], canary=True)
