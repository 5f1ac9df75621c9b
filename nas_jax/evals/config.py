"""What an evaluation measures, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass

from nas_jax.utils.errors import ConfigError

SCORERS = ("itc", "itm")


@dataclass(frozen=True)
class EvalConfig:
    """Which metrics the suite computes, with which scores; `train.eval_every` says when."""

    scorers: tuple[str, ...] = SCORERS  # "itc": cosine of the two encoders; "itm": the matching head
    retrieval: bool = True  # recall at 1, 5, 10 in both directions
    foils: bool = True  # caption or foil
    quads: bool = True  # two pictures, two captions
    rerank_k: int = 128  # candidates of a query that ITM ranks again after ITC; ALBEF: 128 Flickr30k, 256 COCO
    batch_size: int = 64  # images, texts or pairs of one device call
    max_images: int = 0  # retrieval among at most this many images, taken evenly over the set; 0: all
    max_pairs: int = 0  # at most this many foils, and as many quads, taken evenly; 0: all

    def validate(self) -> None:
        """Raises ConfigError on the first field with an unusable value."""
        for name, least in (
            ("rerank_k", 1),
            ("batch_size", 1),
            ("max_images", 0),
            ("max_pairs", 0),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"eval.{name}={value!r}", f"an integer >= {least}", f"set eval.{name}")
        for name in ("retrieval", "foils", "quads"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"eval.{name}={getattr(self, name)!r}", "True or False", f"set eval.{name}")
        unknown = [name for name in self.scorers if name not in SCORERS]
        if isinstance(self.scorers, str) or unknown or not self.scorers or len(set(self.scorers)) < len(self.scorers):
            expected = f"a tuple of distinct names out of {SCORERS}"
            raise ConfigError(f"eval.scorers={self.scorers!r}", expected, "set eval.scorers")
