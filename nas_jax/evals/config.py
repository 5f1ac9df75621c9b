"""What an evaluation measures, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass

from nas_jax.utils.errors import ConfigError

SCORERS = ("itc", "itm", "itm_logit", "itm+itc")
RULES = ("own", "wording")
IMAGE_TOKENS = ("method", "encoder")
STORES = ("model", "bfloat16")


@dataclass(frozen=True)
class EvalConfig:
    """Which metrics the suite computes, with which scores; `train.eval_every` says when."""

    # names of evals/scorers.py: itc, itm, itm_logit, itm+itc
    scorers: tuple[str, ...] = ("itc", "itm")
    retrieval: bool = True  # recall at 1, 5, 10 in both directions
    foils: bool = True  # caption or foil
    quads: bool = True  # two pictures, two captions
    # candidates of a query that ITM ranks again after ITC; ALBEF: 128 Flickr30k, 256 COCO
    rerank_k: int = 128
    # images or texts of one device call; rounded up to a multiple of the devices
    batch_size: int = 64
    match_rows: int = 256  # pairs of one call of the matching head, at most; rounded up likewise
    # retrieval among at most this many images, taken evenly over the set; 0: all
    max_images: int = 0
    max_pairs: int = 0  # at most this many foils, and as many quads, taken evenly; 0: all
    # what the matching head reads; method: the dictionary's in NAS | encoder: the ViT's
    image_tokens: str = "method"
    # encoded tokens are kept as the model gives them | bfloat16: in half of the memory
    store: str = "model"
    device_gib: float = 4.0  # encoded tokens on each device, at most; the rest waits in host memory
    # public or own benchmarks beside the run's own sets (docs/evaluation.md)
    benchmarks: tuple[str, ...] = ()
    data: str = ""  # folder with one folder a benchmark, of its name
    # tokens of a benchmark's texts; longer ones are cut (the run's own: data.text_length)
    text_length: int = 64
    max_dropped: float = 0.01  # a larger share of unusable items ends the evaluation
    bootstrap: int = 1000  # resamples of a confidence interval

    def validate(self) -> None:
        """Raises ConfigError on the first field with an unusable value."""
        for name, least in (
            ("rerank_k", 1),
            ("batch_size", 1),
            ("match_rows", 1),
            ("max_images", 0),
            ("max_pairs", 0),
            ("text_length", 3),
            ("bootstrap", 100),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(
                    f"eval.{name}={value!r}", f"an integer >= {least}", f"set eval.{name}"
                )
        for name in ("retrieval", "foils", "quads"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(
                    f"eval.{name}={getattr(self, name)!r}", "True or False", f"set eval.{name}"
                )
        for name, known in (("image_tokens", IMAGE_TOKENS), ("store", STORES)):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"eval.{name}={getattr(self, name)!r}", " or ".join(known), f"set eval.{name}"
                )
        if not self.device_gib >= 0:
            raise ConfigError(
                f"eval.device_gib={self.device_gib}", "0 or more", "use 0 for host memory alone"
            )
        if not 0 <= self.max_dropped <= 1:
            raise ConfigError(
                f"eval.max_dropped={self.max_dropped}", "a share in [0, 1]", "0.01 is usual"
            )
        if self.benchmarks and not self.data:
            raise ConfigError(
                f"eval.benchmarks={self.benchmarks} without eval.data",
                "their folder",
                "set eval.data",
            )
        check_scorers(self.scorers, "eval.scorers")


def check_scorers(names: tuple[str, ...], where: str) -> None:
    """Raises ConfigError unless these are names of scorers, each once."""
    unknown = [name for name in names if name not in SCORERS]
    if isinstance(names, str) or unknown or not names or len(set(names)) < len(names):
        expected = f"a tuple of distinct names out of {SCORERS}"
        raise ConfigError(f"{where}={names!r}", expected, f"set {where}")
