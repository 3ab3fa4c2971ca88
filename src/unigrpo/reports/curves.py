"""The curves of a run: small charts, each with one question, drawn from the lines of ``metrics.jsonl``.

A chart whose data a run does not have (TextGRPO has no velocities, a supervised run no reward) is left out.
``svg(chart)`` and ``png(charts)`` turn the result into pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from unigrpo.reports.captions import Series, course, smooth
from unigrpo.reports.chart_parts import Lines, as_shares, common_chart, draw_dots, draw_line, keys, series, value_at
from unigrpo.reports.progress import LOSSES
from unigrpo.reports.rendering import BLUE, CYCLE, VERMILION, Chart, png, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Chart", "charts", "keys", "ordinal", "phases", "png", "series", "svg"]


NO_BANDS: Mapping[str, Any] = {}


def charts(lines: Lines, bands: Mapping[str, Any] = NO_BANDS) -> list[Chart]:
    """Return every chart that the lines have data for, in reading order: is it better, is it healthy, is it fast.

    bands: of the canaries, from the run's summary.
    """
    found = [*_progress(lines), *_policy(lines), *_optimisation(lines), *_canaries(lines, bands), *_time(lines)]
    last = max((int(line["iteration"]) + 1 for line in lines if "iteration" in line), default=0)
    return [replace(chart, iterations=last) for chart in found]


def _progress(lines: Lines) -> list[Chart]:
    section = "Does it get better?"
    return [
        *_reward(lines, section),
        *_each_reward(lines, section),
        *common_chart(lines, {"plan right": "validation.plan_right", "follow": "validation.follow"},
                name="halves", section=section, title="The two halves: planning and drawing",
                healthy="Plan right rises, and follow does not pay for it.",
                unit="share of validation pictures", dots=True, share=True),
        *common_chart(lines, {"change done": "validation.changed", "rest kept": "validation.kept"},
                name="edits", section=section, title="The two halves of an edit: changing and keeping",
                healthy="What must change does, and what must stay does not pay for it.",
                unit="mean over validation pictures", dots=True, share=True),
        *_rounds(lines, section),
        *_categories(lines, section),
        *common_chart(lines, {label: f"loss.{key}" for key, label in LOSSES.items()},
                name="supervised", section=section, title="Supervised losses",
                healthy="Both fall, then flatten.", unit="loss"),
    ]  # fmt: skip


def _rounds(lines: Lines, section: str) -> list[Chart]:
    """First pictures against last ones, in training and in validations; how many pictures samples have."""
    measure = "score" if keys(lines, "validation.by_category") else "reward"
    sides = {"first pictures": f"validation.{measure}_first", "last pictures": f"validation.{measure}"}
    first = series(lines, f"validation.{measure}_first")[0]
    drawn = series(lines, "rounds")[1]
    return [
        *common_chart(lines, {"first pictures": "score_first", "last pictures": "score_last"},
                name="rounds", section=section, title="Training reward of first and last pictures",
                healthy="Both rise, and the last stay above the first.", unit="reward"),
        *common_chart(lines if len(first) else [], sides, name="rounds-validation", section=section,
                title=f"Validation {measure} of first and last pictures",
                healthy="Both rise, and the last stay above the first.", unit=measure, dots=True),
        *common_chart(lines if len(set(drawn.tolist())) > 1 else [], {"pictures": "rounds"}, name="pictures",
                section=section, title="Pictures of a sample", healthy="Falls only where first pictures are right.",
                unit="pictures, mean"),
    ]  # fmt: skip


def _categories(lines: Lines, section: str) -> list[Chart]:
    healthy = "All categories rise; none is given up for another."
    if names := keys(lines, "validation.by_category"):
        return common_chart(lines, {name: f"validation.by_category.{name}" for name in names},
                      name="categories", section=section, title="Validation score by category",
                      healthy=healthy, unit="share judged correct", dots=True, share=True)  # fmt: skip
    names = keys(lines, "validation.reward_by_category")
    return common_chart(lines, {name: f"validation.reward_by_category.{name}" for name in names},
                  name="categories", section=section, title="Validation reward by category",
                  healthy=healthy, unit="reward", dots=True)  # fmt: skip


def _reward(lines: Lines, section: str) -> list[Chart]:
    train, watched, measure = series(lines, "reward_mean"), series(lines, "validation.score"), "score"
    rewards = series(lines, "validation.reward")
    if not len(watched[0]) and len(rewards[0]):  # nobody judges: the reward is all there is
        watched, measure = rewards, "reward"
    if not len(train[0]) and not len(watched[0]):
        return []

    def draw(axes: Axes) -> None:
        if len(train[0]):
            draw_line(axes, train, "training reward", BLUE)
        if len(watched[0]):
            draw_dots(axes, watched, f"validation {measure}", VERMILION)
        values = np.concatenate([train[1], watched[1]])
        if values.min() >= 0 and values.max() <= 1:
            as_shares(axes)
        axes.set_ylabel("reward, score" if measure == "score" else "reward")

    title = "Training reward and validation score" if measure == "score" else "Training and validation reward"
    caption = course({"training reward": train, f"validation {measure}": watched})
    return [Chart("reward", section, title, "The reward rises, and validation follows.", caption, draw)]


def _policy(lines: Lines) -> list[Chart]:
    section = "Does the policy move in small steps?"
    places = sorted({int(item["step"]) for line in lines for item in _steps(line)})
    labels = {k: f"{ordinal(k + 1)} place" for k in places}
    clipped = {"text": "text.clip_fraction"} | {f"image, {labels[k]}": f"places.{k}.clip_fraction" for k in places}
    spread = {labels[k]: f"places.{k}.log_ratio_std" for k in places}
    mean = {labels[k]: f"places.{k}.log_ratio_mean" for k in places}
    lines = [{**line, "places": {str(item["step"]): item for item in _steps(line)}} for line in lines]
    return [
        *common_chart(lines, clipped, name="clipped", section=section,
                title="Share of ratios beyond the clip (image: by place in the window)",
                healthy="Above 0, far below 1.", unit="share clipped"),
        *common_chart(lines, {"text": "text.ratio_max_abs_log"}, name="text-ratio", section=section,
                title="Largest change of a token's log-probability",
                healthy="Stays below about 1 (a factor of 3 after one update).",
                unit="max |log ratio| (nats)"),
        *common_chart(lines, spread, name="image-ratio-spread", section=section,
                title="Spread of the image log-ratios, by place in the window",
                healthy="Each steady.", unit="standard deviation (nats)"),
        *common_chart(lines, mean, name="image-ratio-mean", section=section,
                title="Mean of the image log-ratios, by place in the window",
                healthy="Near 0; a drift clips one side.", unit="mean (nats)"),
        *common_chart(lines, {"KL": "text.kl"}, name="text-kl", section=section, title="Distance of the text policy",
                healthy="Grows slowly from 0.", unit="KL to the start checkpoint (nats)"),
    ]  # fmt: skip


def ordinal(number: int) -> str:
    """Say 1st, 2nd, 3rd, 4th, ... 11th, ... 21st."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _steps(line: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the entries by place in the window (their ``step``, from 0); not the index of the denoising step."""
    return value_at(line, "flow.steps") or ()


