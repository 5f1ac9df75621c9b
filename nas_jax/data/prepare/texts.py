"""What is said of the captions of a prepared folder: their words, and what a tokenizer makes of
them.
"""

from __future__ import annotations

import os

from nas_jax.data.config import DataConfig
from nas_jax.data.corpus import Corpus
from nas_jax.data.prepared import PreparedSource
from nas_jax.data.text_check import caption_report, count_words, judge
from nas_jax.data.tokenizer import MARKED_SHARE, MAX_LETTERS, load_tokenizer
from nas_jax.utils.logging import Console


def say_texts(out: str | os.PathLike, tokenizer: str, console: Console) -> None:
    """Prints a line about the words of the captions, and about what `tokenizer` makes of them.

    tokenizer: a folder or name as in data.tokenizer; "": none. Captions are cleaned and cut as by a
    config's defaults.

    Raises:
      DataError: no prepared folder, or a tokenizer that cannot be used.
    """
    source, config = Corpus([PreparedSource(out)]), DataConfig()
    words = count_words(source)
    share = words.marked / max(1, words.words)
    kept = "keeps" if share > MARKED_SHARE else "strips"
    console.say(
        f"letters       {share:.1%} of the words have marks (accents, vowel signs), which a "
        f"learned vocabulary {kept} by data.accents=auto; {words.long:,} of over {MAX_LETTERS} "
        "letters, which become [UNK]"
    )
    if tokenizer:
        given = load_tokenizer(tokenizer)
        report = caption_report(source, given, config)
        console.say(f"tokens        {tokenizer}: {report.line()}")
        for line in judge(report, given, config, replaces_words=True, stops=False):
            console.say(f"warning       {line}")
