"""Why two texts that differ have the same tokens, and what helps."""

from __future__ import annotations

from typing import Any

from nas_jax.data.text_ops import clean_words, without_marks

_LENGTH = 64  # tokens of a word that are looked at
VOCABULARY = (
    "leave train.weights empty, and set data.tokenizer to a vocabulary of their language or leave "
    "it empty to learn one"
)


def why_equal(one: str, other: str, tokenizer: Any) -> tuple[str, str]:
    """Why two texts that differ have the same tokens, and the remedy.

    tokenizer: has `encode`, and `unk_id` where it knows unknown words.
    """
    pairs = list(zip(one.split(), other.split(), strict=False))
    differing = [pair for pair in pairs if pair[0] != pair[1]] or [(one, other)]
    words = [word for pair in differing for word in pair]
    ids_BxL, mask_BxL = tokenizer.encode(words, _LENGTH)
    unknown = getattr(tokenizer, "unk_id", None)
    if unknown is not None and bool(((ids_BxL == unknown) & mask_BxL).any()):
        return "the words that differ are not in the vocabulary", VOCABULARY
    if all(without_marks(first) == without_marks(second) for first, second in differing):
        return (
            "the tokenizer takes off the marks of letters",
            "learn a vocabulary with data.accents=keep, or set data.tokenizer to one with "
            '"strip_accents": false',
        )
    if all(clean_words(first) == clean_words(second) for first, second in differing):
        return (
            "they differ in case, punctuation or spaces alone",
            "leave them out, or use a tokenizer that tells these apart, with "
            "data.clean_captions=False",
        )
    return (
        "the tokenizer's normalisation makes them one",
        "set data.tokenizer to one that tells them apart, or leave them out",
    )
