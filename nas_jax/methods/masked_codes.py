"""SOHO's masked visual modelling as a term beside NAS's dictionary (Huang et al., CVPR 2021).

    --config.method.terms="(('masked_codes', 1.0),)"

All patches of a picture that share a code are masked in the tokens of the dictionary, and the
fusion encoder, which reads the caption and the masked picture as one sequence, predicts the code.
As in the authors' code, the logits are cosines with the codes, which get no gradient. Two things
differ: SOHO masks a picture with probability 0.015, since all its tasks read the masked picture,
while here only this term does, so that each picture is masked; and the cosines are divided by a
temperature, without which a softmax over K codes cannot become sharp.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from nas_jax.losses.masked_codes import code_rows, mask_patches
from nas_jax.methods.terms import Seen, Term
from nas_jax.models.rows import fuse_together
from nas_jax.models.towers import with_cls
from nas_jax.parallel.chunks import in_pieces
from nas_jax.typing import Array, Metrics, Params
from nas_jax.utils.errors import ConfigError

TEMPERATURE = 0.07
MOST = 32  # masked patches of a picture whose code is asked for


class MaskedCodes(Term):
    """Masked visual modelling in the tokens of NAS's dictionary."""

    @classmethod
    def check(cls, config: Any) -> None:
        """Raises ConfigError without a dictionary."""
        dictionary = getattr(config, "dictionary", None)
        if dictionary is None or not dictionary.enabled:
            raise ConfigError(
                "terms with 'masked_codes' without a dictionary",
                "a method whose pictures have codes",
                "use method.name=nas with method.dictionary.enabled=True",
            )

    def init(self, key: Array) -> Params:
        """What stands in place of masked patches: mask_token (D,)."""
        config = self.method.network.config
        return {"mask_token": config.init_std * jax.random.normal(key, (config.dim,))}

    def value(self, seen: Seen, rows: Mapping, fused: Mapping) -> tuple[Array, Metrics]:
        """Mean cross-entropy over the masked patches of the batch."""
        method, words, params = self.method, seen.extra, seen.params
        masked = seen.draw(
            "masked_patches", lambda key: mask_patches(key, words.code_ids_BxN, MOST)
        )
        text_BxLxD, mask_BxL = seen.student.text_tokens_BxLxD, seen.batch["token_mask_BxL"]
        inputs = {
            "image": seen.student.image_tokens_BxTxD,
            "mixed": words.mixed_BxNxD,
            "masked": masked,
            "text": (text_BxLxD, mask_BxL),
            "seeds": seen.draw.seeds("fusion/masked_codes", len(mask_BxL)),
        }

        def piece(inputs: dict[str, Any]) -> Array:
            masked, mixed_BxNxD = inputs["masked"], inputs["mixed"]
            filled_BxNxD = jnp.where(
                masked.where_BxN[..., None], params["masked_codes"]["mask_token"], mixed_BxNxD
            )
            patches_BxNxD = method.apply(params).neck.finish(filled_BxNxD)
            tokens_BxTxD = with_cls(inputs["image"], patches_BxNxD)
            given = inputs["text"], tokens_BxTxD, 1 + masked.positions_BxM, inputs["seeds"]
            fused_BxMxD = fuse_together(method.network, params, *given)
            return code_rows(fused_BxMxD, words.state.codes_KxD, masked, TEMPERATURE)

        loss_B = in_pieces(piece, method.setting.pieces, inputs)
        loss = loss_B.sum() / jnp.maximum(masked.real_BxM.sum(), 1)
        return loss, {"masked_codes/share": masked.where_BxN.mean()}
