"""Model configs: what cannot work is refused by name; the file round trip; the grid of latent tokens."""

from dataclasses import replace

import pytest

from small_models import small_policy
from unigrpo.models.bagel.config import BagelConfig

CONFIG = small_policy().config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "hidden_size 32 is not a multiple of num_heads 3"),
        ({"num_kv_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
        ({"hidden_size": 36, "num_heads": 4}, "the head size is 9"),
        ({"hidden_size": 6, "num_heads": 1, "num_kv_heads": 1}, "hidden_size 6 is not a multiple of 4"),
        ({"image_size": (30, 32)}, "30 x 32 pixels does not fit.*multiple of 8, at most 64"),
        ({"image_size": (72, 32)}, "at most 64"),
        ({"image_size": (0, 32)}, "0 x 32"),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_unknown_and_missing_keys_are_named(tmp_path):
    values = {name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__}
    with pytest.raises(ValueError, match=r"unknown key.*heads, width"):
        BagelConfig.from_dict({**values, "width": 1, "heads": 2})
    del values["vocab_size"]
    with pytest.raises(ValueError, match=r"incomplete.*vocab_size"):
        BagelConfig.from_dict(values)


def test_the_file_gives_the_same_config_back(tmp_path):
    (tmp_path / "config.json").write_text(CONFIG.to_json())
    assert BagelConfig.load(tmp_path / "config.json") == CONFIG


def test_sizes_of_the_7b_model():
    config = BagelConfig(152064, 3584, 18944, 28, 28, 4, 16, 64, 151644, 151645, 151652, 151653, (1024, 768))
    assert (config.head_dim, config.latent_dim, config.pixels_per_token) == (128, 64, 16)
    assert config.grid_of((1024, 768)) == (64, 48)
    assert (config.timestep_shift, config.num_points) == (3.0, 50)
