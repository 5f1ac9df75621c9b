"""NAS: Negative Augmented Samples (Wang et al., AAAI 2025, arXiv 2412.10029), on top of ALBEF.

The pictures of the matching loss pass through a visual dictionary, and beside the hard negatives of
the batch stand negatives that differ from the true pair in a few tokens only: NVA replaces the
object's visual tokens by their neighbours in the dictionary, NTA replaces words of the caption, and
FGITM is the matching loss over all of them. ITC and MLM are ALBEF's.

The authors' code has the dictionary and NVA; where it and the paper differ, the code is the default
and the paper's reading is a config field. NTA is in the paper only: see `negatives/nta.py`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from nas_jax.methods.added import added_terms
from nas_jax.methods.albef import Albef
from nas_jax.methods.draws import Draws
from nas_jax.methods.given import fgitm_fields, fgitm_names, given_rows
from nas_jax.methods.method import MethodState, Saved
from nas_jax.methods.nas_config import NasConfig, Stage
from nas_jax.methods.negative_rows import caption_rows, picture_rows, read_captions
from nas_jax.methods.nva_images import find_object, neighbours, rows_on
from nas_jax.methods.refill import Generator, negative_texts
from nas_jax.methods.terms import Encoded, Itc, Itm, Mlm, Seen, Terms
from nas_jax.models.codebook import DictionaryState, decay_at, init_dictionary
from nas_jax.models.codebook_size import resized
from nas_jax.models.rows import Rows
from nas_jax.models.sizes import ModelConfig
from nas_jax.models.towers import DictionaryTokens, NasNetwork, PatchCodes
from nas_jax.negatives.nva import (
    NvaImages,
    as_published,
    draw_neighbour,
    draw_objects,
    patches_with_codes,
)
from nas_jax.negatives.records import ImageNegatives
from nas_jax.typing import Array, Batch, Metrics, Params


@dataclass(frozen=True)
class Nas(Albef):
    """State: ALBEF's, and `dictionary`."""

    Config = NasConfig
    Network = NasNetwork
    hf_class = "nas"

    @classmethod
    def make_network(cls, config: NasConfig, model: ModelConfig) -> NasNetwork:
        """The parts that are on, and no others."""
        dictionary = config.dictionary
        return NasNetwork(model, dictionary.enabled, config.nta.enabled, dictionary.literal)

    @property
    def scoring_state(self) -> tuple[str, ...]:
        """Pictures are scored in the tokens of the dictionary."""
        return ("dictionary",) if self.config.dictionary.enabled else ()

    def init(self, rng: Array) -> tuple[Params, MethodState]:
        """As ALBEF's, with a dictionary of Gaussian codes."""
        params, state = super().init(rng)
        config = self.config.dictionary
        if config.enabled:
            key, dim = jax.random.split(rng, 3)[2], self.network.config.dim
            state["dictionary"] = init_dictionary(key, config.codes, dim, config.literal)
        return params, state

    @property
    def wants(self) -> tuple[Any, ...]:
        """The negatives of the data that FGITM has, and what further terms read."""
        return (*fgitm_fields(self.config.itm, self.config.negatives), *super().wants)

    def stage(self, step: int) -> Stage:
        """Which parts are on at a step; the authors' recipe brings in NVA for the last epoch."""
        config, epoch = self.config, self.setting.epoch(step)
        nva = config.nva.enabled and epoch >= config.nva.start_epoch
        nta = config.nta.enabled and epoch >= config.nta.start_epoch
        # A dictionary that never moved has nothing to freeze.
        frozen = nva and config.dictionary.freeze_with_nva and config.nva.start_epoch > 0
        mlm_epoch = config.mlm.dictionary_from_epoch
        return Stage(nva, nta, frozen, config.dictionary.enabled and 0 <= mlm_epoch <= epoch)

    def stage_starts(self) -> tuple[int, ...]:
        """The first step, and the first of each epoch at which a part comes in."""
        config = self.config
        epochs = [part.start_epoch for part in (config.nva, config.nta) if part.enabled]
        epochs.append(config.mlm.dictionary_from_epoch)
        steps = {math.ceil(max(epoch, 0) * self.setting.steps_per_epoch) for epoch in epochs}
        return tuple(sorted(steps | {0}))

    def terms(self, stage: Hashable) -> Terms:
        """L = L_itc + L_fgitm + L_mlm, and the loss of NTA's generator."""
        terms = {"itc": (1.0, Itc(self)), "itm": (1.0, Fgitm(self)), "mlm": (1.0, NasMlm(self))}
        if self.config.nta.enabled:
            terms["generator"] = (self.config.nta.generator_weight, Generator(self))
        return terms | added_terms(self)

    # ------------------------------------------------------------------------------- VD

    def read_images(self, seen: Seen, state: MethodState) -> tuple[Seen, MethodState, Metrics]:
        """The pictures in the tokens of the dictionary, which moves with the batch."""
        if not self.config.dictionary.enabled:
            return super().read_images(seen, state)
        inputs = seen.params, state["dictionary"], seen.student.image_tokens_BxTxD
        frozen, learning = seen.stage.dictionary_frozen, seen.learning
        words, metrics = seen.draw(
            "dictionary", lambda key: self.look_up(*inputs, key if learning else None, frozen)
        )
        seen = seen._replace(image_tokens_BxTxD=words.tokens_BxTxD, extra=words)
        return seen, state | {"dictionary": words.state}, metrics

    def look_up(
        self,
        params: Params,
        state: DictionaryState,
        image_tokens_BxTxD: Array,
        key: Array | None = None,
        frozen: bool = False,
    ) -> tuple[DictionaryTokens, Metrics]:
        """Visual dictionary (method section, VD): patches -> codes -> gated, positioned tokens.

        With a key the dictionary is also updated on this batch; without one it is only read.
        """
        config = self.config.dictionary
        decay = jnp.where(frozen, 1.0, decay_at(config, state.step, self.setting.total_steps))
        return self.apply(params).look_up(config, state, image_tokens_BxTxD, decay, key)

    def encode_image(
        self, params: Params, state: MethodState, image_BxHxWx3: Array, tokens: str = "method"
    ) -> tuple[Array, Array]:
        """Tokens of the dictionary (B, T, D), or of the encoder; unit ITC features (B, E)."""
        tokens_BxTxD, feature_BxE = super().encode_image(params, state, image_BxHxWx3)
        if tokens == "method" and self.config.dictionary.enabled:
            words, _ = self.look_up(params, state["dictionary"], tokens_BxTxD)
            tokens_BxTxD = words.tokens_BxTxD
        return tokens_BxTxD, feature_BxE

    def patch_codes(
        self, params: Params, state: MethodState, image_BxHxWx3: Array
    ) -> PatchCodes | None:
        """See `Method`."""
        if not self.config.dictionary.enabled:
            return None
        return self.apply(params).patch_codes(state["dictionary"], image_BxHxWx3)

    def start_from(self, params: Params, state: MethodState, saved: Saved) -> MethodState:
        """As ALBEF's, with the checkpoint's dictionary if it has one."""
        state = super().start_from(params, state, saved)
        if not self.config.dictionary.enabled:
            return state
        if (fields := saved.entry("dictionary")) is None:
            saved.say("these weights have no dictionary: it starts anew")
            return state
        dictionary = replace(resized(fields, self.config.dictionary.codes), step=jnp.int32(1))
        return state | {"dictionary": dictionary}  # past step 0, at which it starts from data

    # ------------------------------------------------------------------------------- NVA and NTA

    def negative_images(
        self, params: Params, encoded: Encoded, words: DictionaryTokens, batch: Batch, draw: Draws
    ) -> NvaImages:
        """NVA: all patches with a code of the object get the same other code (Fig. 3)."""
        config = self.config.nva
        similarity_BxN = find_object(self, params, encoded, words, batch)
        among = 0 if config.similarity == "random" else config.object_candidates
        inputs = similarity_BxN, among, config.objects
        objects_BxU = draw("object_patch_B", lambda key: draw_objects(key, *inputs))
        # R: the objects of all pictures
        given = config, words, objects_BxU, encoded.text_tokens_BxLxD[:, 0]
        code_RxC, log_weight_RxC, own_RxA = neighbours(self.config.dictionary, *given)
        code_R = draw("code_B", lambda key: draw_neighbour(key, code_RxC, log_weight_RxC))
        codes_BxU = code_R.reshape(objects_BxU.shape)
        found_BxU = jnp.isfinite(log_weight_RxC).any(-1).reshape(objects_BxU.shape)
        own_BxUxA = own_RxA.reshape(*objects_BxU.shape, -1)
        where_BxUxN = patches_with_codes(words.code_ids_BxN, own_BxUxA) & found_BxU[..., None]
        tokens_BxTxD, replacement = self.apply(params).replace_codes(
            encoded.image_tokens_BxTxD, words, where_BxUxN, codes_BxU, config.replace
        )
        if not config.stop_gradient:  # the parts have none
            replacement = None
        made = tokens_BxTxD, similarity_BxN, objects_BxU, codes_BxU, where_BxUxN.any(1)
        return NvaImages(*made, found_BxU.any(-1), replacement, words.code_ids_BxN)

    def with_published_negatives(self) -> Nas | None:
        """With NVA in the authors' form."""
        nva = as_published(self.config.nva)
        same = nva == self.config.nva or not nva.enabled
        return None if same else replace(self, config=replace(self.config, nva=nva))

    def explain_negatives(
        self, params: Params, state: MethodState, batch: Batch, draw: Draws
    ) -> NvaImages | None:
        """What NVA makes of a batch, without dropout."""
        if not self.config.nva.enabled:
            return None
        image = super().encode_image(params, state, batch["image_BxHxWx3"])
        text = self.encode_text(params, batch["token_ids_BxL"], batch["token_mask_BxL"])
        words, _ = self.look_up(params, state["dictionary"], image[0])
        return self.negative_images(params, Encoded(*image, *text, {}), words, batch, draw)


