"""Rewards by name: built when asked for, and unknown names get a hint."""

import pytest

from unigrpo.rewards import registry


@pytest.fixture(autouse=True)
def own_names(monkeypatch):
    monkeypatch.setattr(registry, "_FACTORIES", {})


def test_a_reward_is_built_when_it_is_asked_for():
    built = []

    def factory():
        built.append(True)
        return lambda *given: [1.0]

    registry.register("mine/sharpness", factory)
    assert built == []
    assert registry.build("mine/sharpness")(None, ["x"], [{}], [None]) == [1.0] and built == [True]


def test_a_name_is_given_once():
    def factory():
        return lambda *given: [1.0]

    registry.register("mine/sharpness", factory)
    registry.register("mine/sharpness", factory)  # a module that is imported twice
    with pytest.raises(ValueError, match="already a reward called 'mine/sharpness'"):
        registry.register("mine/sharpness", lambda: factory())


def test_unknown_names_get_a_hint():
    registry.register("mine/sharpness", lambda: lambda *given: [1.0])
    registry.register("other", lambda: lambda *given: [1.0])
    with pytest.raises(
        ValueError, match=r"'mine/sharpnes' \(did you mean mine/sharpness\?\); known rewards: .*mine/sharpness, .*other"
    ):
        registry.build("mine/sharpnes")
    with pytest.raises(ValueError, match="no reward called 'zzz'; known"):
        registry.build("zzz")
