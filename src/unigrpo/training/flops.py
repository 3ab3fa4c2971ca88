"""FLOPs of an iteration, counted from the trajectories that it drew, and how much of the machine's peak that is.

Counted are the model's own products for the tokens that there are: reading prompts, thinking, drawing, replays and
their backward passes. What padding adds, the decoding of pictures (a part of ``seconds.reward``), rewards and
validations are not. Of several ranks it is what one process would do. Source: docs/scaling.md.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from unigrpo.costs.counting import Block, Counting, Packed
from unigrpo.costs.sizes import ModelSizes
from unigrpo.recipe import Recipe
from unigrpo.recipe.schema import how_trained
from unigrpo.recipe.sections import PromptData
from unigrpo.rollout.sample import part_of
from unigrpo.training.components import RunComponents
from unigrpo.training.peak import SIDES, Peak, peak_of
from unigrpo.training.replay import Batch, minibatches
from unigrpo.training.round_flops import Turn, of_turns, read_of, turns_of
from unigrpo.training.sources import RolloutBatch
from unigrpo.trajectory import Image, Segment, Text, Trajectory

PHASES = ("rollout", "annotate", "update")
"""The seconds in which the counted products happen."""


@dataclass(frozen=True)
class Row:
    """A trajectory in numbers: what it is told (its ids, and how many tokens), the tokens from its first own text on,
    which of them are scored, its picture's tokens, how many noisy copies are asked for, and whose thinking it has.

    Of a prompt with pictures: shown, their latent tokens, and seen, the patches of each as it is seen (which ``before``
    has as well, with the markers of both).

    Of several rounds: looked, the latent tokens of what was looked at, views, the patches of each such picture as seen
    (beside ``after``, which has the other tokens of a look), and turns, what was done after the prompt, in order.
    """

    told: tuple[Hashable, ...]
    before: int
    after: int
    scored: int
    image_tokens: int
    copies: int
    thought: tuple[int, int]
    shown: int = 0
    seen: tuple[int, ...] = ()
    looked: int = 0
    views: tuple[int, ...] = ()
    turns: tuple[Turn, ...] = ()

    @property
    def prompt(self) -> int:
        """All tokens of what it is told and shown."""
        return self.before + self.shown

    @property
    def context(self) -> int:
        """All tokens that a noisy copy continues."""
        return self.prompt + self.after + self.looked


def row_of(trajectory: Trajectory, recipe: Recipe) -> Row | None:
    """A trajectory of words, given pictures before them and one to draw or learn, the last, or of several rounds; None
    for any other."""
    if len(trajectory.rounds) > 1:
        return rounds_row(trajectory, recipe)
    segments = trajectory.segments
    picture = segments[-1] if isinstance(segments[-1], Image) else None
    context = segments if picture is None else segments[:-1]
    first = next((i for i, s in enumerate(context) if isinstance(s, Text) and s.scored), len(context))
    words = [text for text in context[first:] if isinstance(text, Text)]
    learned = any(isinstance(s, Image) and s.target for s in context)
    if learned or len(words) < len(context) - first:
        return None
    asked = picture is not None and (picture.target or picture.drawn or picture.path is not None)
    each = recipe.rollout.images_per_thinking
    given = read_of(context[:first])
    return Row(
        told=told_of(context[:first], trajectory, recipe),
        before=given.und,
        after=read_of(words).und,
        scored=sum(text.num_actions for text in words if text.scored),
        image_tokens=picture.grid[0] * picture.grid[1] if picture is not None else 0,
        copies=recipe.method.copies(recipe.rollout.window_size) if asked else 0,
        thought=(trajectory.prompt.position, trajectory.sample // each),
        shown=given.latents,
        seen=given.views,
    )


def told_of(given: Sequence[Segment], trajectory: Trajectory, recipe: Recipe) -> tuple[Hashable, ...]:
    """What tells a beginning from others in a replay: ids of words; pictures by their prompt and place, and by the part
    of a group that was drawn together, which had them read anew."""
    position, part = trajectory.prompt.position, trajectory.sample // drawn_together(recipe)
    return tuple(
        tuple(s.ids.tolist()) if isinstance(s, Text) else (position, part, place) for place, s in enumerate(given)
    )


def group_of(recipe: Recipe) -> int:
    """Samples of a prompt."""
    return recipe.data.group_size if isinstance(recipe.data, PromptData) else 1


def drawn_together(recipe: Recipe) -> int:
    """Those of them that are drawn together."""
    return part_of(group_of(recipe), recipe.rollout.batch, recipe.rollout.images_per_thinking)


def rounds_row(trajectory: Trajectory, recipe: Recipe) -> Row:
    """A trajectory of several rounds; its first thinking may be shared."""
    given = read_of(trajectory.given)
    turns, drawings = turns_of(trajectory), trajectory.drawings
    copies = recipe.method.copies(recipe.rollout.window_size) * len(drawings)
    ends = [n for n, turn in enumerate(turns) if turn.written or (turn.drawn and copies)]
    read = [turn for turn in turns[: max(ends, default=-1) + 1] if not turn.drawn]
    return Row(
        told=told_of(trajectory.given, trajectory, recipe),
        before=given.und,
        after=sum(turn.und for turn in read),
        scored=sum(turn.scored for turn in read),
        image_tokens=drawings[0].grid[0] * drawings[0].grid[1],
        copies=copies,
        thought=(trajectory.prompt.position, trajectory.sample // recipe.rollout.images_per_thinking),
        shown=given.latents,
        seen=given.views,
        looked=sum(turn.latents for turn in read),
        views=tuple(view for turn in read for view in turn.views),
        turns=turns,
    )


def counting_of(recipe: Recipe, sizes: ModelSizes) -> Counting:
    """The FLOPs of a run's model, trained as its recipe says."""
    return Counting(
        sizes,
        how_trained(recipe, "reasoning"),
        how_trained(recipe, "denoising"),
        rank=recipe.model.lora.rank if recipe.model.lora else 0,
        checkpointing=recipe.model.activation_checkpointing,
        through_context=recipe.method.image_grad_through_context,
    )


