"""ALBEF: Align before Fuse (Li et al., NeurIPS 2021). Salesforce's public code settles what the
paper leaves open.

The loss is ITC + ITM + MLM with unit weights, all three with hard negatives or soft targets from a
momentum teacher. The functions below are its sections in order; `loss` puts them together. NAS
(`methods/nas.py`) changes only the middle one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from nas_jax.kernels.image_tokens import ImageTokens, QueryGroup, Replacement
from nas_jax.kernels.last_layer import Readout
from nas_jax.losses.itc import Arriving, QueueState, enqueue, itc_loss, positives
from nas_jax.losses.itm import MatchRows, accuracy, itm_loss
from nas_jax.losses.mlm import (
    MaskedText,
    SpecialTokens,
    gather_positions,
    mask_tokens,
    masked_mean,
    mlm_rows,
)
from nas_jax.methods.config import MethodConfig
from nas_jax.models.vision_language import TEACHER_GROUPS, VisionLanguageModel
from nas_jax.models.visual_dictionary import DictionaryState
from nas_jax.negatives.in_batch import allowed_negatives, draw_negative
from nas_jax.negatives.nta import WordTables
from nas_jax.parallel.chunks import in_pieces
from nas_jax.parallel.mesh import pin_rows, row_devices, take_rows
from nas_jax.typing import Array, Batch, Metrics, Params, PyTree

KEYS = (
    "image_negative",
    "text_negative",
    "mask",
    "student",
    "teacher",
    "match",
    "mlm_student",
    "mlm_teacher",
    "dictionary",
    "object",
    "neighbour",
    "words",
    "refill",
    "refilled",
    "match_teacher",
)
"""Names of the random streams of a step.

