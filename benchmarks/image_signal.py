"""How much signal the image half gets: the reward's variance by source, and how clear the gradient is.

    OMP_NUM_THREADS=1 python benchmarks/image_signal.py [--part variance|gradient] [--towards RUN ...] [--quick]

variance: of the reward in groups of 12 where the plan, the initial noise or the SDE noise differ, the rest is shared.
gradient: of the image term at the first update, on the denoising parameters, over batches of 96 independent rollouts.
    cosine   mean between two batches; clarity  mean / standard deviation over batches of g along one direction, which
    is from the model to what training made of it (``--towards`` finished runs, of another seed than ``--seed``)
The +- are standard errors over prompts, or jackknives over batches. ``--runs DIR`` adds training runs to ``--out``,
``--figure`` draws what is in it. The defaults are small; docs/tuning-the-image-half.md has the commands of its numbers.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unigrpo import build
from unigrpo.files import write_bytes_atomic, write_json_atomic
from unigrpo.models.bagel_files.pretrained import Bagel
from unigrpo.objectives.advantage import Advantage
from unigrpo.objectives.flow_grpo import FlowGRPO
from unigrpo.policy import ReplayItem, VelocityQuery
from unigrpo.recipe import Model, PromptData, Scorer, load_recipe
from unigrpo.reports import runlog
from unigrpo.rewards.composite import CompositeReward, Scored
from unigrpo.rewards.protocol import RewardInput, metadata_of
from unigrpo.rollout.engine import RandomKeys, Sampling, rollout
from unigrpo.rollout.episode import single_round
from unigrpo.rollout.sample import decode_pictures, thinking_of
from unigrpo.training.sources import PromptSource
from unigrpo.trajectory import Prompt, Trajectory

RECIPE, GROUP, ROLLOUTS = "shapes/unigrpo", 12, 96
PLAN, START, STEPS = "think", "noise", "sde"  # the purposes under which the engine draws
SHARED = {
    "all": frozenset[str](),
    "plan": frozenset({START, STEPS}),
    "image": frozenset({PLAN}),
    "initial noise": frozenset({PLAN, STEPS}),
    "sde noise": frozenset({PLAN, START}),
}
WINDOWS = {"early": (0, 3), "middle": (2, 5), "late": (4, 7)}
LEVELS, KINDS, SIZES = (0.4, 0.8, 1.2), ("flow", "flow_cp"), (2, 6, 24)
STEP_SETTINGS = [("early", 0.4), ("early", 0.8), ("early", 1.2), ("late", 0.4), ("late", 0.8)]
WAYS = ("ratio_norm", "raw_ratio", "yes_or_no")
EPISODE = single_round(think=True)
Row = dict[str, Any]


@dataclass(frozen=True)
class SharedDraws(RandomKeys):
    """Draws in which all members of a group have the same numbers for some purposes."""

    shared: frozenset[str] = frozenset()

    def generator(self, position: int, sample: int, purpose: str) -> torch.Generator:
        """A fresh generator for one draw; of the first member where the purpose is shared."""
        return super().generator(position, 0 if purpose in self.shared else sample, purpose)


@dataclass(frozen=True)
class Case:
    """A model, where its prompts come from, how it samples, and what judges its pictures."""

    policy: Bagel
    prompts: PromptSource
    sampling: Sampling
    reward: CompositeReward
    seed: int
    towards: Tensor | None = None

    def judge(self, trajectories: Sequence[Trajectory]) -> Scored:
        """The reward of the pictures, and its parts."""
        images = decode_pictures(self.policy, trajectories).float() / 255.0
        prompts = [t.prompt for t in trajectories]
        thinking = [thinking_of(self.policy, t) for t in trajectories]
        return self.reward(RewardInput(images, [p.text for p in prompts], metadata_of(prompts), thinking))


def demo(model: str, reward: str, seed: int, towards: Sequence[str]) -> Case:
    """The demo's recipe with another model, reward or seed."""
    recipe = load_recipe(RECIPE)
    assert isinstance(recipe.data, PromptData)
    policy = build.policy(replace(recipe.model, path=model))
    assert isinstance(policy, Bagel)
    prompts, scorer = build.prompts(recipe.data.prompts, seed), build.reward([Scorer(name=reward)])
    aim = direction(policy, towards) if towards else None
    return Case(policy, prompts, build.training_sampling(recipe), scorer, seed, aim)


