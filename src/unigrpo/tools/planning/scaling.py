"""What a recipe costs on 1 to 512 GPUs, before anything is loaded: memory, FLOPs, time, traffic (docs/scaling.md).

On one GPU the memory parts and FLOPs are formulas that tests compare with measured tensors and counted products, and
what ranks send is compared with bytes counted on CPU ranks. Times follow from assumed speeds and were not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from unigrpo.costs.sizes import EXPERTS, ModelSizes
from unigrpo.plurals import counted
from unigrpo.recipe.schema import Recipe
from unigrpo.tools.planning import memory
from unigrpo.tools.planning.communication import Traffic, traffic
from unigrpo.tools.planning.compute import Compute, compute, look, thinking, velocities
from unigrpo.tools.planning.look_memory import looking as looking_of
from unigrpo.tools.planning.look_memory import reading
from unigrpo.tools.planning.looks import NO_LOOK, look_sizes
from unigrpo.tools.planning.workload import PROMPT_TOKENS, Layout, Workload, workload

GPUS = (1, 2, 4, 8, 16, 64, 512)
BANDWIDTH = 3350.0  # GB/s: an H100's
GIGA, TERA = 1e9, 1e12
BYTES = ((1e9, "GB"), (1e6, "MB"))
FLOPS = ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"))
SHARDED = "* parallel.mode shard, drawn with a whole copy; all of several GPUs is computed, and measured on no GPU"
SMALL = 1.0  # seconds of an iteration below which starting operations takes longer than doing them
PHASES = (
    ("prefill", "prompts"),
    ("think", "thinking"),
    ("draw", "drawing"),
    ("look", "looking"),
    ("decode", "pixels"),
    ("score", "scoring"),
    ("update", "update"),
)


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU by part; the first five are there all the time."""

    weights: float
    reference: float
    average: float
    gradients: float
    optimizer: float
    trajectories: float
    casts: float
    activations: float
    logits: float
    backward: float
    cache: float
    drawing: float
    decoding: float
    looking: float
    replica: float
    rollout_peak: float
    update_peak: float
    step_peak: float

    @property
    def peak(self) -> float:
        """The most at once."""
        return max(self.rollout_peak, self.update_peak, self.step_peak)


@dataclass(frozen=True)
class Estimate:
    """What one iteration of a recipe costs each GPU of ``work.layout``."""

    work: Workload
    memory: Memory
    compute: Compute
    traffic: Traffic

    def seconds(self, *, tflops: float, mfu: float, bandwidth: float = BANDWIDTH) -> dict[str, float]:
        """Seconds by phase at ``mfu`` times ``tflops``; a decoding step takes at least its bytes / ``bandwidth`` GB/s.

        Scoring by the reward, and what GPUs send each other (``traffic.seconds``), are not in it.
        """
        c, speed = self.compute, tflops * TERA * mfu
        read = c.portions * c.think_steps * c.bytes_per_step / (bandwidth * GIGA)
        phases = {
            "prefill": c.prefill / speed,
            "think": max(c.think / speed, read),
            "draw": c.draw / speed,
            "look": c.look / speed,
            "decode": c.decode / speed,
            "score": c.score / speed,
            "update": c.update / speed,
        }
        return {**phases, "total": sum(phases.values())}


def estimate(
    recipe: Recipe,
    sizes: ModelSizes,
    layout: Layout | None = None,
    *,
    prompt_tokens: int = PROMPT_TOKENS,
    actions: int | None = None,
) -> Estimate:
    """The numbers for one GPU of a layout (None: one alone); ``actions``: tokens of a thinking (None: the cap)."""
    work = workload(recipe, sizes, layout or Layout(), prompt_tokens=prompt_tokens, actions=actions)
    cost = compute(work)
    return Estimate(work, memory_of(recipe, work), cost, traffic(work, cost))


def memory_of(recipe: Recipe, work: Workload) -> Memory:
    """Every part of the memory, and the three moments at which most is held."""
    kind = recipe.optimizer.kind
    weights, reference, gradients = memory.weights(work), memory.reference(work), memory.gradients(work)
    average = gradients if recipe.optimizer.ema else 0.0
    moments, trajectories = memory.moments(work, kind), memory.trajectories(work)
    casts, cache = memory.casts(work), memory.cache(work)
    drawing, decoding = memory.drawing(work), memory.decoding(work, recipe.model.autoencoder)
    replica = memory.replica(work)
    looking = max(looking_of(work, decoding), reading(work))
    drawn = replica + max(cache + memory.drawn_casts(work) + max(drawing, looking), decoding)
    always = weights + reference + average + moments + trajectories
    return Memory(
        weights=weights,
        reference=reference,
        average=average,
        gradients=gradients,
        optimizer=moments,
        trajectories=trajectories,
        casts=casts,
        activations=memory.activations(work),
        logits=memory.logits(work) + memory.logits_working(work),
        backward=memory.backward_working(work),
        cache=cache,
        drawing=drawing,
        decoding=decoding,
        looking=looking,
        replica=replica,
        rollout_peak=0.0 if work.supervised else always + drawn,
        update_peak=always + memory.update_peak(work),
        step_peak=always + gradients + memory.step_working(work, kind),
    )


