"""Methods of one's own: ``method.name`` as path/file.py:Thing or package.module:Thing."""

from __future__ import annotations

from dataclasses import field, is_dataclass, make_dataclass
from functools import cache

from unigrpo.loading import load, reference
from unigrpo.objectives.image_terms import ImageTerm
from unigrpo.objectives.method import Method
from unigrpo.objectives.methods import METHODS, WithOwnTerm
from unigrpo.ranges import ConfigError


def method_class(name: str) -> type[Method]:
    """The dataclass of a method: a named one, one of the user's own, or one around an image term of their own.

    ConfigError where the name means neither a method nor an image term.
    """
    place = reference(name)
    if place is None:
        return METHODS[name]
    found = load(name, place, what="method")
    if not isinstance(found, type) or not is_dataclass(found) or not issubclass(found, Method | ImageTerm):
        raise ConfigError(
            f"method.name = {name!r} is no method: it must be a dataclass over "
            "unigrpo.objectives.image_terms.ImageTerm (an image term) or unigrpo.objectives.method.Method"
        )
    if issubclass(found, Method):
        return found
    return _around(found)


@cache
def _around(term: type[ImageTerm]) -> type[Method]:
    """The method that is an image term of one's own, with its settings in the section ``image``."""
    image = [("image", term, field(default_factory=term))]
    return make_dataclass(term.__name__, image, bases=(WithOwnTerm,), frozen=True)