def _optimisation(lines: Lines) -> list[Chart]:
    section = "Is training stable?"
    norms = {f"{key} expert": f"grad_norm.{key}" for key in keys(lines, "grad_norm")}
    return [
        *common_chart(lines, {"velocity MSE": "flow.mse"}, name="velocity-mse", section=section,
                title="How far the drawing has moved", healthy="Grows slowly and levels off.",
                unit="mean squared velocity change"),
        *common_chart(lines, norms, name="gradients", section=section, title="Gradient norms, before clipping",
                healthy="No spikes, no growth without end.", unit="L2 norm"),
        *common_chart(lines, {"thinking": "text.think_length"}, name="length", section=section,
                title="Length of the thinking", healthy="Steady: not towards 0, not towards the cap.",
                unit="tokens per sample"),
        *common_chart(lines, {"thinking": "text.entropy"}, name="entropy", section=section,
                title="Randomness of the thinking", healthy="Falls slowly; 0 would end exploration.",
                unit="entropy (nats per token)"),
        *common_chart(lines, {"groups": "zero_variance_share"}, name="zero-variance", section=section,
                title="Groups that teach nothing", healthy="Well below 1: their samples all earned the same reward.",
                unit="share of groups", share=True),
        *common_chart(_with_failures(lines), {"samples": "failed_share"}, name="failed", section=section,
                title="Samples that could not be scored", healthy="0; they are left out of training.",
                unit="share of samples", share=True),
    ]  # fmt: skip


def _each_reward(lines: Lines, section: str) -> list[Chart]:
    """Every reward by itself, where there are several; their names may hold dots, so they go by number."""
    names = keys(lines, "reward_values")
    if len(names) < 2:
        return []
    found = [
        {**line, **{f"reward {i}": (line.get("reward_values") or {}).get(name) for i, name in enumerate(names)}}
        for line in lines
    ]
    return common_chart(found, {name: f"reward {i}" for i, name in enumerate(names)}, name="each-reward",
                  section=section, title="Each reward by itself, before weights",
                  healthy="Those that are trained on rise, or stay while others rise.", unit="value")  # fmt: skip


def _with_failures(lines: Lines) -> Lines:
    """The lines with a share of failed samples in each, if any has one."""
    if not any("failed_share" in line for line in lines):
        return lines
    return [{"failed_share": 0.0, **line} for line in lines]


