"""Checks of what is installed: python, what this package needs, and its extras, by its own metadata."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata

from unigrpo import version
from unigrpo.ranges import how_to_install
from unigrpo.tools.doctor.finding import Finding

DEVELOPERS = "dev"
_NEEDED = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*(?:>=\s*(?P<least>[0-9.]+))?")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")


@dataclass(frozen=True)
class Requirement:
    """A package, the least version of it, and the extra that asks for it ("": every run does)."""

    name: str
    least: str
    extra: str

    @property
    def written(self) -> str:
        """As pip takes it."""
        return f"{self.name}>={self.least}" if self.least else self.name


def requirements(lines: Sequence[str]) -> list[Requirement]:
    """What metadata says is needed (``importlib.metadata.requires``)."""
    found = []
    for line in lines:
        wanted, _, marker = line.partition(";")
        match, extra = _NEEDED.match(wanted.strip()), _EXTRA.search(marker)
        if match and (not marker.strip() or extra):
            found.append(Requirement(match["name"], match["least"] or "", extra[1] if extra else ""))
    return found


def own_requirements() -> list[Requirement]:
    """Those of this package; none where it is used from a folder that is not installed."""
    try:
        return requirements(metadata.requires("unigrpo") or [])
    except metadata.PackageNotFoundError:
        return []


def too_old(have: str, least: str) -> bool:
    """Whether a version is below the least one, by its numbers (2.13.0+cpu is 2.13.0)."""
    numbers = [[int(word) for word in re.findall(r"\d+", text.partition("+")[0])[:3]] for text in (have, least)]
    return numbers[0] < numbers[1]


def check_python(current: tuple[int, ...] = tuple(sys.version_info[:3])) -> Finding:
    """Failed below 3.11; says what runs where."""
    text = ".".join(map(str, current))
    own = f"unigrpo {version.of('unigrpo') or 'of a folder'}"
    said = f"python {text} on {platform.system()} {platform.machine()}, {own}"
    figures = {
        "python": text,
        "executable": sys.executable,
        "platform": platform.platform(),
        "commit": version.git_commit(),
    }
    if current < (3, 11):
        return Finding("python", "failed", said, "make an environment with python 3.11 or newer", figures)
    return Finding("python", "ok", said, "", figures)


Versions = Callable[[str], str | None]


def check_packages(wanted: Sequence[Requirement], have: Versions = version.of) -> Finding:
    """Failed where something that every run needs is missing or too old."""
    needed = [one for one in wanted if not one.extra]
    if not needed:
        todo = "pip install -e . in the checkout of unigrpo: versions are then checked"
        return Finding("packages", "note", "unigrpo is used from a folder, and not installed", todo, {})
    versions = {one.name: have(one.name) for one in needed}
    figures = {"versions": versions}
    wrong = [one for one in needed if _wrong(one, versions[one.name])]
    if wrong:
        said = "; ".join(_lack(one, versions[one.name]) for one in wrong)
        todo = "pip install " + " ".join(f"'{one.written}'" for one in wrong)
        return Finding("packages", "failed", said, todo, figures)
    said = ", ".join(f"{name} {versions[name]}" for name in ("torch", "numpy", "safetensors") if name in versions)
    return Finding("packages", "ok", f"{said}; all {len(needed)} that are needed", "", figures)


def check_extras(wanted: Sequence[Requirement], have: Versions = version.of) -> Finding:
    """A note for extras that are not whole, each with the command that brings it."""
    extras: dict[str, list[Requirement]] = {}
    for one in wanted:
        if one.extra and one.extra != DEVELOPERS:
            extras.setdefault(one.extra, []).append(one)
    lacking = {
        extra: [_lack(one, have(one.name)) for one in ones if _wrong(one, have(one.name))]
        for extra, ones in sorted(extras.items())
    }
    missing = {extra: words for extra, words in lacking.items() if words}
    there = [extra for extra in lacking if extra not in missing]
    figures = {
        "installed": there,
        "missing": {extra: {"lacks": words, "command": how_to_install(extra)} for extra, words in missing.items()},
        "versions": {one.name: have(one.name) for ones in extras.values() for one in ones},
    }
    said = f"installed: {', '.join(there) or 'none'}"
    if missing:
        todo = "; ".join(f"{extra} ({', '.join(words)}): {how_to_install(extra)}" for extra, words in missing.items())
        return Finding("extras", "note", f"{said}; not: {', '.join(missing)}", f"if you need them: {todo}", figures)
    return Finding("extras", "ok", said, "", figures)


def _wrong(one: Requirement, have: str | None) -> bool:
    return have is None or (bool(one.least) and too_old(have, one.least))


def _lack(one: Requirement, have: str | None) -> str:
    return f"{one.name} is missing" if have is None else f"{one.name} {have} is older than {one.least}"
