"""One paper a file, and the table of them.

A `Method` is what the training step and the evaluations see of a paper: pure functions of params,
state and batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from nas_jax.losses.itc import init_queue
from nas_jax.losses.mlm import SpecialTokens
from nas_jax.methods import albef, nas
from nas_jax.methods.albef import Context, MethodState, Replay, Stage, apply
from nas_jax.methods.config import MethodConfig
from nas_jax.models.sizes import ModelConfig
from nas_jax.models.vision_language import VisionLanguageModel
from nas_jax.models.visual_dictionary import init_dictionary
from nas_jax.negatives.nta import WordTables
from nas_jax.typing import Array, Batch, Metrics, Params

LOSSES = {"albef": albef.loss, "nas": nas.loss}


@dataclass(frozen=True)
class Method:
    """A paper's loss and its scoring functions, all pure."""

    ctx: Context

    def init(self, rng: Array) -> tuple[Params, MethodState]:
        """Fresh parameters (float32) and the state that goes with them; the teacher starts as the
        student.
        """
        ctx, config = self.ctx, self.ctx.model.config
        model_key, queue_key, dictionary_key = jax.random.split(rng, 3)
        image = jnp.zeros((1, config.image_size, config.image_size, 3), jnp.float32)
        ids = jnp.zeros((1, 4), jnp.int32)
        params = ctx.model.init(model_key, image, ids, jnp.ones((1, 4), bool))["params"]
        params["temp"] = jnp.float32(ctx.config.itc.temp_init)
        teacher = jax.tree.map(jnp.copy, {name: params[name] for name in albef.teacher_groups(ctx)})
        dictionary = None
        if ctx.config.dictionary.enabled:
            dictionary = init_dictionary(
                dictionary_key,
                ctx.config.dictionary.codes,
                config.dim,
                ctx.config.dictionary.literal,
            )
        queue = init_queue(queue_key, ctx.config.itc.queue_size, config.embed_dim)
        return params, MethodState(teacher, queue, dictionary)

    def constrain(self, params: Params) -> Params:
        """What must hold before each step: the temperature inside its bounds (ALBEF clamps it in
        place).
        """
        itc = self.ctx.config.itc
        return {**params, "temp": jnp.clip(params["temp"], itc.temp_min, itc.temp_max)}

    def stage(self, step: int) -> Stage:
        """Which parts are on at a step; a static value, so each stage is compiled on its own."""
        config, epoch = self.ctx.config, step / self.ctx.steps_per_epoch
        nva = config.nva.enabled and epoch >= config.nva.start_epoch
        mlm_epoch = config.mlm.dictionary_from_epoch
        return Stage(
            nva=nva,
            nta=config.nta.enabled and epoch >= config.nta.start_epoch,
            # A dictionary that never moved has nothing to freeze: NVA from the first step runs end
            # to end.
            dictionary_frozen=nva
            and config.dictionary.freeze_with_nva
            and config.nva.start_epoch > 0,
            mlm_on_dictionary=config.dictionary.enabled and 0 <= mlm_epoch <= epoch,
        )

    def loss(
        self,
        params: Params,
        state: MethodState,
        batch: Batch,
        rng: Array,
        step: Array,
        stage: Stage,
        replay: Replay | None = None,
    ) -> tuple[Array, tuple[MethodState, Metrics]]:
        """The scalar loss of a batch, the next method state up to `settle`, and metrics."""
        return LOSSES[self.ctx.config.name](
            self.ctx, params, state, batch, rng, step, stage, replay
        )

    def settle(self, state: MethodState, grads: Params) -> MethodState:
        """The method state that `loss` gave, for the next step; grads: of that loss."""
        return albef.settle(state, grads)

    def encode_image(
        self, params: Params, state: MethodState, image_BxHxWx3: Array
    ) -> tuple[Array, Array]:
        """Image tokens (B, T, D) as the matching head reads them, and unit ITC features (B, E)."""
        tokens_BxTxD, feature_BxE = apply(self.ctx, params, "encode_image", image_BxHxWx3)
        if self.ctx.config.dictionary.enabled:
            words, _, _ = nas.look_up(self.ctx, params, state.dictionary, tokens_BxTxD)
            tokens_BxTxD = words.tokens_BxTxD
        return tokens_BxTxD, feature_BxE

    def explain_nva(
        self, params: Params, state: MethodState, batch: Batch, rng: Array
    ) -> tuple[nas.NvaImages, Array]:
        """What NVA makes of a batch in evaluation mode, and the code ids (B, N) of its pictures."""
        image_tokens_BxTxD, image_BxE = apply(
            self.ctx, params, "encode_image", batch["image_BxHxWx3"]
        )
        text_tokens_BxLxD, text_BxE = self.encode_text(
            params, batch["token_ids_BxL"], batch["token_mask_BxL"]
        )
        words, _, _ = nas.look_up(self.ctx, params, state.dictionary, image_tokens_BxTxD)
        keys = albef.split_keys(rng)
        encoded = albef.Encoded(image_tokens_BxTxD, image_BxE, text_tokens_BxLxD, text_BxE)
        negative = nas.negative_images(self.ctx, params, state.dictionary, encoded, words, keys)
        return negative, words.code_ids_BxN

    def encode_text(
        self, params: Params, token_ids_BxL: Array, token_mask_BxL: Array
    ) -> tuple[Array, Array]:
        """Text tokens (B, L, D) and unit ITC features (B, E)."""
        return apply(self.ctx, params, "encode_text", token_ids_BxL, token_mask_BxL)

    def match(
        self,
        params: Params,
        image_tokens_BxTxD: Array,
        text_tokens_BxLxD: Array,
        token_mask_BxL: Array,
    ) -> Array:
        """ITM logits (B, 2); class 1 = match."""
        return apply(
            self.ctx, params, "match", text_tokens_BxLxD, token_mask_BxL, image_tokens_BxTxD
        )


def make_method(
    config: MethodConfig,
    model: ModelConfig,
    tables: WordTables,
    special: SpecialTokens,
    total_steps: int,
    steps_per_epoch: int,
    pieces: int = 1,
) -> Method:
    """Builds a method for a vocabulary of `len(tables.content_V)` ids and a run of `total_steps`.

    pieces: in which each batch is computed (`parallel/chunks.py`).
    """
    model = replace(model, vocab_size=model.vocab_size or len(tables.content_V))
    network = VisionLanguageModel(
        model,
        dictionary=config.dictionary.enabled,
        generator=config.nta.enabled,
        literal_gate=config.dictionary.literal,
    )
    return Method(Context(config, network, special, tables, total_steps, steps_per_epoch, pieces))