CANARIES = {
    "colour_diversity": ("Variety of colours", "entropy (bits)", "A fall towards 0 means one colour everywhere."),
    "edge_energy": ("Sharp edges in the pictures", "mean pixel difference",
                    "Steady; a rise means noise or grid artefacts."),
    "high_frequency": ("High frequencies in the pictures", "share of the spectrum",
                       "Steady; a rise means a fine grid or noise."),
    "saturation": ("Saturation", "mean saturation", "Steady."),
    "group_diversity": ("Distance of pictures of one prompt", "mean pixel difference",
                        "A fall towards 0 means the same picture each time."),
    "plan_diversity": ("Variety of words in the plans", "entropy (bits)",
                       "A fall means the same plan for every prompt."),
    "think_words": ("Words of a thinking", "words", "Steady: not towards 0, not towards the cap."),
    "think_repetition": ("Repetition in the thinking", "share of repeated n-grams", "Near 0."),
    "reference_distance": ("Distance to the pictures before training", "mean pixel difference",
                           "Grows, and stays below the distance of pictures of different prompts."),
}  # fmt: skip
"""Canaries: title, unit, and what one hopes to see."""


def _canaries(lines: Lines, bands: Mapping[str, Any]) -> list[Chart]:
    section = "Canaries: is the reward being gamed?"
    named = [*CANARIES, *keys(lines, "canaries"), *keys(lines, "validation.canaries")]
    found = []
    for key in dict.fromkeys(name for name in named if not name.endswith("_error")):
        training, watched = series(lines, f"canaries.{key}"), series(lines, f"validation.canaries.{key}")
        if not len(training[0]) and not len(watched[0]):
            continue
        title, unit, healthy = CANARIES.get(key, (key.replace("_", " ").capitalize(), "value", "Steady."))
        data = {"training": training, "validation": watched}
        ends = [end for side in ("low", "high") if (end := (bands.get(key) or {}).get(side)) is not None]
        ends = ends if len(watched[0]) else []
        caption = course(data if len(watched[0]) else {title: training})
        drawn = _canary(training, watched, unit, ends)
        found.append(Chart(f"canary-{key}", section, title, healthy, caption, drawn))
    return found


def _canary(training: Series, watched: Series, unit: str, ends: Sequence[float]) -> Callable[[Axes], None]:
    """Draw the training samples' curve, the validations' dots, and the ends of the validations' band, dashed."""

    def draw(axes: Axes) -> None:
        if len(training[0]):
            draw_line(axes, training, "training", BLUE)
        if len(watched[0]):
            draw_dots(axes, watched, "validation", VERMILION)
        for number, end in enumerate(ends):
            axes.axhline(end, color=VERMILION, linewidth=1, linestyle="--", label=None if number else "end of the band")
        axes.set_ylabel(unit)

    return draw


ASIDE = ("total", "reward_wait", "reward_hidden")
"""Seconds that are no phase by themselves: the sum, a part of the reward's, and what ran beside the drawing."""


def phases(lines: Lines) -> dict[str, Series]:
    """Seconds of each phase, which follow each other; what the total has beyond them is "other"."""
    names = [key for key in keys(lines, "seconds") if key not in ASIDE]
    x = np.array([int(line["iteration"]) + 1 for line in lines if isinstance(line.get("seconds"), Mapping)])
    rows = [line["seconds"] for line in lines if isinstance(line.get("seconds"), Mapping)]
    found = {name: np.array([float(row.get(name) or 0.0) for row in rows]) for name in names}
    known = np.sum(list(found.values()), axis=0) if found else np.zeros(len(rows))
    other = np.array([float(row.get("total") or 0.0) for row in rows]) - known
    if other.size and other.max() > 0.005 * max(known.max(), 1e-9):
        found["other"] = np.maximum(other, 0.0)
    return {name: (x, y) for name, y in found.items() if y.any()}


def _time(lines: Lines) -> list[Chart]:
    section = "Where does the time go?"
    found = phases(lines)
    speed = common_chart(lines, {"samples": "samples_per_second"}, name="speed", section=section, title="Speed",
                   healthy="Steady.", unit="samples per second")  # fmt: skip
    speed += common_chart(lines, {"of the peak": "utilization"}, name="utilization", section=section,
                    title="How much of the machine's peak is used", healthy="Steady.",
                    unit="FLOPs of the peak", share=True)  # fmt: skip
    if not found:
        return speed

    def draw(axes: Axes) -> None:
        x = next(iter(found.values()))[0]
        if len(x) == 1:
            x = np.array([x[0] - 0.5, x[0] + 0.5])  # one iteration: a block instead of a line nobody sees
        heights = [np.broadcast_to(smooth(y), len(x)) for _, y in found.values()]
        axes.stackplot(x, *heights, labels=list(found), colors=[CYCLE[i % 7] for i in range(len(found))], alpha=0.85)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("seconds per iteration")

    total = np.sum([y for _, y in found.values()], axis=0)
    caption = f"{course({'all': (np.arange(len(total)), total)})} s an iteration; smoothed."
    return [Chart("seconds", section, "Seconds per phase, stacked", "Steady.", caption, draw), *speed]
