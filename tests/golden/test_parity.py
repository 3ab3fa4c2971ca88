"""The numbers of the original BAGEL code: all reproduced, and every single mistake is seen (tests/golden/bagel_a)."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from unigrpo.models.bagel import transformer
from unigrpo.models.bagel.blocks import CAUSAL, Block, RowBuilder, Tokens, allowed
from unigrpo.models.bagel.layers import MoTLayer
from unigrpo.models.bagel.transformer import BagelModel, PositionTable, TimeEmbedder
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.tools.parity import parity
from unigrpo.tools.parity.golden import Check

FOLDER = Path(__file__).parent / "bagel_a"
O_PROJ = "language_model.model.layers.1.self_attn.o_proj_moe_gen.weight"


@pytest.fixture(scope="module")
def golden():
    return parity.Golden(FOLDER)


def changed_folder(tmp_path, change):
    """The folder with changed weights."""
    folder = tmp_path / "changed"
    folder.mkdir()
    for name in ("config.json", "golden.safetensors"):
        shutil.copy(FOLDER / name, folder / name)
    weights = load_file(FOLDER / "weights.safetensors")
    change(weights)
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "weights.safetensors")
    return folder


def failed(folder):
    return {check.group for check in parity.run(folder) if not check.passed}


def test_every_number_of_the_original_is_reproduced():
    checks = parity.run(FOLDER)
    assert {check.group: check.error for check in checks if not check.passed} == {}
    assert len(checks) == 56
    begins = [check.group.split()[0] for check in checks]
    assert set(begins) == {"t2i", "plain", "unit", "vit", "edit", "und", "train"}


def test_a_wrong_weight_fails(tmp_path):
    def scale(weights):
        weights[O_PROJ] *= 1.01

    groups = failed(changed_folder(tmp_path, scale))
    assert {"t2i velocities", "t2i euler final", "edit velocities", "train velocities", "train loss"} <= groups
    assert "t2i think logits" not in groups  # the text never passes through the generation expert


def test_a_wrong_reasoning_weight_fails_everywhere(tmp_path):
    def scale(weights):
        weights[O_PROJ.replace("_moe_gen", "")] *= 1.05

    assert {"t2i think logits", "t2i cache after prompt", "t2i velocities"} <= failed(changed_folder(tmp_path, scale))


def test_nan_does_not_pass(tmp_path):
    def spoil(weights):
        weights["llm2vae.bias"][0] = float("nan")

    with pytest.raises(ValueError, match=r"weights\.safetensors: llm2vae\.bias holds NaN"):
        failed(changed_folder(tmp_path, spoil))
    assert not Check("t2i velocities", float("nan"), 1.0).passed


# ---------------------------------------------------------------- one mistake each, with its documented size


def image_rope(shift):
    """The image's rope position off by ``shift(position)``."""

    def mistake(monkeypatch, golden):
        embed = transformer.rope_tables

        def wrong(positions, head_dim, theta):
            image = positions.shape[1] == golden.policy.spec.num_tokens + 2
            return embed(shift(positions) if image else positions, head_dim, theta)

        monkeypatch.setattr(transformer, "rope_tables", wrong)

    return mistake


def increasing(positions):
    """Markers first in our layout: start marker, end marker, latents."""
    n = positions.shape[1] - 2
    return positions + torch.tensor([0, n + 1, *range(1, n + 1)])


def causal_image(monkeypatch, golden):
    def wrong(query, key):
        return allowed(Tokens(query.order, query.segment, torch.full_like(query.mode, CAUSAL), query.valid), Tokens(
            key.order, key.segment, torch.full_like(key.mode, CAUSAL), key.valid))  # fmt: skip

    monkeypatch.setattr(transformer, "allowed", wrong)
    monkeypatch.setattr(Tokens, "first", lambda self: self)  # then a row's tokens do not see the same


def time_in_thousandths(monkeypatch, golden):
    right = TimeEmbedder.forward
    monkeypatch.setattr(TimeEmbedder, "forward", lambda self, t: right(self, 1000.0 * t))


def no_position_table(monkeypatch, golden):
    right = PositionTable.forward
    monkeypatch.setattr(PositionTable, "forward", lambda self, places: torch.zeros_like(right(self, places)))


def places(formula):
    def mistake(monkeypatch, golden):
        rows, columns = golden.policy.spec.grid
        wrong = torch.tensor([formula(r, c, columns) for r in range(rows) for c in range(columns)])
        monkeypatch.setattr(Bagel, "places", lambda self, device: wrong)

    return mistake


def und_weights_for_gen(*parts):
    """The generation expert runs with the understanding expert's weights of some modules."""

    def mistake(monkeypatch, golden):
        for name, parameter in golden.policy.model.named_parameters():
            if "_moe_gen" in name and any(part in name for part in parts):
                twin = golden.policy.model.get_parameter(name.replace("_moe_gen", ""))
                monkeypatch.setattr(parameter, "data", twin.data)

    return mistake


def markers_through_gen(monkeypatch, golden):
    """Start and end marker run with the weights of the generation expert."""
    embed, head = BagelModel.embed, BagelModel.velocity_head

    def wrong(self, block):
        und, gen = embed(self, block)
        return (und[:, :0], torch.cat([und, gen], 1)) if gen.shape[1] else (und, gen)

    monkeypatch.setattr(BagelModel, "embed", wrong)
    monkeypatch.setattr(Block, "num_und", property(lambda self: 0 if self.latents.shape[1] else self.ids.shape[1]))
    monkeypatch.setattr(BagelModel, "velocity_head", lambda self, hidden: head(self, hidden[:, 2:]))


