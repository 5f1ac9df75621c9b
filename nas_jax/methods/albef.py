"""ALBEF: Align before Fuse (Li et al., NeurIPS 2021); its code settles what the paper omits.

The encoders are aligned by a contrastive loss before the fusion encoder reads both. The loss is
ITC + ITM + MLM with unit weights; a momentum teacher gives ITC's keys and soft targets for ITC and
MLM. The terms ITM and MLM, which many siblings share, are in `methods/terms.py`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from nas_jax.data.readers import second_view
from nas_jax.losses.itc import Truth, init_queue, itc_loss, positives
from nas_jax.methods.added import added_params, added_terms, added_wants
from nas_jax.methods.albef_config import AlbefConfig
from nas_jax.methods.draws import Draws
from nas_jax.methods.encoding import encode_pairs
from nas_jax.methods.matching import MatchingRows, read_rows
from nas_jax.methods.method import Method, MethodState, Saved, norm_distance
from nas_jax.methods.same import ignored_keys
from nas_jax.methods.states import filled, saved_queue, with_new_keys
from nas_jax.methods.terms import (
    Contrast,
    Encoded,
    Itc,
    Itm,
    Mlm,
    Seen,
    Terms,
    add_up,
    collect_rows,
    further_texts,
)
from nas_jax.methods.text_negatives import wanted_fields, with_negatives
from nas_jax.models.rows import BatchSplit, Rows, first_tokens, fuse
from nas_jax.models.towers import AlbefNetwork
from nas_jax.typing import Array, Batch, Metrics, Params


@dataclass(frozen=True)
class Albef(Method):
    """State: `teacher` (parameters), `queue` (keys of past batches)."""

    network: AlbefNetwork

    Config: ClassVar[type[AlbefConfig]] = AlbefConfig
    Network = AlbefNetwork
    pair_scores = ("itm", "itm_logit")
    summed_scores = {"itm+itc": ("itm_logit", "itc")}
    default_scores = ("itc", "itm")
    hf_class = "nas"

    @property
    def wants(self) -> tuple[Any, ...]:
        """What the terms read; a method puts its own fields before these."""
        terms = self.terms(self.stage(self.setting.total_steps))
        return (*added_wants(self.config.terms), *wanted_fields(self, terms))

    def init(self, rng: Array) -> tuple[Params, MethodState]:
        """Fresh parameters (float32); the teacher starts as the student, the queue as noise."""
        model_key, queue_key, _ = jax.random.split(rng, 3)
        params, _ = super().init(model_key)
        params["temp"] = jnp.float32(self.config.itc.temp_init)
        params |= added_params(self, model_key)
        queue = init_queue(queue_key, self.config.itc.queue_size, self.network.config.embed_dim)
        return params, {"teacher": self.fresh_teacher(params), "queue": queue}

    def fresh_teacher(self, params: Params) -> Params:
        """A copy of what the teacher has of the student."""
        return jax.tree.map(jnp.copy, {name: params[name] for name in self.network.teacher_groups})

    def constrain(self, params: Params) -> Params:
        """The temperature inside its bounds: ALBEF clamps it in place before each step."""
        itc = self.config.itc
        highest = itc.temp_max or None
        return {**params, "temp": jnp.clip(params["temp"], itc.temp_min, highest)}

    def temperature(self, params: Params) -> Array:
        """The temperature of ITC, a scalar."""
        return params["temp"]

    def loss(
        self,
        params: Params,
        state: MethodState,
        batch: Batch,
        draw: Draws,
        step: Array,
        stage: Hashable,
    ) -> tuple[Array, tuple[MethodState, Metrics]]:
        """L = L_itc + L_itm + L_mlm (eq. 5), and what the config adds."""
        terms, alpha = self.terms(stage), self.soft_weight(step)
        teacher = self.moved_teacher(state["teacher"], params)
        seen = self.see(Seen(params, teacher, state, batch, draw, alpha, stage, step=step))
        state = state | {"teacher": teacher, "new_keys": self.new_keys(seen)}
        seen, state, metrics = self.read_images(seen, state)
        rows = collect_rows(terms, seen)
        fused = self.fuse(params, seen.image_tokens_BxTxD, rows, draw)
        total, found = add_up(terms, seen, rows, fused)
        metrics |= found | {"itc/temp": params["temp"], "itc/alpha": alpha}
        return total, (state, metrics)

    def see(self, seen: Seen) -> Seen:
        """Student and teacher read the batch, with all captions of the terms; ITC compares it."""
        terms = self.terms(seen.stage)
        texts = further_texts(terms, seen.batch, seen.draw)
        teacher, (own, other) = jax.lax.stop_gradient(seen.teacher), self.views(seen)
        student = self.encode(seen.params, own, texts[0], seen.draw, "student")
        taught = self.encode(teacher, other, texts[1], seen.draw, "teacher")
        taught = jax.lax.stop_gradient(taught)
        seen = seen._replace(student=student, taught=taught)
        seen = seen._replace(itc=self.contrast(seen))
        return with_negatives(self, terms, seen)

    def views(self, seen: Seen) -> tuple[Batch, Batch]:
        """The batch as the student and as the teacher read it."""
        return seen.batch, second_view(seen.batch)

    def matching_rows(
        self, params: Params, state: MethodState, batch: Batch, draw: Draws
    ) -> dict[str, MatchingRows]:
        """See `Method`. A teacher that the state lacks equals the parameters."""
        return read_rows(self, params, filled(self, params, state), batch, draw)

    def terms(self, stage: Hashable) -> Terms:
        """The terms of the loss, with their weights."""
        own = {"itc": (1.0, Itc(self)), "itm": (1.0, Itm(self)), "mlm": (1.0, Mlm(self))}
        return own | added_terms(self)

    def soft_weight(self, step: Array | int) -> Array:
        """alpha of the step: it rises linearly from 0 over the first epochs (Pretrain.py)."""
        ramp_steps = self.config.alpha_ramp_epochs * self.setting.steps_per_epoch
        if ramp_steps == 0:
            return jnp.float32(self.config.alpha)
        return self.config.alpha * jnp.minimum(1.0, step / ramp_steps)

    def moved_teacher(self, teacher: Params, params: Params) -> Params:
        """theta_m <- m theta_m + (1 - m) theta (section 3.3), before the step uses the teacher."""
        momentum = self.config.momentum
        student = jax.lax.stop_gradient({name: params[name] for name in teacher})
        return jax.tree.map(
            lambda old, new: momentum * old + (1 - momentum) * new, teacher, student
        )

    def encode(
        self, params: Params, batch: Batch, texts: dict[str, Array], draw: Draws, who: str
    ) -> Encoded:
        """Unimodal tokens and ITC features (section 3.1); all captions in one call.

        texts: captions (B, L) beside the true one. who: names the dropout, as the teacher keeps
        its own.
        """
        return encode_pairs(self, params, batch, texts, draw, who)

    def contrast(self, seen: Seen) -> Contrast:
        """ITC (section 3.2, eq. 2 and 6) against the keys of the batch and of the queue."""
        queue = seen.state["queue"]
        by_id = self.config.itc.positives_by_id
        truth = positives(seen.batch["image_id_B"], queue.image_id_Q, by_id)
        ignored = ignored_keys(self, seen.batch, queue.image_id_Q, truth)
        student, taught = seen.student, seen.taught
        found = itc_loss(
            (student.image_BxE, student.text_BxE),
            (taught.image_BxE, taught.text_BxE),
            queue,
            Truth(*truth, *ignored),
            seen.params["temp"],
            seen.alpha,
        )
        return Contrast(*found)

    def new_keys(self, seen: Seen) -> dict[str, Array] | None:
        """What enters the queue after the gradient; None where it stands still."""
        if self.config.itc.queue_frozen:
            return None
        keys = {"image_BxE": seen.taught.image_BxE, "text_BxE": seen.taught.text_BxE}
        return keys | {"image_id_B": seen.batch["image_id_B"]}

    def generator_params(self, seen: Seen) -> Params:
        """The parameters of the language model that fills in words, where the method has one."""
        return seen.teacher

    def read_images(self, seen: Seen, state: MethodState) -> tuple[Seen, MethodState, Metrics]:
        """What the fusion encoder reads of the pictures: the tokens of the image encoder."""
        return seen._replace(image_tokens_BxTxD=seen.student.image_tokens_BxTxD), state, {}

    def fuse(
        self,
        params: Params,
        image_tokens_BxTxD: Array,
        rows: Mapping[str, Mapping[str, Rows]],
        draw: Draws,
    ) -> dict[str, Array]:
        """The rows of all terms through the fusion encoder, in one call."""
        kinds = {kind: row for of_term in rows.values() for kind, row in of_term.items()}
        size = len(image_tokens_BxTxD)
        seeds = {kind: draw.seeds(f"fusion/{kind}", size) for kind in kinds}
        split = BatchSplit(self.config.itm.mining_shards, self.setting.pieces)
        return fuse(self.network, params, image_tokens_BxTxD, kinds, seeds, split)

    def after_gradient(self, state: MethodState, grads: Params) -> MethodState:
        """The new keys overwrite the oldest of the queue (section 3.2).

        They do not where a gradient that reads the queue is not finite. Such a run is lost anyway,
        but now the gradients must come first, so the queue is overwritten in place and not copied.
        """
        return with_new_keys(state, grads)

    def observe(self, params: Params, state: MethodState) -> Metrics:
        """teacher/distance: |teacher - student| / |student| over what the teacher has."""
        student = {name: params[name] for name in state["teacher"]}
        return {"teacher/distance": norm_distance(state["teacher"], student)}

    def start_from(self, params: Params, state: MethodState, saved: Saved) -> MethodState:
        """A teacher equal to the parameters, or the checkpoint's own teacher and queue."""
        teacher, queue = self.fresh_teacher(params), state["queue"]
        if saved.whole:
            teacher = saved.fitted("teacher", teacher)
            queue = saved_queue(saved, queue)
        return state | {"teacher": teacher, "queue": queue}

    def score(
        self,
        params: Params,
        image_tokens_GxTxD: Array,
        text_tokens_GxCxLxD: Array,
        token_mask_GxCxL: Array,
    ) -> dict[str, Array]:
        """itm: logit of "match" minus that of "no match"; itm_logit: that of "match" alone."""
        inputs = image_tokens_GxTxD, text_tokens_GxCxLxD, token_mask_GxCxL
        fused_GxCxD = first_tokens(self.network, params, *inputs)
        logits_GxCx2 = self.match_logits(params, fused_GxCxD)
        match_GxC = logits_GxCx2[..., 1]
        return {"itm": match_GxC - logits_GxCx2[..., 0], "itm_logit": match_GxC}

    def match_logits(self, params: Params, fused: Array) -> Array:
        """ITM logits (..., 2) of fused tokens (..., D); class 1 = match."""
        logits = self.apply(params).itm_logits(fused.reshape(-1, 1, fused.shape[-1]))
        return logits.reshape(*fused.shape[:-1], 2)
