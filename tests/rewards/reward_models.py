"""Small random reward models, saved as the public ones are, and the finite differences of a reward."""

import string
from typing import Any

import torch


def letters(*special):
    """A vocabulary of CLIP's kind: every letter, alone and at the end of a word, and the control tokens last."""
    signs = [*string.ascii_lowercase, *string.digits, *".,!?"]
    tokens = [*signs, *(f"{sign}</w>" for sign in signs), *special]
    return {token: number for number, token in enumerate(tokens)}


def clip_config(**vision) -> Any:
    from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

    words = letters("<|startoftext|>", "<|endoftext|>")
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=12, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1, pad_token_id=len(words) - 1,
    )  # fmt: skip
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    eye = CLIPVisionConfig(**{**sizes, "image_size": 16, "patch_size": 4, "projection_dim": 12, **vision})
    return CLIPConfig(text_config=text.to_dict(), vision_config=eye.to_dict(), projection_dim=12), words


def make_clip(folder, *, seed=0, shortest=16, crop=16):
    """Save a CLIP with random weights large enough that pictures and words matter; gives the model."""
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    config, words = clip_config()
    torch.manual_seed(seed)
    model = CLIPModel(config).eval()
    shake(model, seed)
    model.save_pretrained(folder)
    CLIPTokenizer(vocab=words, merges=[], model_max_length=77).save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": shortest}, crop_size={"height": crop, "width": crop}
    ).save_pretrained(folder)  # fmt: skip
    return model


@torch.no_grad()
def shake(model, seed=0):
    """Random weights of unit gain: at the small ones of a new model every picture scores the same."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        draws = torch.randn(parameter.shape, generator=generator)
        if name.endswith("logit_scale"):
            continue
        if parameter.ndim > 1:
            parameter.copy_(draws / parameter[0].numel() ** 0.5)
        else:
            parameter.copy_(0.1 * draws + (0.0 if name.endswith("bias") or "class_emb" in name else 1.0))


def pictures(count=3, height=20, width=28, seed=0, dtype=torch.float32):
    """Pictures [B, 3, H, W] well inside (0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    return 0.2 + 0.6 * torch.rand(count, 3, height, width, generator=generator, dtype=dtype)


def assert_gradient(score, images, *, step=1e-5, bound=1e-6, directions=4):
    """Central differences of an fp64 score along random directions equal its gradient, relatively to ``bound``.

    ``score`` [B, 3, H, W] -> [B]; every picture's score must hang on that picture, and on no other.
    """
    images = images.double().requires_grad_()
    values = score(images)
    assert values.shape == (len(images),) and values.dtype == torch.float64
    (gradient,) = torch.autograd.grad(values.sum(), images, retain_graph=True)
    (first,) = torch.autograd.grad(values[0], images)
    assert float(first[1:].abs().max()) == 0.0 and all(float(g.abs().max()) > 0 for g in gradient)
    generator = torch.Generator().manual_seed(7)
    for _ in range(directions):
        along = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            difference = (score(images + step * along).sum() - score(images - step * along).sum()) / (2 * step)
        expected = (gradient * along).sum()
        assert abs(float(difference - expected)) <= bound * max(1.0, abs(float(expected))), (difference, expected)
