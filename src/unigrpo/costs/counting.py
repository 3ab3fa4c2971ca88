"""FLOPs of forwards and backwards of a BAGEL, from its sizes and how it is trained (docs/scaling.md derives them)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from unigrpo.costs.sizes import FREQUENCIES, Expert, ModelSizes

Training = Literal["full", "lora", "frozen"]
MARKERS = 2  # tokens around a picture, as latents and as seen
FUSED_BACKWARD = 2.5  # a fused attention computes the scores again: five products for the forward's two


@dataclass(frozen=True)
class Block:
    """A block of the packed replay: ``und`` and ``gen`` tokens, query-key ``pairs`` and ``keys`` over all rows.

    flows: whether gradients pass through it. clean: its gen tokens are pictures that were looked at, and no noisy ones,
    or such pictures stand in the block before it. given: it is such a beginning, that later blocks continue and nothing
    is asked of: of its last layer keys and values are all that is used.
    """

    und: int
    gen: int
    pairs: int
    keys: int
    flows: bool
    clean: bool = False
    given: bool = False

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.und + self.gen


@dataclass(frozen=True)
class Packed:
    """A packed replay in numbers: its blocks, the tokens that are scored, and the noisy images of so many tokens.

    looked: latent tokens of pictures that are looked at; views: the patches of each such picture as it is seen.
    """

    blocks: Sequence[Block]
    scored: int
    images: int
    image_tokens: int
    looked: int = 0
    views: Sequence[int] = ()


@dataclass(frozen=True)
class Counting:
    """FLOPs of a model of these sizes, whose experts are trained in these ways; 2 for a multiplication and its sum.

    rank: of the adapters; checkpointing: layers are computed again in the backward pass; through_context: the image's
    loss reaches the reasoning weights. Masked pairs of queries and keys are computed too, and counted.
    """

    sizes: ModelSizes
    reasoning: Training
    denoising: Training
    rank: int = 0
    checkpointing: bool = False
    through_context: bool = False

    def training(self, expert: Expert) -> Training:
        """How an expert is trained."""
        return self.reasoning if expert == "reasoning" else self.denoising

    def linear(self, expert: Expert) -> float:
        """Of one token in one layer's matrices, 2 per weight; adapters add theirs."""
        adapters = self.rank * self.sizes.adapter_sides() if self.training(expert) == "lora" else 0
        return 2 * (self.sizes.layer_matrices + adapters)

    def attention(self, pairs: float) -> float:
        """4 H per query and key in one layer: scores and weighted sum."""
        return 4 * self.sizes.hidden * pairs

    def head(self, tokens: float) -> float:
        """2 H V per token whose next one is scored."""
        return 2 * self.sizes.hidden * self.sizes.vocab * tokens

    def latent_ends(self, images: float, tokens: int) -> float:
        """vae2llm and llm2vae per latent token, the time embedder once per image."""
        s = self.sizes
        return images * (4 * s.hidden * s.latent_dim * tokens + 2 * s.hidden * (FREQUENCIES + s.hidden))

    def layers(self, block: Block) -> float:
        """One block through all layers."""
        tokens = block.und * self.linear("reasoning") + block.gen * self.linear("denoising")
        return self.sizes.layers * (tokens + self.attention(block.pairs))

    def layers_backward(self, block: Block) -> float:
        """Through all layers, in each of the :meth:`passes`: 1 forward for the inputs' gradients, 1 more for the
        weights' where they learn.

        Into pictures that were looked at a loss comes by keys and values: of the last layer nothing else of theirs has
        a gradient. Where the image's comes alone, that is so of the words too. The first projections of those whose
        weights are constants to a loss need none.
        """
        if not block.flows:
            return 0.0
        total, s = 0.0, self.sizes
        for learning in self.passes(block):
            each = self._layer_backward(block, learning)
            total += s.layers * each
            if block.clean:
                total -= self._unused(block, learning, each)
        return total

    def _unused(self, block: Block, learning: tuple[Expert, ...], each: float) -> float:
        """What a clean block does not need of a layer's ``each`` in the last one, and of the first projections."""
        s = self.sizes
        keys = 4 * s.hidden * s.kv
        first = 2 * s.hidden * s.hidden + keys
        last = keys * block.gen * (1 + (self.denoising == "full" and "denoising" in learning))
        if learning == ("denoising",):
            return each + block.und * first - last - keys * block.und
        constant = block.gen * first * ("denoising" not in learning)
        if block.given:
            return each + constant - last - keys * block.und * (1 + (self.reasoning == "full"))
        return constant + block.gen * self._token_backward("denoising", learning) - last

    def _token_backward(self, expert: Expert, learning: tuple[Expert, ...]) -> float:
        base = 2 * self.sizes.layer_matrices
        learned = {"full": base, "lora": self.linear(expert) - base, "frozen": 0.0}[self.training(expert)]
        return self.linear(expert) + learned * (expert in learning)

    def _layer_backward(self, block: Block, learning: tuple[Expert, ...]) -> float:
        words = block.und * self._token_backward("reasoning", learning)
        latents = block.gen * self._token_backward("denoising", learning)
        return FUSED_BACKWARD * self.attention(block.pairs) + words + latents

    def passes(self, block: Block) -> list[tuple[Expert, ...]]:
        """The backward passes through a block, and which experts learn in each.

        Unless ``through_context``, reasoning weights are constants to the image's loss, which the markers of noisy
        images belong to, and denoising weights to the text's. Pictures that were looked at are read with denoising
        weights: where these are trained, the image's loss comes through such a block too.
        """
        if not block.clean and not block.gen:
            return [("reasoning",)]
        if not block.clean:
            return [("reasoning", "denoising") if self.through_context else ("denoising",)]
        if self.through_context:
            return [("reasoning", "denoising")]
        experts: tuple[Expert, Expert] = ("reasoning", "denoising")
        return [(expert,) for expert in experts if self.training(expert) != "frozen"]

    def layers_again(self, block: Block) -> float:
        """Computed again up to the last tensor that is asked for: without adapters, down's product is not."""
        s = self.sizes
        experts: tuple[tuple[Expert, int], ...] = (("reasoning", block.und), ("denoising", block.gen))
        tokens = sum(count for expert, count in experts if self.training(expert) != "lora")
        return self.layers(block) - s.layers * 2 * s.hidden * s.intermediate * tokens

    def replay(self, packed: Packed) -> float:
        """The forward of a packed replay: its blocks, the scored tokens, the noisy images."""
        layers = sum(self.layers(block) for block in packed.blocks)
        heads = self.head(packed.scored) + self.latent_ends(packed.images, packed.image_tokens)
        return layers + heads + self.looks(packed.looked, packed.views)

    def replay_backward(self, packed: Packed) -> float:
        """Its backward pass, and the layers once more with activation checkpointing."""
        layers = sum(self.layers_backward(block) for block in packed.blocks)
        if self.checkpointing:
            layers += sum(len(self.passes(b)) * self.layers_again(b) for b in packed.blocks if b.flows)
        head = self.head(packed.scored) * (self.reasoning != "frozen") * (1 + (self.reasoning == "full"))
        out = 2 * self.sizes.hidden * self.sizes.latent_dim * packed.image_tokens * packed.images
        whole = 1.5 * self.latent_ends(packed.images, packed.image_tokens)
        looked = self.looks(packed.looked, ()) * (self.denoising == "full")
        return layers + head + (whole if self.denoising == "full" else out) + looked

    def looks(self, latents: int, views: Sequence[int]) -> float:
        """What goes before the layers for pictures that are looked at: vae2llm and the time embedder for every latent
        token, the vision tower and the connector for every picture that is seen."""
        s = self.sizes
        return 2 * s.hidden * (s.latent_dim + FREQUENCIES + s.hidden) * latents + sum(map(s.see, views))

    def look(self, before: int, und: int, latents: int, views: Sequence[int]) -> float:
        """Reading what a look gives after ``before`` tokens: ``und`` tokens (markers, what is seen) and latents."""
        own = und + latents
        return self.layers(Block(und, latents, own * (before + own), 0, False)) + self.looks(latents, views)

    def prefill(self, tokens: int, length: int) -> float:
        """``tokens`` tokens in prompts of ``length``."""
        return self.layers(Block(tokens, 0, tokens * length, tokens, False))

    def think(self, texts: int, prompt: int, fed: int, sampled: int) -> float:
        """Decoding ``texts`` texts of ``fed`` tokens (bos, eos) after a prompt; ``sampled`` words take logits."""
        pairs = texts * (fed * prompt + fed * (fed + 1) / 2)
        return self.layers(Block(texts * fed, 0, round(pairs), 0, False)) + self.head(sampled)

    def velocity(self, context: int, tokens: int) -> float:
        """One denoising forward of one picture: its tokens and two markers over the cached context."""
        own = tokens + 2
        return self.layers(Block(2, tokens, own * (context + own), 0, False)) + self.latent_ends(1, tokens)
