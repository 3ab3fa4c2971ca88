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


def make_clip(folder, *, seed=0, shortest=16, crop=16, resample=3):
    """Save a CLIP with random weights large enough that pictures and words matter; gives the model."""
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    config, words = clip_config()
    torch.manual_seed(seed)
    model = CLIPModel(config).eval()
    shake(model, seed)
    model.save_pretrained(folder)
    CLIPTokenizer(vocab=words, merges=[], model_max_length=77).save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": shortest}, crop_size={"height": crop, "width": crop}, resample=resample
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


SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")


def make_qwen(folder, family="qwen2_5_vl", *, seed=0, merges=(("Y", "e"), ("Ye", "s"), ("N", "o"))):
    """Save a random Qwen-VL of the sizes of a toy, with a byte-level tokenizer that has Yes and No; gives the model."""
    import transformers
    from tokenizers import pre_tokenizers

    vocab = {sign: number for number, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab |= {"".join(pair): len(vocab) + number for number, pair in enumerate(merges)}
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocab, merges=list(merges))
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[1:])})
    tokenizer.save_pretrained(folder)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    model = _qwen_classes(transformers)[family](_qwen_config(transformers, family, len(tokenizer), ids)).eval()
    shake(model, seed)
    model.save_pretrained(folder)
    patch = model.config.vision_config.patch_size
    transformers.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 256, "longest_edge": 1600}, patch_size=patch, merge_size=2, temporal_patch_size=2
    ).save_pretrained(folder)  # fmt: skip
    return model


def _qwen_classes(transformers):
    return {
        "qwen2_vl": transformers.Qwen2VLForConditionalGeneration,
        "qwen2_5_vl": transformers.Qwen2_5_VLForConditionalGeneration,
        "qwen3_vl": transformers.Qwen3VLForConditionalGeneration,
    }


def _qwen_config(transformers, family, words, ids) -> Any:
    text = {
        "vocab_size": words, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    eye = {"depth": 2, "num_heads": 2, "in_channels": 3, "patch_size": 4, "spatial_merge_size": 2}
    eye |= {"temporal_patch_size": 2}
    if family == "qwen2_vl":
        eye |= {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
        config = transformers.Qwen2VLConfig
    elif family == "qwen2_5_vl":
        eye |= {"hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24, "window_size": 16}
        eye |= {"fullatt_block_indexes": [1]}
        config = transformers.Qwen2_5_VLConfig
    else:
        eye |= {"hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24, "num_position_embeddings": 64}
        eye |= {"deepstack_visual_indexes": [0]}
        config = transformers.Qwen3VLConfig
    special = {"image_token_id": "<|image_pad|>", "vision_start_token_id": "<|vision_start|>"}
    special |= {"vision_end_token_id": "<|vision_end|>"}
    named = {key: ids[token] for key, token in special.items()}
    return config(text_config=text, vision_config=eye, video_token_id=words + 1, tie_word_embeddings=False, **named)