def iteration_flops(recipe: Recipe, sizes: ModelSizes, collected: RolloutBatch) -> float | None:
    """FLOPs of an iteration; None where the training's pictures are guided, or what is learned has several."""
    samples = collected.samples or collected.trajectories
    trained = [t for t in samples if t.failure is None]
    rows = {id(t): row_of(t, recipe) for t in samples}
    if recipe.rollout.guidance != 1 or any(row is None for row in rows.values()):
        return None
    counts, known = counting_of(recipe, sizes), {key: row for key, row in rows.items() if row is not None}
    total = drawn(recipe, counts, list(known.values())) if recipe.method.learns_from == "prompts" else 0.0
    for part in minibatches(Batch(trained, [()] * len(trained)), recipe.optimizer.minibatches) if trained else ():
        for piece in part.pieces(recipe.optimizer.micro_batch):
            packed = packed_of([known[id(t)] for t in piece.trajectories], counts)
            forward, passes = counts.replay(packed), recipe.optimizer.ppo_epochs
            total += replays_before(recipe) * forward + passes * (forward + counts.replay_backward(packed))
    if recipe.method.needs_reward_gradient and sizes.autoencoder is not None:  # through a frozen decoder, and back
        pixels = sum(known[id(t)].image_tokens for t in trained) * sizes.pixels_per_token**2 / max(1, len(trained))
        total += recipe.optimizer.ppo_epochs * 2 * len(trained) * sizes.autoencoder.flops(round(pixels))
    return total


def replays_before(recipe: Recipe) -> int:
    """Replays before the update: the reference's, old values below fp32, the velocities of forward-noise methods."""
    old_values = recipe.method.needs_old_values and recipe.model.dtype != "float32"
    return int(recipe.method.needs_reference) + int(old_values) + int(recipe.method.needs_behaviour_velocity)


