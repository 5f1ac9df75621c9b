"""A method without a network, for tests of what is done with scores."""

from __future__ import annotations

from nas_jax.methods.method import Method


class Standin(Method):
    """ALBEF's scores out of `logits`; a subclass says what pictures and texts are."""

    pair_scores = ("itm", "itm_logit")
    summed_scores = {"itm+itc": ("itm_logit", "itc")}
    default_scores = ("itc", "itm")

    def __init__(self):
        super().__init__(config=None, network=None, setting=None)

    def logits(self, params, image_tokens_GxTxD, text_tokens_GxCxLxD):
        """(G, C, 2), of no match and of match."""
        raise NotImplementedError

    def score(self, params, image_tokens_GxTxD, text_tokens_GxCxLxD, token_mask_GxCxL):
        logits = self.logits(params, image_tokens_GxTxD, text_tokens_GxCxLxD)
        return {"itm": logits[..., 1] - logits[..., 0], "itm_logit": logits[..., 1]}
