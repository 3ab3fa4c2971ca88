"""What a second look is worth: critiques and revisions of an evaluation of two rounds, from its records alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unigrpo.worlds.shapes.critiques import applied, content, critique_right, parse_rethinking
from unigrpo.worlds.shapes.edit_reading import parse_edit
from unigrpo.worlds.shapes.edits import judged
from unigrpo.worlds.shapes.parsing import END_THINK, THINK, parse_prompt
from unigrpo.worlds.shapes.planner import parse_plan
from unigrpo.worlds.shapes.scenes import Scene


@dataclass(frozen=True)
class Revision:
    """One look at a picture, and what came of it.

    needed: the first picture lacks something of the prompt, or has more; said: the thinking can be read; fine: it says
    so; right: all that it says is true of the picture, which is then what was asked for; done: the new plan is the
    picture with that done; plan_right: the new plan satisfies the prompt; first, second: the pictures are correct, and
    follow: the second shows its plan (None where nothing new was planned, or it cannot be read).
    """

    category: str
    needed: bool
    said: bool
    fine: bool
    right: bool
    done: bool | None
    plan_right: bool | None
    first: bool
    second: bool
    follow: bool | None


def scene_of(words: str) -> Scene:
    """The scene that a record's ``shown`` lists."""
    return parse_plan(f"{THINK} {words} {END_THINK}") or Scene(())


def _flat(one: Mapping[str, Any]) -> dict[str, Any]:
    """A round with what ``unigrpo eval`` keeps under its values and its detail."""
    values, detail = one.get("values") or {}, one.get("detail") or {}
    return {"follow": values.get("follow"), **{key: detail[key] for key in ("shown", "source") if key in detail}, **one}


def _asked(prompt: str, verdict: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a prompt asks for, or an instruction of the ``source`` that its verdict lists; None: it cannot be read."""
    try:
        if "source" in verdict:
            return parse_edit(prompt, scene_of(verdict["source"])).metadata()
        return parse_prompt(prompt)
    except ValueError:  # words of one's own, with requirements beside them
        return None


def revision(record: Mapping[str, Any]) -> Revision | None:
    """The first look of a record of an evaluation (a run's, or one of ``unigrpo eval``).

    None where its sample has no second picture, a picture was not judged, or the prompt is in words of one's own.
    """
    rounds = [_flat(one) for one in record.get("rounds") or ()]
    if len(rounds) < 2 or any(one.get("correct") is None for one in rounds[:2]):
        return None
    first, second = rounds[:2]
    if (metadata := _asked(record["prompt"], first)) is None:
        return None
    scene, said = scene_of(first["shown"]), parse_rethinking(second["thinking"] or "")
    plan = None if said is None else said.plan
    changed = None if said is None else applied(scene, said.remarks)
    return Revision(
        category=record["category"],
        needed=not content(scene, metadata),
        said=said is not None,
        fine=said is not None and plan is None,
        right=said is not None and critique_right(said.remarks, scene, metadata),
        done=None if plan is None else changed is not None and plan.same_picture(changed),
        plan_right=None if plan is None else judged(plan, metadata).correct,
        first=first["correct"],
        second=second["correct"],
        follow=None if second["follow"] is None else bool(second["follow"]),
    )


def figures(records: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Shares over the samples with a second picture; None where a share has nothing to be of.

    score_first, score_second: means over categories; needed, fine, critique_right: of all; critique_right_needed and
    critique_right_fine: of pictures with and without a fault; found: a fault is not called fine; plan_done, plan_right,
    follow: of new plans; fixed: wrong first pictures whose second is correct, broken: the converse; after_right,
    after_wrong: second pictures that are correct after a right and a wrong critique of a picture with a fault.
    """
    made = [found for record in records if (found := revision(record)) is not None]

    def share(
        what: Callable[[Revision], bool | None], of: Callable[[Revision], bool] = lambda one: True
    ) -> float | None:
        known = [value for one in made if of(one) and (value := what(one)) is not None]
        return sum(known) / len(known) if known else None

    def score(what: Callable[[Revision], bool]) -> float | None:
        names = sorted({one.category for one in made})
        means = [share(what, lambda one, name=name: one.category == name) or 0.0 for name in names]
        return sum(means) / len(means) if means else None

    return {
        "n": len(made),
        "score_first": score(lambda one: one.first),
        "score_second": score(lambda one: one.second),
        "said": share(lambda one: one.said),
        "needed": share(lambda one: one.needed),
        "fine": share(lambda one: one.fine),
        "critique_right": share(lambda one: one.right),
        "critique_right_needed": share(lambda one: one.right, lambda one: one.needed),
        "critique_right_fine": share(lambda one: one.right, lambda one: not one.needed),
        "found": share(lambda one: not one.fine, lambda one: one.needed),
        "plan_done": share(lambda one: one.done),
        "plan_right": share(lambda one: one.plan_right),
        "follow": share(lambda one: one.follow),
        "fixed": share(lambda one: one.second, lambda one: not one.first),
        "broken": share(lambda one: not one.second, lambda one: one.first),
        "after_right": share(lambda one: one.second, lambda one: one.needed and one.right),
        "after_wrong": share(lambda one: one.second, lambda one: one.needed and not one.right),
    }


def further(records: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The figures of records of two rounds; none of one round."""
    found = figures(records)
    return found if found["n"] else {}