def variance(case: Case, sampling: Sampling, shared: frozenset[str], prompts: Sequence[Prompt]) -> Row:
    """Figures of the reward inside groups; ``correct`` in a name: of its yes-or-no part, where it has one."""
    draws, scored = SharedDraws(case.seed, 0, shared=shared), []
    for start in range(0, len(prompts), ROLLOUTS // GROUP):
        some = prompts[start : start + ROLLOUTS // GROUP]
        scored.append(case.judge(rollout(case.policy, EPISODE, some, sampling, group_size=GROUP, keys=draws)))
    row = spread([value for output in scored for value in output.values])
    answers = [value for output in scored for value in output.parts.get("correct", ())]
    return row | ({f"correct_{key}": value for key, value in spread(answers).items()} if answers else {})


def spread(rewards: Sequence[float]) -> Row:
    """Mean, variance inside groups, mean of the groups' standard deviations, and the share that teaches nothing."""
    groups = torch.tensor(rewards, dtype=torch.float64).reshape(-1, GROUP)
    inside = groups.var(1, correction=1)
    return {
        "mean": float(groups.mean()),
        "variance": float(inside.mean()),
        "variance_se": float(inside.std() / len(inside) ** 0.5),
        "group_std": float(groups.std(1, correction=0).mean()),
        "zero_share": float((groups.amax(1) - groups.amin(1) < 1e-3).double().mean()),
    }


def variances(case: Case, count: int, quick: bool) -> Iterator[Row]:
    """Every source for every window, noise level and kind; the ODE first, which has no SDE noise."""
    prompts = case.prompts.batch(0, count)
    plain = replace(case.sampling, window=None, window_size=0)
    for source in ("all", "plan", "image"):
        yield {"kind": "ode", "source": source, **variance(case, plain, SHARED[source], prompts)}
    settings = [(kind, window, level) for kind in KINDS for window in WINDOWS for level in LEVELS]
    for kind, window, level in settings[: 1 if quick else None]:
        sampling = replace(case.sampling, window=WINDOWS[window], window_size=3, noise_level=level, sde=kind)
        setting = {"kind": kind, "window": window, "noise_level": level}
        for source, shared in SHARED.items():
            yield {**setting, "source": source, **variance(case, sampling, shared, prompts)}


def direction(policy: Bagel, runs: Sequence[str]) -> Tensor:
    """The unit vector from this model to what training made of it: the mean over runs of their own unit vectors."""
    start = torch.cat([weight.detach().flatten() for weight in policy.denoising_parameters().values()])
    total = torch.zeros_like(start)
    for run in runs:
        end = build.policy(Model(path=run, device="cpu")).parameter_groups()["denoising"].values()
        move = torch.cat([weight.detach().flatten() for weight in end]) - start
        total += move / move.norm()
    return total / total.norm()


@dataclass(frozen=True)
class Setting:
    """How a batch of 96 is sampled, and the losses: with RatioNorm, without, of the reward's yes-or-no part alone."""

    sampling: Sampling
    size: int
    shared: frozenset[str]
    ways: tuple[str, ...]


def gradients(case: Case, setting: Setting, iteration: int) -> list[Tensor]:
    """The image term's gradient of one batch, flat, for each way to make a loss of it."""
    prompts = case.prompts.batch(iteration, ROLLOUTS // setting.size)
    draws = SharedDraws(case.seed, iteration, shared=setting.shared)
    trajectories = rollout(case.policy, EPISODE, prompts, setting.sampling, group_size=setting.size, keys=draws)
    output = case.judge(trajectories)
    paths = [path for t in trajectories if (path := t.images[-1].path) is not None]
    queries = [VelocityQuery(len(t.segments) - 1, path.x, path.t) for t, path in zip(trajectories, paths, strict=True)]
    answers = case.policy.replay([ReplayItem(t.segments, (q,)) for t, q in zip(trajectories, queries, strict=True)])
    velocities, groups = [answer.velocities[0] for answer in answers], [t.prompt.position for t in trajectories]
    weights, found = list(case.policy.denoising_parameters().values()), []
    for way in setting.ways:
        rewards = output.parts.get("correct", output.values) if way == "yes_or_no" else output.values
        advantages = Advantage().of(rewards, groups)
        loss = FlowGRPO(ratio_norm=way != "raw_ratio").term(velocities, paths, advantages).loss.mean()
        parts = torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True)
        found.append(torch.cat([part.flatten() for part in parts]))
    return found


def cosine(gram: Tensor) -> float:
    """Mean cosine between two different batches, about SNR / (1 + SNR) of one; from inner products [B, B]."""
    length = gram.diagonal().sqrt()
    return (float((gram / length[:, None] / length).sum()) - len(gram)) / (len(gram) * (len(gram) - 1))


def jackknife(rows: Tensor, statistic: Callable[[Tensor], float]) -> float:
    """Standard error of a statistic of B batches (a list of B numbers, or their inner products [B, B])."""
    kept = [torch.tensor([j for j in range(len(rows)) if j != i]) for i in range(len(rows))]
    left = [statistic(rows[k] if rows.ndim == 1 else rows[k][:, k]) for k in kept]
    return float(((len(rows) - 1) * torch.tensor(left, dtype=torch.float64).var(correction=0)).sqrt())


def signal(case: Case, setting: Setting, batches: int) -> Iterator[Row]:
    """What independent batches say in common, a row for each way."""
    collected = [gradients(case, setting, iteration) for iteration in range(batches)]
    for way, found in zip(setting.ways, zip(*collected, strict=True), strict=True):
        stack = torch.stack(found)
        gram = (stack @ stack.T).double()
        row: Row = {"way": way, "batches": batches, "cosine": cosine(gram), "cosine_se": jackknife(gram, cosine)}
        if case.towards is not None:
            along = -(stack @ case.towards).double()
            ratio, error = float(along.mean() / along.std()), jackknife(along, lambda u: float(u.mean() / u.std()))
            row |= {"along": float(along.mean()), "clarity": ratio, "clarity_se": error}
        yield row | {"rms_per_weight": float(stack.square().mean().sqrt())}


def signals(case: Case, batches: int, quick: bool) -> Iterator[Row]:
    """Group sizes, and a shared plan; then windows and noise levels at the recipe's group size."""
    base, own = case.sampling, SHARED["all"]
    groups = [(size, "own") for size in SIZES] + [(6, "shared")]
    for size, plan in groups[: 1 if quick else None]:
        tag = {"size": size, "plan": plan, "window": "recipe", "noise_level": base.noise_level, "kind": base.sde}
        setting = Setting(base, size, SHARED["image"] if plan == "shared" else own, WAYS[: 1 if quick else None])
        yield from ({**tag, **row} for row in signal(case, setting, batches))
    for window, level in STEP_SETTINGS[: 0 if quick else None]:
        sampling = replace(base, window=WINDOWS[window], window_size=3, noise_level=level)
        tag = {"size": 6, "plan": "own", "window": window, "noise_level": level, "kind": base.sde}
        yield from ({**tag, **row} for row in signal(case, Setting(sampling, 6, own, WAYS[:1]), batches))


def trained(folder: Path) -> Iterator[Row]:
    """The paired differences of every finished run in a folder, and what its last ten iterations say."""
    for path in sorted(folder.glob(f"*/{runlog.SUMMARY}")):
        flow = [line["flow"] for line in runlog.read_metrics(path.parents[1])[-10:]]
        last = {key: sum(line[key] for line in flow) / len(flow) for key in ("mse", "clip_fraction")}
        yield {"run": path.parents[1].name, **last, **runlog.read_json(path)["paired"]}


def draw(figures: Row) -> bytes:
    """A PNG of two panels: the reward's variance by source and window, and the clarity of every setting."""
    from matplotlib.figure import Figure

    if not {"variance", "gradient"} <= figures.keys() or "clarity" not in figures["gradient"][0]:
        raise ValueError("the figure shows both parts, and a clarity: measure both, the gradient with --towards")
    figure = Figure(figsize=(11.0, 4.2), layout="constrained")
    first, second = figure.subplots(1, 2)
    for index, source in enumerate(SHARED):
        flow = [row for row in figures["variance"] if row["kind"] == "flow" and row["noise_level"] == 0.8]
        rows = [row for row in flow if row["source"] == source]
        heights, errors = [row["variance"] for row in rows], [row["variance_se"] for row in rows]
        first.bar([x + 0.17 * (index - 2) for x in range(len(rows))], heights, 0.17, yerr=errors, label=source)
    first.set(xticks=range(len(WINDOWS)), xticklabels=list(WINDOWS), xlabel="window, level 0.8", ylabel="variance")
    labels = list(dict.fromkeys(label(row) for row in figures["gradient"]))
    for way in dict.fromkeys(row["way"] for row in figures["gradient"]):
        rows = [row for row in figures["gradient"] if row["way"] == way]
        places = [0.15 * (1 - WAYS.index(way)) - labels.index(label(row)) for row in rows]
        values, errors = [row["clarity"] for row in rows], [row["clarity_se"] for row in rows]
        second.errorbar(values, places, xerr=errors, fmt="o", capsize=2, label=way)
    second.set(xlim=(0, None), yticks=[-place for place in range(len(labels))], yticklabels=labels)
    second.set(xlabel="clarity of one batch of 96", title="The gradient, along a direction that is known to help")
    first.set(title="The reward inside a group: what differs")
    for axes in (first, second):
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=5)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def label(row: Row) -> str:
    groups = f"{ROLLOUTS // row['size']} x {row['size']}, {row['plan']} plan"
    return groups if row["window"] == "recipe" else f"16 x 6, {row['window']}, {row['noise_level']:g}"


def shown(rows: Iterator[Row]) -> list[Row]:
    """All rows, printed as they come."""
    kept = []
    for row in rows:
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
        kept.append(row)
    return kept


def main() -> None:
    """Measure and print; write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:shapes-sft")
    parser.add_argument("--reward", default="shapes/verifier", help="the name of a registered reward")
    parser.add_argument("--seed", type=int, default=1000, help="of prompts and draws")
    parser.add_argument("--part", choices=("variance", "gradient"), help="measure only this")
    parser.add_argument("--prompts", type=int, default=2, help="groups of 12 for each variance")
    parser.add_argument("--batches", type=int, default=3, help="batches of 96 for each gradient, 3 or more")
    parser.add_argument("--towards", nargs="+", default=[], help="runs whose change of the weights is the direction")
    parser.add_argument("--out", type=Path, help="JSON file of the figures; what it holds already is kept")
    parser.add_argument("--runs", type=Path, help="folder of training runs to list; nothing is measured")
    parser.add_argument("--figure", type=Path, help="PNG file to draw")
    parser.add_argument("--quick", action="store_true", help="the first settings only: the same code in seconds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    count, batches = (2, 3) if arguments.quick else (arguments.prompts, arguments.batches)
    figures = {"benchmark": "image_signal", "model": arguments.model, "reward": arguments.reward}
    figures |= runlog.read_json(arguments.out) if arguments.out else {}
    if arguments.runs:
        figures["training"] = shown(trained(arguments.runs))
    else:
        figures |= {"environment": runlog.environment()}
        case = demo(arguments.model, arguments.reward, arguments.seed, arguments.towards)
        if arguments.part != "gradient":
            figures |= {"prompts": count, "variance": shown(variances(case, count, arguments.quick))}
        if arguments.part != "variance":
            figures |= {"gradient": shown(signals(case, batches, arguments.quick))}
    if arguments.out:
        write_json_atomic(arguments.out, figures)
    if arguments.figure:
        write_bytes_atomic(arguments.figure, draw(figures))


if __name__ == "__main__":
    main()