# The report


def scaling_report(
    recipe: Recipe,
    sizes: ModelSizes,
    *,
    tflops: float,
    mfu: float,
    gpus: Sequence[int] = GPUS,
    bandwidth: float = BANDWIDTH,
    prompt_tokens: int = PROMPT_TOKENS,
    actions: int | None = None,
) -> list[str]:
    """The lines of the dry run, at most 120 columns: parameters, an iteration's forwards, and tables over GPUs."""
    made = [estimate(recipe, sizes, Layout(n), prompt_tokens=prompt_tokens, actions=actions) for n in gpus]
    others = [
        [estimate(recipe, sizes, layout, prompt_tokens=prompt_tokens, actions=actions) for layout in kind]
        for kind in ([Layout(n, "replicate") for n in gpus], [Layout(n, rollout="sharded") for n in gpus])
    ]
    one = estimate(recipe, sizes, prompt_tokens=prompt_tokens, actions=actions)
    return [
        *_parameters(one.work),
        "",
        *_iteration(one, bandwidth),
        "",
        *_memory_table(made, others),
        "",
        *_time_table(recipe, made, tflops=tflops, mfu=mfu, bandwidth=bandwidth),
    ]


def _parameters(work: Workload) -> list[str]:
    s = work.sizes
    lines = [f"parameters: {s.model_parameters:,}, and {s.autoencoder_parameters:,} of the autoencoder"]
    for expert in EXPERTS:
        training = work.training(expert)
        how = {
            "full": "trained, kept in fp32",
            "lora": f"frozen; {s.adapter(work.rank):,} of its adapters (rank {work.rank}) are trained, in fp32",
            "frozen": "frozen",
        }[training]
        lines.append(f"  {expert:<15}{s.expert(expert):>16,}  {how}")
    seeing = s.vision_parameters + s.connector
    if seeing:
        lines.append(f"  {'vision':<15}{seeing:>16,}  {'trained, kept in fp32' if work.train_vision else 'frozen'}")
    lines.append(f"  {'position tables':<15}{s.tables:>16,}  frozen")
    kept, stored = "fp32" if work.compute == memory.FP32 else "bf16", s.storage_bytes * s.model_parameters
    unit, name = _unit(stored, BYTES)
    kept += ", the matrices of the experts' MLPs in 4 bits" if work.quantized else ""
    return [*lines, f"  what is frozen is kept in {kept}; the checkpoint's file has {_number(stored / unit)} {name}"]


def _iteration(one: Estimate, bandwidth: float) -> list[str]:
    w, c = one.work, one.compute
    thinking = f", and {w.actions} of every thinking" if w.actions else ""
    lines = [
        f"an iteration: {counted(w.rows, 'row')} of {w.image_tokens} latent tokens{_rounds(w)}",
        f"  assumed: {w.prompt_tokens} tokens of every prompt (the system prompt included){thinking}",
        *_given(w),
    ]
    if not w.supervised:
        together = f"{counted(w.drawn, 'row')} at a time" if w.drawn < w.rows else "all rows together"
        drawn = counted(c.portions * c.draw_steps, "denoising forward")
        forwards = f"{c.portions * c.think_steps} decoding and {drawn}"
        lines.append(f"  rollout: {counted(w.prompts, 'prompt')} read, {forwards} ({together})")
    if c.bytes_per_step:
        (unit, name), least = _unit(c.bytes_per_step, BYTES), 1e3 * c.bytes_per_step / (bandwidth * GIGA)
        moved = f"{_number(c.bytes_per_step / unit)} {name}"
        lines.append(f"  a decoding step moves {moved}: at {bandwidth:g} GB/s it takes at least {_number(least)} ms")
    scored = f"replays without gradients: {c.scored}; " if c.scored else ""
    lines.append(f"  {scored}with: {w.passes} x {c.replays} of {counted(w.micro, 'row')}; optimizer steps: {c.updates}")
    unit, name = _unit(c.total, FLOPS)
    shares = [f"{label} {_number(getattr(c, phase) / unit)}" for phase, label in PHASES if getattr(c, phase)]
    return [*lines, f"  {name}: {_number(c.total / unit)} = {' + '.join(shares)}"]


def _given(work: Workload) -> list[str]:
    """What the pictures of a prompt are to read, where it has any."""
    if not work.given:
        return []
    pictures, patches = len(work.given), sum(look.patches for look in work.given)
    seen = f" and {counted(patches, 'patch')}" if patches else ""
    many = "a picture" if pictures == 1 else counted(pictures, "picture")
    return [f"  every prompt with {many}: {work.shown} latents{seen} to read (the most of the first prompts)"]


