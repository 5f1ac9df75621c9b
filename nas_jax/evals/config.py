"""What an evaluation measures, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nas_jax.utils.errors import ConfigError

if TYPE_CHECKING:
    from nas_jax.methods.method import Method

IMAGE_TOKENS = ("method", "encoder")
STORES = ("model", "bfloat16")
FITS = ("squash", "crop")


@dataclass(frozen=True)
class EvalConfig:
    """Which metrics the suite computes, with which scores; `train.eval_every` says when."""

    # scores that the method gives (docs/evaluation.md); empty: the method's default ones
    scorers: tuple[str, ...] = ()
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
    # how a benchmark's pictures come to the model's size: squash | crop, the square in the middle
    fit: str = "squash"
    # also SCORER-blind: the scores minus those with a blank picture
    subtract_blind: bool = False
    bootstrap: int = 1000  # resamples of a confidence interval

    def validate(self) -> None:
        """Raises ConfigError on the first field with an unusable value.

        Whether the method has the scorers is another question: `check_scorers`.
        """
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise _unusable(name, value, f"an integer >= {least}")
        for name in ("retrieval", "foils", "quads", "subtract_blind"):
            if not isinstance(getattr(self, name), bool):
                raise _unusable(name, getattr(self, name), "True or False")
        for name, known in (("image_tokens", IMAGE_TOKENS), ("store", STORES), ("fit", FITS)):
            if getattr(self, name) not in known:
                raise _unusable(name, getattr(self, name), " or ".join(known))
        if not self.device_gib >= 0:
            raise _unusable("device_gib", self.device_gib, "0 or more; 0 is host memory alone")
        if not 0 <= self.max_dropped <= 1:
            raise _unusable("max_dropped", self.max_dropped, "a share in [0, 1]; 0.01 is usual")
        if self.benchmarks and not self.data:
            got = f"eval.benchmarks={self.benchmarks} without eval.data"
            raise ConfigError(got, "their folder", "set eval.data")
        if isinstance(self.scorers, str) or len(set(self.scorers)) < len(self.scorers):
            raise _unusable("scorers", self.scorers, "a tuple of distinct names")


_LEAST = {
    "rerank_k": 1,
    "batch_size": 1,
    "match_rows": 1,
    "max_images": 0,
    "max_pairs": 0,
    "text_length": 3,
    "bootstrap": 100,
}


def _unusable(name: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"eval.{name}={value!r}", expected, f"set eval.{name}")


def check_scorers(
    names: tuple[str, ...], method: Method | type[Method], field: str = "eval.scorers"
) -> tuple[str, ...]:
    """The scorers of an evaluation: the names, or where there are none, the method's default ones.

    Args:
      names: what the user asks for.
      method: a method, or its class.
      field: where the user wrote the names.

    Raises:
      ConfigError: a name that the method does not give, or a name twice.
    """
    known = (*method.feature_scores, *method.pair_scores, *method.summed_scores)
    unknown = [name for name in names if name not in known]
    if isinstance(names, str) or unknown or len(set(names)) < len(names):
        expected = f"distinct names out of {', '.join(known)}, which the method gives"
        raise ConfigError(f"{field}={names!r}", expected, f"set {field}")
    return tuple(names) or tuple(method.default_scores)


def check_has_scores(method: Method | type[Method], what: str) -> None:
    """Raises ConfigError where a method gives pictures and captions no scores, as those of tasks
    with a head of their own. what: the user asks for it.
    """
    if not method.default_scores:
        raise ConfigError(
            f"{what} of a method that gives pictures and captions no scores",
            "pretraining or retrieval",
            "its own tests are named in data.val, and asked by main.py --mode=eval",
        )


def with_scorers(config: EvalConfig, method: Method) -> EvalConfig:
    """The config with its scorers by name: see `check_scorers`."""
    return replace(config, scorers=check_scorers(config.scorers, method))