New ones go to the end, so that the others keep their numbers.
"""
QUEUE_READERS = ("image_proj", "text_proj")
"""The parameters whose gradients are the last to read the queue."""


@dataclass(frozen=True)
class Context:
    """What a method knows besides params, state and batch; all of it static under jit."""

    config: MethodConfig
    model: VisionLanguageModel
    special: SpecialTokens
    tables: WordTables
    total_steps: int
    steps_per_epoch: int
    pieces: int = 1  # in which row-wise parts of a batch are computed, one after the other


@flax.struct.dataclass
class MethodState:
    """What changes with every step besides parameters and optimizer."""

    teacher: Params
    queue: QueueState | Arriving  # Arriving: between the loss and `settle`
    dictionary: DictionaryState | None


class Stage(NamedTuple):
    """Which parts of the loss are on at a step; static, so that what is off costs nothing."""

    nva: bool = False
    nta: bool = False
    dictionary_frozen: bool = False
    mlm_on_dictionary: bool = False


class Encoded(NamedTuple):
    """Both towers, of the student or of the teacher, on one batch."""

    image_tokens_BxTxD: Array
    image_BxE: Array
    text_tokens_BxLxD: Array
    text_BxE: Array
    masked_tokens_BxLxD: Array | None = None  # of the masked captions that MLM reads


class Pass(NamedTuple):
    """Rows for the fusion encoder: a text beside each picture of the batch, and what it sees of the
    pictures.

    It sees the picture itself, or picture other_B[b], or `tokens` in its place; `replacement` says
    the same as `tokens` where these are the picture's own with some replaced.
    """

    text_tokens_BxLxD: Array
    token_mask_BxL: Array
    other_B: Array | None = None
    tokens_BxTxD: Array | None = None
    replacement: Replacement | None = None
    detached: bool = False  # trains neither encoder
    picked_BxM: Array | None = None  # positions of the text that are read; None: [CLS] alone


Replay = dict[str, Array]
"""Recorded random draws by name; each replaces one sampling of the step (used for parity with other
code).
"""


def drawn(replay: Replay | None, name: str, sample: Callable[[], Array]) -> Array:
    """The recorded draw of that name, or a fresh one."""
    return replay[name] if replay and name in replay else sample()


def split_keys(rng: Array) -> dict[str, Array]:
    """One key for each random stream of the step."""
    return dict(zip(KEYS, jax.random.split(rng, len(KEYS)), strict=True))


def apply(ctx: Context, params: Params, method: str, *inputs):
    """Runs one method of the network.

    Its last input may be dropout seeds, one a row; without them it evaluates.
    """
    return ctx.model.apply({"params": params}, *inputs, method=method)


def row_seeds(key: Array, batch: int, *shape: int) -> Array:
    """Dropout seeds (B, ...) for the rows of the global batch."""
    return jax.random.bits(key, (batch, *shape), jnp.uint32)


def soft_weight(ctx: Context, step: Array) -> Array:
    """alpha of the step: it rises linearly from 0 over the first epochs (ALBEF code,
    Pretrain.py).
    """
    ramp_steps = ctx.config.alpha_ramp_epochs * ctx.steps_per_epoch
    if ramp_steps == 0:
        return jnp.float32(ctx.config.alpha)
    return ctx.config.alpha * jnp.minimum(1.0, step / ramp_steps)


def update_teacher(ctx: Context, teacher: Params, params: Params) -> Params:
    """theta_m <- m theta_m + (1 - m) theta (section 3.3), before the teacher is used in the
    step.
    """
    momentum, student = (
        ctx.config.momentum,
        jax.lax.stop_gradient({name: params[name] for name in teacher}),
    )
    return jax.tree.map(lambda old, new: momentum * old + (1 - momentum) * new, teacher, student)


def teacher_groups(ctx: Context) -> tuple[str, ...]:
    """Parameter groups of which the teacher keeps a copy."""
    return TEACHER_GROUPS + (("generator_head",) if ctx.model.generator else ())


def masked_text(
    ctx: Context, batch: Batch, keys: dict[str, Array], replay: Replay | None = None
) -> MaskedText:
    """The captions that MLM reads."""
    config, vocab_size = ctx.config.mlm, ctx.model.config.vocab_size
    texts = batch["token_ids_BxL"], batch["token_mask_BxL"]

    def sample() -> MaskedText:
        return mask_tokens(
            keys["mask"], *texts, ctx.special, vocab_size, config.probability, config.max_masked
        )

    return drawn(replay, "masked", sample)


def encode(
    ctx: Context,
    params: Params,
    teacher: Params,
    batch: Batch,
    masked_ids_BxL: Array,
    keys: dict[str, Array],
) -> tuple[Encoded, Encoded]:
    """Unimodal tokens and ITC features (section 3.1) of student and teacher.

    Captions and masked captions go through the text encoder in one call, with `plain` each by
    itself. The teacher keeps its dropout, and gets no gradient.
    """
    ids_BxL, size = batch["token_ids_BxL"], masked_ids_BxL.shape[0]

    # texts by the names of their random streams
    def towers(params: Params, **texts: Array) -> Encoded:
        def piece(rows: dict[str, Array]) -> Encoded:
            images = apply(ctx, params, "encode_image", rows["image_BxHxWx3"])
            ids_BxPxL, seeds_BxP = rows["ids_BxPxL"], rows["seeds_BxP"]
            mask_BxPxL = jnp.broadcast_to(rows["mask_BxL"][:, None], ids_BxPxL.shape)
            if ctx.config.plain:
                each = [x.swapaxes(0, 1) for x in (ids_BxPxL, mask_BxPxL, seeds_BxP)]
                encoded = [
                    apply(ctx, params, "encode_text", *text) for text in zip(*each, strict=True)
                ]
                (tokens_BxLxD, text_BxE), *others = encoded
                return Encoded(*images, tokens_BxLxD, text_BxE, *(tokens for tokens, _ in others))
            flat = [
                pin_rows(x.reshape(-1, *x.shape[2:])) for x in (ids_BxPxL, mask_BxPxL, seeds_BxP)
            ]
            tokens_BxPxLxD, text_BxPxE = (
                pin_rows(x.reshape(-1, len(texts), *x.shape[1:]))
                for x in apply(ctx, params, "encode_text", *flat)
            )
            others = [tokens_BxPxLxD[:, number] for number in range(1, len(texts))]
            return Encoded(*images, tokens_BxPxLxD[:, 0], text_BxPxE[:, 0], *others)

        rows = {
            "image_BxHxWx3": batch["image_BxHxWx3"],
            "mask_BxL": batch["token_mask_BxL"],
            "ids_BxPxL": jnp.stack(list(texts.values()), 1),
            "seeds_BxP": jnp.stack([row_seeds(keys[name], size) for name in texts], 1),
        }
        return in_pieces(piece, ctx.pieces, rows)

    taught = towers(jax.lax.stop_gradient(teacher), teacher=ids_BxL, mlm_teacher=masked_ids_BxL)
    return towers(params, student=ids_BxL, mlm_student=masked_ids_BxL), jax.lax.stop_gradient(
        taught
    )


def contrast(
    ctx: Context,
    params: Params,
    queue: QueueState,
    encoded: Encoded,
    taught: Encoded,
    image_id_B: Array,
    alpha: Array,
) -> tuple[Array, Array, Array, QueueState | Arriving]:
    """ITC (section 3.2, eq.

    2 and 6): the loss, the in-batch similarities both ways (B, B), and what enters queues.
    """
    truth = positives(image_id_B, queue.image_id_Q, ctx.config.itc.positives_by_id)
    loss, logits_i2t_BxB, logits_t2i_BxB = itc_loss(
        encoded.image_BxE,
        encoded.text_BxE,
        taught.image_BxE,
        taught.text_BxE,
        queue,
        truth,
        params["temp"],
        alpha,
    )
    if not ctx.config.itc.queue_frozen:
        queue = Arriving(queue, taught.image_BxE, taught.text_BxE, image_id_B)
    return loss, logits_i2t_BxB, logits_t2i_BxB, queue


def settle(state: MethodState, grads: Params) -> MethodState:
    """The state that `loss` gave, for the next step: the arriving keys overwrite the oldest in the
    queue.

    They do not where a gradient that reads the queue is not finite. Such a run is lost anyway; but
    as the gradients must then come first, the queue is overwritten where it lies, and not copied in
    every step.
    """
    if not isinstance(state.queue, Arriving):
        return state
    read = jax.tree.leaves({name: grads[name] for name in QUEUE_READERS})
    sane = jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in read]))
    queue = state.queue
    return state.replace(
        queue=enqueue(queue.queue, queue.image_BxE, queue.text_BxE, queue.image_id_B, sane)
    )


def mine(
    ctx: Context,
    logits_i2t_BxB: Array,
    logits_t2i_BxB: Array,
    image_id_B: Array,
    keys: dict[str, Array],
    replay: Replay | None,
) -> tuple[Array, Array, Array]:
    """Hard negatives (section 3.2): an image for every text, a text for every image, and which rows
    have one.
    """
    allowed_BxB = allowed_negatives(
        image_id_B, ctx.config.itm.exclude_same_id, ctx.config.itm.mining_shards
    )
    image_B, valid_B = draw_negative(keys["image_negative"], logits_t2i_BxB, allowed_BxB)
    text_B, _ = draw_negative(keys["text_negative"], logits_i2t_BxB, allowed_BxB)
    return (
        drawn(replay, "negative_image_B", lambda: image_B),
        drawn(replay, "negative_text_B", lambda: text_B),
        valid_B,
    )


def fuse(
    ctx: Context, params: Params, image_tokens_BxTxD: Array, passes: dict[str, Pass], key: Array
) -> dict[str, Array]:
    """Fused tokens (B, M, D) that are read of each kind of rows; all of them in one call of the
    fusion encoder.

    The rows of a pair stand together, so that they stay on the device that has the pair. What
    several kinds have in common is computed once (`kernels/shared_keys.py`); `plain` computes each
    row by itself, to the same numbers.
    """
    shards = ctx.config.itm.mining_shards
    kinds = sorted(passes, key=lambda kind: _order(ctx, passes[kind]))
    order = [list(passes).index(kind) for kind in kinds]
    # Letter P here: the kinds of rows.
    seeds_BxP = row_seeds(key, image_tokens_BxTxD.shape[0], len(passes))[:, jnp.array(order)]
    first_Bx1 = jnp.zeros_like(seeds_BxP[:, :1], jnp.int32)
    picked = {
        kind: first_Bx1 if passes[kind].picked_BxM is None else passes[kind].picked_BxM
        for kind in kinds
    }
    rows = {
        "text_BxPxLxD": jnp.stack([_text(passes[kind]) for kind in kinds], axis=1),
        "mask_BxPxL": jnp.stack([passes[kind].token_mask_BxL for kind in kinds], axis=1),
        "seeds_BxP": seeds_BxP,
        "picked": picked,
    }
    alone = ctx.config.plain
    if alone:
        seen = [tokens_seen(passes[kind], image_tokens_BxTxD, shards) for kind in kinds]
        rows["seen"] = jnp.stack(seen, axis=1)
    else:
        rows["seen"] = _looks(ctx, image_tokens_BxTxD, [passes[kind] for kind in kinds])
    # Kinds of which the same number of positions is read go through the last layer together.
    groups = [
        [kind for kind in kinds if picked[kind].shape == shape]
        for shape in {x.shape: 0 for x in picked.values()}
    ]

    def piece(rows: dict[str, PyTree]) -> dict[str, Array]:
        def flat(x: Array) -> Array:
            return pin_rows(x.reshape(-1, *x.shape[2:]))

        inputs = flat(rows["text_BxPxLxD"]), flat(rows["mask_BxPxL"])
        if alone:
            fused = apply(ctx, params, "fuse", *inputs, flat(rows["seen"]), flat(rows["seeds_BxP"]))
            fused_BxPxLxD = fused.reshape(-1, len(kinds), *fused.shape[1:])
            return {
                kind: gather_positions(fused_BxPxLxD[:, n], rows["picked"][kind])
                for n, kind in enumerate(kinds)
            }
        wanted = [
            Readout(
                tuple(map(kinds.index, group)),
                jnp.stack([rows["picked"][kind] for kind in group], 1),
            )
            for group in groups
        ]
        fused = apply(ctx, params, "fuse", *inputs, rows["seen"], flat(rows["seeds_BxP"]), wanted)
        pairs = zip(groups, fused, strict=True)
        return {
            kind: tokens_BxPxMxD[:, n]
            for group, tokens_BxPxMxD in pairs
            for n, kind in enumerate(group)
        }

    fused = in_pieces(piece, ctx.pieces, rows)
    return {kind: fused[kind] for kind in passes}


def match(ctx: Context, params: Params, fused: dict[str, Array]) -> dict[str, Array]:
    """ITM logits (B, 2) of each kind of rows."""
    return {
        kind: apply(ctx, params, "itm_logits", fused_BxMxD) for kind, fused_BxMxD in fused.items()
    }


def tokens_seen(row: Pass, image_tokens_BxTxD: Array, shards: int) -> Array:
    """The image tokens (B, T, D) that a kind of rows sees."""
    tokens_BxTxD = image_tokens_BxTxD if row.tokens_BxTxD is None else row.tokens_BxTxD
    if row.other_B is not None:
        tokens_BxTxD = take_rows(tokens_BxTxD, row.other_B, shards)
    return jax.lax.stop_gradient(tokens_BxTxD) if row.detached else tokens_BxTxD


def _looks(ctx: Context, image_tokens_BxTxD: Array, passes: list[Pass]) -> tuple[ImageTokens, ...]:
    """The passes, in their order, as looks at as few pictures as possible."""
    shards, looks, others = ctx.config.itm.mining_shards, [], []
    for row in passes:
        if _by_itself(ctx, row):
            others.append(ImageTokens((tokens_seen(row, image_tokens_BxTxD, shards),)))
        elif row.other_B is not None or row.replacement is not None:
            looks.append(QueryGroup(1, row.detached, row.other_B, shards, row.replacement))
        elif looks and looks[-1] == QueryGroup(looks[-1].rows, row.detached):
            looks[-1] = QueryGroup(looks[-1].rows + 1, row.detached)
        else:
            looks.append(QueryGroup(1, row.detached))
    return (ImageTokens((image_tokens_BxTxD,), tuple(looks)), *others)


def _by_itself(ctx: Context, row: Pass) -> bool:
    """Whether the tokens that a row sees are projected for it alone."""
    # The other picture may be in another piece, or on another device: its tokens are fewer bytes
    # than its keys.
    elsewhere = row.other_B is not None and (
        ctx.pieces > 1 or ctx.config.itm.mining_shards % row_devices() > 0
    )
    return elsewhere or (row.tokens_BxTxD is not None and row.replacement is None)


def _order(ctx: Context, row: Pass) -> tuple[bool, ...]:
    """Rows that see the same come together; those with tokens of their own come last, as in
    `_looks`.
    """
    return _by_itself(ctx, row), row.replacement is not None, row.other_B is not None, row.detached


def _text(row: Pass) -> Array:
    return jax.lax.stop_gradient(row.text_tokens_BxLxD) if row.detached else row.text_tokens_BxLxD


def in_batch_passes(
    ctx: Context, encoded: Encoded, mask_BxL: Array, negative_image_B: Array, negative_text_B: Array
) -> dict[str, Pass]:
    """The 3B rows of ITM: true pairs, texts beside hard images, hard texts beside images."""
    text, shards = encoded.text_tokens_BxLxD, ctx.config.itm.mining_shards
    hard_text, hard_mask = (
        take_rows(text, negative_text_B, shards),
        take_rows(mask_BxL, negative_text_B, shards),
    )
    return {
        "positive": Pass(text, mask_BxL),
        "hard_image": Pass(text, mask_BxL, other_B=negative_image_B),
        "hard_text": Pass(hard_text, hard_mask),
    }


def masked_pass(
    encoded: Encoded, mask_BxL: Array, masked: MaskedText, image_tokens_BxTxD: Array | None = None
) -> Pass:
    """The B rows of MLM: masked captions beside these image tokens, or beside those that the other
    rows see.
    """
    return Pass(
        encoded.masked_tokens_BxLxD,
        mask_BxL,
        tokens_BxTxD=image_tokens_BxTxD,
        picked_BxM=masked.positions_BxM,
    )


def masked_language(
    ctx: Context,
    params: Params,
    teacher: Params,
    mask_BxL: Array,
    masked: MaskedText,
    taught: Encoded,
    fused_BxMxD: Array,
    alpha: Array,
    keys: dict[str, Array],
) -> Array:
    """MLM (section 3.2, eq.

    4 and 7): the loss of the student's fused tokens at the masked positions.
    """
    teacher = jax.lax.stop_gradient(teacher)
    rows = {
        "masked": masked,
        "fused_BxMxD": fused_BxMxD,
        "mask_BxL": mask_BxL,
        "text_BxLxD": taught.masked_tokens_BxLxD,
        "image_BxTxD": taught.image_tokens_BxTxD,
        "seeds_B": row_seeds(keys["match_teacher"], mask_BxL.shape[0]),
    }

    def piece(rows: dict[str, PyTree]) -> Array:
        masked, inputs = (
            rows["masked"],
            [rows[name] for name in ("text_BxLxD", "mask_BxL", "image_BxTxD", "seeds_B")],
        )
        if ctx.config.plain:
            taught_BxMxD = gather_positions(
                apply(ctx, teacher, "fuse", *inputs), masked.positions_BxM
            )
        else:  # the last layer computes the masked positions only
            text_BxLxD, mask_BxL, image_BxTxD, seeds_B = inputs
            wanted, seen = (
                [Readout((0,), masked.positions_BxM[:, None])],
                (ImageTokens((image_BxTxD,)),),
            )
            (fused_BxPxMxD,) = apply(
                ctx, teacher, "fuse", text_BxLxD, mask_BxL, seen, seeds_B, wanted
            )
            taught_BxMxD = fused_BxPxMxD[:, 0]
        student_BxMxV = apply(ctx, params, "mlm_logits", rows["fused_BxMxD"])
        return mlm_rows(
            student_BxMxV, apply(ctx, teacher, "mlm_logits", taught_BxMxD), masked, alpha
        )

    return masked_mean(in_pieces(piece, ctx.pieces, rows), masked)


def itm_metrics(groups: dict[str, MatchRows]) -> Metrics:
    """Accuracy of the matching head on each kind of rows."""
    return {f"itm_accuracy/{kind}": accuracy(rows) for kind, rows in groups.items()}


def loss(
    ctx: Context,
    params: Params,
    state: MethodState,
    batch: Batch,
    rng: Array,
    step: Array,
    stage: Stage,
    replay: Replay | None = None,
) -> tuple[Array, tuple[MethodState, Metrics]]:
    """L = L_itc + L_itm + L_mlm (eq. 5) of one batch; also the next method state and metrics."""
    keys, alpha = split_keys(rng), soft_weight(ctx, step)
    mask_BxL, image_id_B = batch["token_mask_BxL"], batch["image_id_B"]
    teacher = update_teacher(ctx, state.teacher, params)
    masked = masked_text(ctx, batch, keys, replay)
    encoded, taught = encode(ctx, params, teacher, batch, masked.token_ids_BxL, keys)

    loss_itc, i2t_BxB, t2i_BxB, queue = contrast(
        ctx, params, state.queue, encoded, taught, image_id_B, alpha
    )

    negative_image_B, negative_text_B, valid_B = mine(
        ctx, i2t_BxB, t2i_BxB, image_id_B, keys, replay
    )
    passes = in_batch_passes(ctx, encoded, mask_BxL, negative_image_B, negative_text_B)
    passes["mlm"] = masked_pass(encoded, mask_BxL, masked)
    fused = fuse(ctx, params, encoded.image_tokens_BxTxD, passes, keys["match"])
    loss_mlm = masked_language(
        ctx, params, teacher, mask_BxL, masked, taught, fused.pop("mlm"), alpha, keys
    )

    logits = match(ctx, params, fused)
    groups = {
        "positive": MatchRows(logits["positive"], 1, jnp.ones_like(valid_B)),
        "hard_image": MatchRows(logits["hard_image"], 0, valid_B),
        "hard_text": MatchRows(logits["hard_text"], 0, valid_B),
    }
    loss_itm = itm_loss(groups)
    total = loss_itc + loss_itm + loss_mlm
    metrics = {
        "loss": total,
        "loss/itc": loss_itc,
        "loss/itm": loss_itm,
        "loss/mlm": loss_mlm,
        "itc/temp": params["temp"],
        "itc/alpha": alpha,
        **itm_metrics(groups),
    }
    return total, (MethodState(teacher, queue, state.dictionary), metrics)