def _rounds(work: Workload) -> str:
    """How many pictures a row has, where it has several, and what a look at one gives it to read."""
    if work.rounds == 1:
        return ""
    seen = f" and {counted(work.look.patches, 'patch')}" if work.look.patches else ""
    return f" in {counted(work.rounds, 'round')} (a look reads {work.look.latents} latents{seen})"


def _unit(value: float, units: Sequence[tuple[float, str]]) -> tuple[float, str]:
    """The largest unit of which there is at least one, else the smallest."""
    return next((unit for unit in units if value >= unit[0]), units[-1])


def _number(value: float) -> str:
    """Three or four figures, whatever the size."""
    if value == 0:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _row(label: str, values: Sequence[float]) -> str:
    return f"{label:<36}" + "".join(f"{_number(v):>12}" for v in values)


def _heading(title: str, made: Sequence[Estimate]) -> str:
    names = [str(e.work.gpus) if e.work.gpus == 1 else f"{e.work.gpus} *" for e in made]
    return f"{title:<36}" + "".join(f"{name:>12}" for name in names)


def _memory_table(made: Sequence[Estimate], others: Sequence[Sequence[Estimate]]) -> list[str]:
    parts = (
        ("weights", "weights"),
        ("reference copy", "reference"),
        ("moving average", "average"),
        ("gradients", "gradients"),
        ("optimizer", "optimizer"),
        ("trajectories", "trajectories"),
        ("casts of weights (*: gathered)", "casts"),
        ("update: activations", "activations"),
        ("update: logits", "logits"),
        ("update: backward, working", "backward"),
        ("rollout: cache", "cache"),
        ("rollout: drawing, working", "drawing"),
        ("rollout: pixels, working", "decoding"),
        ("rollout: looking, working", "looking"),
        ("rollout: a whole copy of the weights", "replica"),
        ("peak of the rollout", "rollout_peak"),
        ("peak of the update", "update_peak"),
        ("peak of the optimizer's step", "step_peak"),
    )
    unit, of = _unit(max(e.memory.peak for e in made), BYTES)
    rows = [(label, [getattr(e.memory, name) / unit for e in made]) for label, name in parts]
    return [
        _heading(f"{of} on each GPU, by GPUs", made),
        *(_row(label, values) for label, values in rows if any(values)),
        *(
            _row(label, [e.memory.peak / unit for e in kind])
            for label, kind in zip(("peak with replicate", "peak, rollout_weights sharded"), others, strict=True)
        ),
        *(
            _row(f"GB sent by a GPU: {label}", [e.traffic.total / GIGA for e in kind])
            for label, kind in zip(("shard", "replicate", "lockstep"), (made, *others), strict=True)
        ),
        SHARDED,
    ]


def _time_table(recipe: Recipe, made: Sequence[Estimate], *, tflops: float, mfu: float, bandwidth: float) -> list[str]:
    times = [e.seconds(tflops=tflops, mfu=mfu, bandwidth=bandwidth) for e in made]
    names = (*PHASES, ("total", "an iteration"))
    rows = [(f"s: {label}", [t[key] for t in times]) for key, label in names]
    unit, of = _unit(max(e.compute.total for e in made), FLOPS)
    small = ["a model this small is bound by starting operations, not by FLOPs: expect much more"]
    evaluation = [_evaluation(recipe, e) / (tflops * TERA * mfu) for e in made]
    return [
        _heading("an iteration, by GPUs", made),
        _row(f"{of} on each GPU", [e.compute.total / unit for e in made]),
        *(_row(label, values) for label, values in rows if any(values)),
        _row(f"s: an evaluation of {counted(recipe.eval.limit, 'picture')}", evaluation),
        f"times are estimates at {mfu:.0%} of {tflops:g} TFLOP/s and at {bandwidth:g} GB/s, not measured on a GPU;",
        "rewards, loading, saving and what GPUs send each other are not in them",
        *(small if times[0]["total"] < SMALL else []),
    ]


def _evaluation(recipe: Recipe, made: Estimate) -> float:
    """FLOPs of one cadence evaluation on one GPU; a guided step is two forwards, of pictures three."""
    e, sizes = recipe.eval, made.work.sizes
    rounds = e.rounds or recipe.rollout.rounds
    seen = look_sizes(sizes, recipe.rollout.image_size) if rounds > 1 else NO_LOOK
    w = replace(made.work, rounds=rounds, look=seen, branches=1 + (e.guidance > 1))
    thoughts = sum(thinking(w, turn) for turn in range(1, rounds + 1)) if e.think else 0.0
    forwards = (e.num_points - 1) * (w.branches + (e.image_guidance > 1))
    pixels = rounds * sizes.autoencoder.flops(w.pixels) if sizes.autoencoder else 0.0
    return e.limit / w.gpus * (thoughts + forwards * velocities(w) + pixels + look(w))