def drawn(recipe: Recipe, counts: Counting, rows: Sequence[Row]) -> float:
    """FLOPs of a rollout: each prompt once per group (or part of one), each thought once, each step of each picture."""
    parts = -(-group_of(recipe) // drawn_together(recipe))
    prompts = {row.thought[0]: row for row in rows}
    thoughts = {row.thought: row for row in rows if row.scored}
    total = float(sum(parts * counts.look(0, row.before, row.shown, row.seen) for row in prompts.values()))
    steps = recipe.rollout.num_points - 1
    if any(row.turns for row in rows):
        total += sum(of_turns(row.turns or one_round(row), row.prompt, counts, steps) for row in rows)
        return total - sum(first_thinking(row, counts) for row in rows if thoughts.get(row.thought, row) is not row)
    total += sum(counts.think(1, row.prompt, row.after, row.scored) for row in thoughts.values())
    return total + steps * sum(counts.velocity(row.context, row.image_tokens) for row in rows)


def first_thinking(row: Row, counts: Counting) -> float:
    """FLOPs of the first thinking of a sample."""
    turn = (row.turns or one_round(row))[0]
    return counts.think(1, row.prompt, turn.und, turn.scored) if turn.scored else 0.0


def one_round(row: Row) -> tuple[Turn, ...]:
    """The turns of a sample that has no later round, among others that do."""
    return (Turn(und=row.after, scored=row.scored, written=True), Turn(latents=row.image_tokens, drawn=True))


def packed_of(rows: Sequence[Row], counts: Counting) -> Packed:
    """A micro-batch as the packed replay computes it: what is shared is read once, and a picture's copies follow."""
    shared = {row.told: row for row in rows}
    apart = len(shared) == len(rows) or not any(row.prompt for row in shared.values())
    learns, draws = counts.reasoning != "frozen", counts.denoising != "frozen"
    blocks: list[Block] = []
    contexts: dict[Hashable, Row] = {}
    if not apart:
        und, shown = sum(row.before for row in shared.values()), sum(row.shown for row in shared.values())
        pairs, pictures = sum(row.prompt**2 for row in shared.values()), shown > 0
        blocks.append(Block(und, shown, pairs, und + shown, learns or (pictures and draws), pictures, pictures))
    for number, row in enumerate(rows):
        alone = apart or not row.scored or bool(row.turns)
        contexts.setdefault(number if alone else (row.told, row.thought), row)
    own = [(row.before * apart + row.after, row.looked + row.shown * apart, row.context) for row in contexts.values()]
    latents, clean = sum(gen for _, gen, _ in own), any(row.looked + row.shown for row in contexts.values())
    if read := sum(und for und, _, _ in own):
        pairs, keys = sum((und + gen) * context for und, gen, context in own), sum(context for *_, context in own)
        blocks.append(Block(read, latents, pairs, keys, learns or (clean and draws), clean))
    drawn = [(row.copies, row.image_tokens, row.context) for row in rows if row.copies]
    images, tokens = sum(k for k, *_ in drawn), sum(k * n for k, n, _ in drawn)
    if images:
        keys = sum(k * (context + n + 2) for k, n, context in drawn)
        pairs = sum(k * (n + 2) * (context + n + 2) for k, n, context in drawn)
        blocks.append(Block(2 * images, tokens, pairs, keys, True))
    scored = sum(row.scored for row in contexts.values())
    reading = contexts.values() if apart else shared.values()
    views = [view for row in reading for view in row.seen] + [view for row in contexts.values() for view in row.views]
    looked = latents + sum(row.shown for row in shared.values()) * (not apart)
    return Packed(blocks, scored, images, tokens // images if images else 0, looked, views)


def utilization(flops: float, seconds: Mapping[str, float], peak: float, ranks: int) -> float:
    """The share of the peak of all ranks that the rollout, the annotation and the update have reached."""
    return flops / sum(seconds.get(phase, 0.0) for phase in PHASES) / peak / ranks


@dataclass(frozen=True)
class Effort:
    """What a run says of its FLOPs: nothing (``peak`` None) for a model whose sizes are not known."""

    recipe: Recipe
    sizes: ModelSizes | None
    peak: Peak | None
    ranks: int

    @classmethod
    def of_run(cls, recipe: Recipe, parts: RunComponents) -> Effort:
        """Of the parts of a run; this measures the machine's peak, where nobody states it."""
        sizes, ranks = parts.policy.sizes, parts.world.size
        if sizes is None:
            return cls(recipe, None, None, ranks)
        kind = next(parts.policy.module.parameters()).device.type
        known = kind in SIDES
        return cls(recipe, sizes if known else None, peak_of(kind, parts.compute_dtype) if known else None, ranks)

    @property
    def facts(self) -> dict[str, Any]:
        """For environment.json."""
        return {} if self.peak is None else {"peak": asdict(self.peak)}

    def of(self, collected: RolloutBatch, seconds: Mapping[str, float]) -> dict[str, float]:
        """``flops`` and ``utilization`` of an iteration, where they are known."""
        if self.sizes is None or self.peak is None:
            return {}
        flops = iteration_flops(self.recipe, self.sizes, collected)
        if flops is None:
            return {}
        return {"flops": flops, "utilization": round(utilization(flops, seconds, self.peak.flops, self.ranks), 4)}
