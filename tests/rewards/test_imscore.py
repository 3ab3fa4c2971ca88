"""The adapter of imscore, against a stand-in of the same shape: the package itself is not installed here."""

import sys

import pytest
import torch

from reward_models import assert_gradient, pictures
from unigrpo.ranges import ConfigError
from unigrpo.rewards.imscore import SCORERS, Imscore

STAND_IN = """
import torch
from huggingface_hub import PyTorchModelHubMixin


class {name}(torch.nn.Module, PyTorchModelHubMixin, library_name="imscore", repo_url="https://example.org"):
    def __init__(self):
        super().__init__()
        self.head, self.drop = torch.nn.Linear(3, 1), torch.nn.Dropout(0.5)
        self.seen = []

    def score(self, pixels, prompts):
        self.seen.append(len(prompts))
        lengths = torch.tensor([len(p) for p in prompts], dtype=pixels.dtype)[:, None]
        scores = self.drop(self.head(pixels.square().mean((2, 3)))) * lengths
        return {answer}
"""
ANSWERS = {"ImageReward": "scores", "PickScorer": "scores.squeeze()", "VQAScore": "scores.mean()"}
PROMPTS = ["a dog", "two", "a dog and a cat"]


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """imscore as files that can be imported; gives a folder of weights for a scorer."""
    for module in ("imreward", "pickscore", "vqascore"):
        (tmp_path / "imscore" / module).mkdir(parents=True)
        (tmp_path / "imscore" / module / "__init__.py").touch()
        name = next(name for name, scorer in SCORERS.items() if scorer.module == module)
        (tmp_path / "imscore" / module / "model.py").write_text(STAND_IN.format(name=name, answer=ANSWERS[name]))
    (tmp_path / "imscore" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)

    def saved(name):
        kind = vars(__import__(f"imscore.{SCORERS[name].module}.model", fromlist=["model"]))[name]
        torch.manual_seed(0)
        made = kind()
        made.save_pretrained(tmp_path / name)
        return str(tmp_path / name), made.eval()

    yield saved
    for module in [m for m in sys.modules if m.partition(".")[0] == "imscore"]:
        del sys.modules[module]


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("batch", [1, 2, 8])
def test_one_number_a_picture_whatever_shape_it_comes_in(weights, name, batch):
    folder, made = weights(name)
    reward, images = Imscore(scorer=name, weights=folder, batch=batch), pictures()
    with torch.no_grad():
        wanted = torch.cat([made.score(images[i : i + 1], PROMPTS[i : i + 1]).reshape(1) for i in range(3)])
    assert torch.allclose(reward.score(images, PROMPTS, [{}] * 3), wanted, atol=1e-6)
    assert reward.model.seen == {1: [1] * 3, 2: [2, 1], 8: [3]}[1 if name == "VQAScore" else batch]
    assert not reward.model.training and not any(parameter.requires_grad for parameter in reward.model.parameters())


@pytest.mark.parametrize("name", ANSWERS)
def test_finite_differences(weights, name):
    reward = Imscore(scorer=name, weights=weights(name)[0], batch=2)
    reward.model.double()
    assert_gradient(lambda images: reward.score(images, PROMPTS, []), pictures(dtype=torch.float64))


def test_a_scorer_that_gives_one_number_for_all_is_an_error(weights, monkeypatch):
    reward = Imscore(scorer="PickScorer", weights=weights("PickScorer")[0])
    monkeypatch.setattr(reward.model, "score", lambda pixels, prompts: pixels.mean())
    with pytest.raises(ValueError, match="imscore:PickScorer gave 1 numbers for 3 pictures: set batch to 1"):
        reward.score(pictures(), PROMPTS, [])


def test_what_cannot_work_is_said_in_one_sentence(weights, tmp_path):
    with pytest.raises(ConfigError, match=r"no reward 'imscore:PickScore' \(did you mean PickScorer"):
        Imscore(scorer="PickScore")
    with pytest.raises(ConfigError, match=r"there is no folder .*nothing"):
        Imscore(scorer="ImageReward", weights=str(tmp_path / "nothing"))


def test_without_the_package_it_says_how_to_get_it():
    with pytest.raises(ConfigError, match=r"'imscore:MPS' needs the package imscore, .* in an environment of its own"):
        Imscore(scorer="MPS")
