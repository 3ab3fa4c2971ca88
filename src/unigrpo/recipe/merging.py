"""One recipe's keys laid over another's: a stage's over the common ones, and a recipe's over what it extends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of ``own`` over those of ``base``, key by key in every section; lists and values replace.

    Another ``method.name`` has other terms, so that ``method`` is then replaced whole; so is ``data`` between methods
    that learn from demonstrations and those that learn from prompts.
    """
    return _laid_over(base, own, replaced(base, own))


def replaced(base: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[str, ...]:
    """The sections of ``base`` that give way to those of ``own`` whole."""
    return _replaced(_method(base), _method(own))


def _laid_over(base: Mapping[str, Any], own: Mapping[str, Any], replaced: Sequence[str] = ()) -> dict[str, Any]:
    result = dict(base)
    for key, value in own.items():
        before = base.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping) and key not in replaced:
            value = _laid_over(before, value)
        result[key] = value
    return result


def _method(written: Mapping[str, Any]) -> Any:
    """The name of the method, if there is one."""
    method = written.get("method")
    return method.get("name") if isinstance(method, Mapping) else None


def _replaced(before: Any, now: Any) -> tuple[str, ...]:
    """The sections that are replaced whole."""
    if now is None or now == before:
        return ()
    learns_otherwise = before is not None and (before == "supervised") != (now == "supervised")
    return ("method", "data") if learns_otherwise else ("method",)


def value_at(written: Any, keys: Sequence[str]) -> Any:
    """The value of a nested key; None where it is not set."""
    for key in keys:
        written = written.get(key) if isinstance(written, Mapping) else None
    return written