class Fgitm(Itm):
    """ITM over the hard negatives of the batch, NVA's pictures, NTA's captions, and the data's."""

    def rows(self, seen: Seen) -> dict[str, Rows]:
        """ALBEF's rows, and those of the negatives that are on."""
        method, config, rows = self.method, self.method.config, super().rows(seen)
        if seen.stage.nva:
            inputs = seen.params, seen.student, seen.extra, seen.batch, seen.draw
            made = method.negative_images(*inputs)
            valid_B = rows_on(config.nva, method.setting.epoch(seen.step), made.valid_B, seen.draw)
            negatives = ImageNegatives(
                made.tokens_BxTxD[:, None], valid_B[:, None], ("nva",), (made.replacement,)
            )
            found = picture_rows(seen, negatives, config.nva.stop_gradient)
            replaced, valid = made.replaced_BxN.mean(), valid_B.mean()
            share = {"nva/replaced_share": replaced, "nva/valid_share": valid}
            rows |= {"nva": replace(found["nva"], metrics=share)}
        if seen.stage.nta:
            texts, share = negative_texts(method, config.nta, seen)
            read = read_captions(method, seen, texts, "student")
            found = caption_rows(read, config.nta.stop_gradient)
            rows |= {"nta": replace(found["nta"], metrics=share)}
        return rows | given_rows(method, seen)

    def weights(self) -> dict[str, float]:
        """One mean over all rows, as in the code; or ITM, plus each kind with its weight."""
        if (config := self.method.config.itm).form == "mean":
            return {}
        given = fgitm_names(config, self.method.config.negatives)
        made = {"nva": config.nva_weight, "nta": config.nta_weight}
        return made | dict.fromkeys(given, config.given_weight)


class NasMlm(Mlm):
    """MLM beside the continuous image tokens, or from some epoch on those of the dictionary."""

    def image_tokens(self, seen: Seen) -> Array | None:
        """Image tokens (B, T, D) beside the masked captions; None: those of the other rows."""
        if seen.stage.mlm_on_dictionary or not self.method.config.dictionary.enabled:
            return None
        return seen.student.image_tokens_BxTxD
