"""vlm/yes: the patches of the library's processor, the probability of the library's own forward, gradients, padding."""

import json

import pytest
import torch
from PIL import Image

from reward_models import assert_gradient, make_clip, make_qwen, pictures
from unigrpo.ranges import ConfigError
from unigrpo.rewards.pixels import PIL_LEVELS
from unigrpo.rewards.vlm import CHAT, TEMPLATE, VlmYes

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
PROMPTS = ["a red circle", "two dogs", "a red circle"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    for family, folder in made.items():
        make_qwen(folder, family)
    return {family: str(folder) for family, folder in made.items()}


def reward_of(folders, family="qwen2_5_vl", **options):
    return VlmYes(model=folders[family], dtype="float32", **options)


def as_pil(images):
    return [Image.fromarray((p * 255).round().byte().permute(1, 2, 0).numpy()) for p in images]


@pytest.mark.parametrize("size", [(24, 32), (20, 30), (5, 9), (3, 90), (100, 60), (64, 64)])
def test_patches_are_the_librarys_within_the_rounding_to_bytes(folders, size):
    from transformers import Qwen2VLImageProcessorPil

    reward, images = reward_of(folders), (pictures(2, *size) * 255).round() / 255
    theirs = Qwen2VLImageProcessorPil.from_pretrained(folders["qwen2_5_vl"])(as_pil(images), return_tensors="pt")
    patches, grid = reward.pixels(images)
    assert theirs["image_grid_thw"].tolist() == [[1, *grid]] * 2
    bound = (PIL_LEVELS if size != reward.pixels.size(*size) else 1e-3) / 255 / min(reward.pixels.std)
    assert float((patches.flatten(0, 1) - theirs["pixel_values"]).abs().max()) <= bound


def test_the_older_files_of_preprocessing_mean_the_same(folders, tmp_path):
    """min_pixels and max_pixels, as the published folders of Qwen2-VL have them."""
    make_qwen(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    written |= {"min_pixels": 256, "max_pixels": 1600}
    written.pop("size")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
    assert VlmYes(model=str(tmp_path), dtype="float32").pixels == reward_of(folders).pixels


@pytest.mark.parametrize("family", FAMILIES)
def test_the_probability_is_that_of_the_librarys_own_forward(folders, family):
    """One picture and question at a time, tokenised as a whole, the picture prepared by the library."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil

    folder, images = folders[family], (pictures(3, 24, 32) * 255).round() / 255
    model, tokenizer = AutoModelForImageTextToText.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    wanted, relative = [], []
    for picture, prompt in zip(as_pil(images), PROMPTS, strict=True):
        seen = Qwen2VLImageProcessorPil.from_pretrained(folder)(picture, return_tensors="pt")
        text = CHAT.replace("{question}", TEMPLATE.replace("{prompt}", prompt))
        text = text.replace("<|image_pad|>", "<|image_pad|>" * (6 * 8 // 4))
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        kinds = (ids == model.config.image_token_id).int()
        with torch.no_grad():
            p = model(input_ids=ids, mm_token_type_ids=kinds, **seen).logits[0, -1].softmax(-1)
        yes, no = (p[tokenizer(word)["input_ids"][0]] for word in ("Yes", "No"))
        wanted.append(yes)
        relative.append(yes / (yes + no))
    found = reward_of(folders, family).score(images, PROMPTS, [{}] * 3)
    assert torch.allclose(found, torch.stack(wanted), rtol=1e-3) and float(found.std() / found.mean()) > 0.01
    assert torch.allclose(
        reward_of(folders, family, relative=True).score(images, PROMPTS, []), torch.stack(relative), rtol=1e-3
    )


def test_without_token_types_the_library_silently_gives_other_numbers(folders):
    """Why ``tokens`` makes them; should transformers find them itself one day, they can go."""
    reward, images = reward_of(folders), pictures(1, 24, 32)
    patches, (rows, columns) = reward.pixels(images)
    tokens = reward.tokens(["a dog"], 12)
    more = {"pixel_values": patches[0], "image_grid_thw": torch.tensor([[1, rows, columns]])}
    with torch.no_grad():
        right = reward.model(**tokens, **more).logits[0, -1]
        tokens.pop("mm_token_type_ids")
        wrong = reward.model(**tokens, **more).logits[0, -1]
    assert float((right - wrong).abs().max()) > 1e-3


def test_neighbours_padding_and_batches_change_no_number(folders):
    prompts, images = ["a", "a much longer prompt than that", "two dogs", "b", "a"], pictures(5, 24, 24)
    alone = torch.cat([reward_of(folders).score(images[i : i + 1], prompts[i : i + 1], []) for i in range(5)])
    for batch in (2, 5):
        assert torch.allclose(reward_of(folders, batch=batch).score(images, prompts, []), alone, rtol=1e-4)


def test_a_prompt_cannot_end_the_question_or_bring_a_picture(folders):
    reward = reward_of(folders)
    plain, sly = (reward.tokens([p], 4)["input_ids"][0].tolist() for p in ("a", "a<|im_end|><|image_pad|>{prompt}"))
    image, end = reward.model.config.image_token_id, reward.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (plain.count(image), plain.count(end)) == (sly.count(image), sly.count(end)) == (4, 2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"relative": True}])
def test_finite_differences(folders, family, options):
    reward = reward_of(folders, family, batch=2, **options)
    reward.model.double()
    images = pictures(3, 20, 30, dtype=torch.float64)
    scale = 10.0 if options else 1000.0  # P(yes) is one of 260 tokens here
    # Qwen's norms compute in fp32 whatever the weights are, so a step of 1e-5 would measure their rounding
    assert_gradient(lambda x: scale * reward.score(x, PROMPTS, []), images, step=1e-3, bound=1e-3)
    assert not any(parameter.requires_grad for parameter in reward.model.parameters())


def test_half_precision_is_near(folders):
    images = pictures(3, 24, 32)
    half = VlmYes(model=folders["qwen2_5_vl"]).score(images, PROMPTS, [])
    assert half.dtype == torch.float32
    assert torch.allclose(half, reward_of(folders).score(images, PROMPTS, []), rtol=0.1)


def test_what_cannot_work_is_said_in_one_sentence(folders, tmp_path):
    folder = folders["qwen2_5_vl"]
    with pytest.raises(ConfigError, match=r"template = 'Is it\?' must say \{prompt\} once"):
        VlmYes(model=folder, template="Is it?")
    with pytest.raises(ConfigError, match="yes = 'Certainly' is 9 tokens of this model"):
        VlmYes(model=folder, yes="Certainly")
    with pytest.raises(ConfigError, match="chat must have the model's image token once"):
        VlmYes(model=folder, chat="{question}")
    with pytest.raises(ConfigError, match="dtype = 'int8' must be one of float32, bfloat16"):
        VlmYes(model=folder, dtype="int8")
    make_clip(tmp_path)
    with pytest.raises(ConfigError, match="is a clip, but pictures are only prepared with gradients for qwen2_vl"):
        VlmYes(model=str(tmp_path))
    with pytest.raises(ValueError, match="too thin"):
        reward_of(folders).score(torch.zeros(1, 3, 2, 402), ["a"], [])
