"""What an iteration of a recipe asks of one GPU: how many rows and tokens, what is trained, and the replay's blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from unigrpo.costs.counting import Block, Training
from unigrpo.costs.sizes import Expert, ModelSizes
from unigrpo.recipe.schema import Recipe, how_trained
from unigrpo.recipe.sections import PromptData
from unigrpo.rollout.sample import part_of
from unigrpo.tools.planning.given import given_looks
from unigrpo.tools.planning.looks import NO_LOOK, LookSizes, look_sizes

PROMPT_TOKENS = 128  # assumed where nothing else is said: BAGEL's system prompt is about half of it
WIDTH = {"float32": 4, "bfloat16": 2}
Mode = Literal["replicate", "shard"]


@dataclass(frozen=True)
class Layout:
    """How ``gpus`` ranks hold the weights, as the recipe's section ``parallel`` says it.

    replicate: all of them on every rank; shard: shared out over the gpus / ``replicas`` ranks of a group (FSDP2; HSDP
    with more than one replica). rollout: what samples are drawn with under shard, a whole ``replica`` on every rank, or
    the shares in lockstep (``sharded``). offload: the shares, gradients and moments are in the CPU's memory.
    """

    gpus: int = 1
    mode: Mode = "shard"
    replicas: int = 1
    rollout: Literal["replica", "sharded"] = "replica"
    offload: bool = False

    @property
    def shards(self) -> int:
        """Ranks over which one copy of the weights is shared out."""
        return self.gpus // self.replicas if self.mode == "shard" else 1

    @property
    def has_replica(self) -> bool:
        """Whether a rollout draws with a whole copy beside the shares."""
        return self.shards > 1 and self.rollout == "replica"


@dataclass(frozen=True)
class Workload:
    """One iteration on one of the GPUs of a layout.

    rows: trajectories (or demonstrations), of ``prompts`` prompts; drawn: those that are drawn together; micro: those
    of one replay; each: rows that share a thinking. prompt_tokens: all words that are given (bos, eos); actions:
    sampled (or learned) tokens of a text, taken to end at the cap; copies: noisy images per row in a replay; steps:
    denoising steps per picture, of ``branches`` forwards each (guidance). compute: bytes of the computation's dtype.
    rescored: replays before the update for old log-probs (below fp32) and old velocities; through_decoder: gradients
    pass through it (ReFL). quantized: the matrices under adapters are held in 4 bits. rounds:
    pictures of a row, none of which stops before; look: what a look at one gives it to read; given: the same of the
    pictures that come with a prompt.
    """

    sizes: ModelSizes
    layout: Layout
    rows: int
    prompts: int
    drawn: int
    micro: int
    group: int
    each: int
    prompt_tokens: int
    actions: int
    image_tokens: int
    copies: int
    steps: int
    reasoning: Training
    denoising: Training
    rank: int
    compute: int
    checkpointing: bool
    passes: int
    minibatches: int
    supervised: bool
    through_context: bool
    reference: bool
    train_vision: bool
    branches: int
    rescored: int
    through_decoder: bool
    quantized: bool = False
    rounds: int = 1
    look: LookSizes = NO_LOOK
    given: tuple[LookSizes, ...] = ()

    @property
    def gpus(self) -> int:
        """GPUs that share the rows."""
        return self.layout.gpus

    @property
    def shards(self) -> int:
        """GPUs that share one copy of the weights."""
        return self.layout.shards

    def training(self, expert: Expert) -> Training:
        """How an expert is trained."""
        return self.reasoning if expert == "reasoning" else self.denoising

    @property
    def text_trains(self) -> bool:
        """Whether gradients pass through the text's own block."""
        return self.reasoning != "frozen"

    @property
    def text_flows(self) -> bool:
        """Whether words have gradients: also where drawings are trained alone, and words follow what was looked at."""
        return self.text_trains or (self.looked > 0 and self.denoising != "frozen")

    @property
    def thoughts(self) -> int:
        """Texts that are decoded."""
        return math.ceil(self.rows / self.each)

    def thinking(self, turn: int) -> int:
        """Thinkings of a round (from 1): the first one may be shared."""
        return self.thoughts if turn == 1 else self.rows

    @property
    def replayed_texts(self) -> int:
        """Contexts of one replay: one for the rows that share their thinking, if they look at nothing of their own."""
        return math.ceil(self.micro / self.each) if self.rounds == 1 else self.micro

    @property
    def think_tokens(self) -> int:
        """Tokens of the thinking in the context: bos, the sampled ones, eos."""
        return self.actions + 2 if self.actions else 0

    @property
    def shown(self) -> int:
        """Latent tokens of the pictures of a prompt."""
        return sum(look.latents for look in self.given)

    @property
    def before(self) -> int:
        """All tokens of a prompt: its words and its pictures."""
        return self.prompt_tokens + sum(look.tokens for look in self.given)

    @property
    def parts(self) -> int:
        """Parts of a group that are drawn one after the other, and read their prompt each."""
        return -(-min(self.group, self.rows) // self.drawn)

    @property
    def portions(self) -> int:
        """Parts of an iteration that are drawn one after the other."""
        return self.prompts * self.parts if self.drawn < self.group else -(-self.rows // self.drawn)

    @property
    def prompts_read(self) -> int:
        """Prompts that one replay reads: shared ones once, else each row its own."""
        return self.shared or self.replayed_texts

    @property
    def context_tokens(self) -> int:
        """Tokens that a row's (last) picture is drawn from."""
        return self.context_of(self.rounds)

    def context_of(self, turn: int) -> int:
        """Tokens that the picture of a round (from 1) is drawn from."""
        return self.before + turn * self.think_tokens + (turn - 1) * self.look.tokens

    @property
    def looks(self) -> int:
        """Looks of a row."""
        return self.rounds - 1

    @property
    def scored(self) -> int:
        """Words of one replay that are scored."""
        return self.replayed_texts * self.actions * self.rounds

    @property
    def images(self) -> int:
        """Noisy images of one replay."""
        return self.micro * self.copies * self.rounds

    @property
    def looked(self) -> int:
        """Latent tokens of one replay that are looked at, those of given pictures among them."""
        return self.replayed_texts * self.looks * self.look.latents + self.prompts_read * self.shown

    @property
    def views(self) -> tuple[int, ...]:
        """The patches of each picture that one replay sees."""
        looks = (self.look,) * (self.replayed_texts * self.looks) + self.given * self.prompts_read
        return tuple(look.patches for look in looks if look.patches)

    @property
    def shared(self) -> int:
        """Prompts that are read once for several rows of a micro-batch; 0: every row reads its own."""
        distinct = math.ceil(self.micro / self.group)
        return distinct if distinct < self.micro else 0

    @property
    def pixels(self) -> int:
        """Pixels of a picture."""
        return self.image_tokens * self.sizes.pixels_per_token**2

    def blocks(self) -> list[Block]:
        """The replay of one micro-batch as [shared prompts | rest of the context | noisy images]."""
        context, rows, out = self.context_tokens, self.replayed_texts, []
        before, clean = self.before if self.shared else 0, self.looked > 0
        if self.shared:
            tokens, shown = self.shared * before, self.shared * self.shown
            flows = self.text_flows if shown else self.text_trains
            out.append(Block(tokens - shown, shown, tokens * before, tokens, flows, shown > 0, shown > 0))
        if tokens := rows * (context - before):
            gen = self.looked - self.shared * self.shown
            out.append(Block(tokens - gen, gen, tokens * context, rows * context, self.text_flows, clean))
        if images := self.images:
            own = self.image_tokens + 2
            pairs, keys = images * own * (context + own), images * (context + own)
            out.append(Block(2 * images, images * self.image_tokens, pairs, keys, True))
        return out


def workload(
    recipe: Recipe,
    sizes: ModelSizes,
    layout: Layout,
    *,
    prompt_tokens: int = PROMPT_TOKENS,
    actions: int | None = None,
) -> Workload:
    """What a recipe asks of each GPU of a layout; ``actions`` None: every thinking is as long as it may be."""
    gpus = layout.gpus
    method, data, rollout, model = recipe.method, recipe.data, recipe.rollout, recipe.model
    rl = isinstance(data, PromptData)
    group = data.group_size if rl else 1
    total = data.prompts_per_iteration * group if rl else data.batch_size
    rows = math.ceil(total / gpus)
    thinks = rollout.think or not rl
    reasoning, denoising = how_trained(recipe, "reasoning"), how_trained(recipe, "denoising")
    minibatches = min(recipe.optimizer.minibatches, math.ceil(rows / group))
    each = rollout.images_per_thinking if rl and rollout.think else 1
    return Workload(
        sizes=sizes,
        layout=layout,
        rows=rows,
        prompts=math.ceil(rows / group),
        drawn=_together(rollout.batch, group, rows, each),
        micro=min(recipe.optimizer.micro_batch, math.ceil(rows / minibatches)),
        group=group,
        each=each,
        prompt_tokens=prompt_tokens,
        actions=(rollout.max_think_tokens if actions is None else actions) if thinks else 0,
        image_tokens=sizes.tokens(rollout.image_size),
        copies=_copies(recipe),
        steps=rollout.num_points - 1 if rl else 0,
        reasoning=reasoning,
        denoising=denoising,
        rank=model.lora.rank if model.lora else 0,
        compute=WIDTH[model.dtype],
        checkpointing=model.activation_checkpointing,
        passes=recipe.optimizer.ppo_epochs,
        minibatches=minibatches,
        supervised=not rl,
        through_context=method.image_grad_through_context,
        reference=method.needs_reference,
        train_vision=method.train_vision,
        branches=1 if rollout.guidance == 1 else 2,
        rescored=_rescored(recipe),
        through_decoder=method.needs_reward_gradient,
        quantized=model.quantize != "none",
        rounds=rollout.rounds if rl else 1,
        look=look_sizes(sizes, rollout.image_size) if rl and rollout.rounds > 1 else NO_LOOK,
        given=given_looks(recipe, sizes),
    )


def _rescored(recipe: Recipe) -> int:
    """Replays of the policy before its update: old values below fp32, and the velocities of forward-noise methods."""
    old_values = recipe.method.needs_old_values and recipe.model.dtype != "float32"
    return int(old_values) + recipe.method.needs_behaviour_velocity


def _together(batch: int | None, group: int, rows: int, each: int) -> int:
    """Samples that are drawn together: all, or whole groups, or a part of one (``rollout.batch``)."""
    if batch is None:
        return rows
    return min(rows, batch // group * group if batch >= group else part_of(group, batch, each))


def _copies(recipe: Recipe) -> int:
    """Noisy images per row of a replay: a guided one is asked for twice."""
    rollout, guided = recipe.rollout, recipe.method.needs_sde and recipe.rollout.guidance != 1
    return recipe.method.copies(rollout.window_size) * (2 if guided else 1)