MISTAKES = {
    "image tokens get increasing rope positions": image_rope(increasing),
    "image rope position off by one": image_rope(lambda positions: positions + 1),
    "image rope position 0": image_rope(torch.zeros_like),
    "vision_start/end markers through the gen expert": markers_through_gen,
    "causal attention inside the image": causal_image,
    "timestep multiplied by 1000": time_in_thousandths,
    "no latent_pos_embed": no_position_table,
    "latent_pos_embed row/col swapped": places(lambda r, c, columns: c * 8 + r),
    "latent_pos_embed indexed h*w+col instead of h*max_latent_size+col": places(lambda r, c, columns: r * columns + c),
    "und q/k norm used for gen tokens": und_weights_for_gen("q_norm", "k_norm"),
    "und final norm used for gen tokens": und_weights_for_gen("model.norm_moe_gen"),
    "und o_proj used for gen tokens": und_weights_for_gen("o_proj"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_seen_and_as_large_as_the_original_says(name, golden, monkeypatch):
    sizes = golden.values["meta"]["mutation_max_abs_dv (|v| scale 0.958)"]
    right = golden.velocity(golden.full, golden["t2i.noise"], 0.7)
    MISTAKES[name](monkeypatch, golden)
    wrong = golden.velocity(golden.full, golden["t2i.noise"], 0.7)
    assert float((wrong - right).detach().abs().max()) == pytest.approx(sizes[name], abs=2e-3)


def test_all_documented_mistakes_are_tried(golden):
    assert set(MISTAKES) == set(golden.values["meta"]["mutation_max_abs_dv (|v| scale 0.958)"])


def test_the_report_fails_where_the_code_is_wrong(monkeypatch, golden):
    right = MoTLayer.by_expert
    monkeypatch.setattr(
        MoTLayer, "by_expert", lambda self, name, stream: right(self, name, (stream[1], stream[0]))[::-1]
    )
    groups = failed(FOLDER)
    assert {"t2i think logits", "t2i cache after prompt", "t2i velocities", "train hidden states"} <= groups


def vision_weights(name, scale):
    return lambda weights: weights[name].mul_(scale)


@pytest.mark.parametrize(
    ("name", "seen", "blind"),
    [
        ("vit_model.vision_model.encoder.layers.1.mlp.fc1.weight", "vit output", "vit patches"),
        ("vit_model.vision_model.embeddings.position_embedding.weight", "vit output", "vit positions"),
        ("vit_model.vision_model.post_layernorm.weight", "vit output", "vit positions"),
        ("connector.fc1.weight", "vit connected", "vit output"),
        ("vit_pos_embed.pos_embed", "vit connected", "vit output"),
    ],
)
def test_a_wrong_weight_of_the_vision_tower_fails_what_sees(tmp_path, name, seen, blind):
    groups = failed(changed_folder(tmp_path, vision_weights(name, 1.05)))
    assert {seen, "edit velocities", "und logits", "train hidden states"} <= groups
    assert blind not in groups and "t2i velocities" not in groups


def test_gradients_are_compared(monkeypatch):
    """A backward pass that loses one path: forward values all right, gradients wrong."""
    right = BagelModel.see
    monkeypatch.setattr(BagelModel, "see", lambda self, pictures: right(self, pictures).detach())
    groups = failed(FOLDER)
    assert "train gradient connector.fc2.bias" in groups and "train loss" not in groups


def test_a_view_without_its_markers_or_in_the_wrong_place_is_seen(monkeypatch):
    right = RowBuilder.view

    def wrong(self, patches, grid):
        right(self, patches, grid)
        self.rope += 1  # a picture advances the counter by one, not by two

    monkeypatch.setattr(RowBuilder, "view", wrong)
    assert {"edit velocities", "und logits", "train rope positions"} <= failed(FOLDER)


# ---------------------------------------------------------------- damaged folders


def copied(tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(FOLDER, folder)
    return folder


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors", "golden.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    (copied(tmp_path) / name).unlink()
    with pytest.raises(ValueError, match=f"is not a parity folder: it has no {name}"):
        parity.run(tmp_path / "copy")


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors", "golden.safetensors"])
def test_a_torn_file_is_named(tmp_path, name):
    path = copied(tmp_path) / name
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=name):
        parity.run(tmp_path / "copy")


@pytest.mark.parametrize(
    "key", ["llm_config", "vit_config", "vae_config", "image_hw", "special_tokens", "num_timesteps", "meta"]
)
def test_a_missing_config_key_is_named(tmp_path, key):
    path = copied(tmp_path) / "config.json"
    values = json.loads(path.read_text())
    del values[key]
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=key):
        parity.run(tmp_path / "copy")


def test_a_missing_golden_tensor_is_named(tmp_path):
    path = copied(tmp_path) / "golden.safetensors"
    data = load_file(path)
    del data["t2i.noise"]
    save_file(data, path)
    with pytest.raises(ValueError, match=r"golden.safetensors has no tensor 't2i.noise'"):
        parity.run(tmp_path / "copy")


def test_a_missing_weight_is_named(tmp_path):
    folder = changed_folder(tmp_path, lambda weights: weights.pop(O_PROJ))
    with pytest.raises(ValueError, match=f"missing {O_PROJ}"):
        parity.run(folder)


def test_wrong_sizes_are_an_error_of_infinity():
    assert parity.difference(torch.zeros(2), torch.zeros(3)) == float("inf")
    assert not parity.Check("x", parity.difference(torch.tensor([float("nan")]), torch.zeros(1)), 1.0).passed
