"""Sections of a method's config that several methods have."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, fields

from nas_jax.utils.errors import ConfigError

SAME = ("id", "words", "synonyms")
"""What may tell that another pair is as right as the own one."""


@dataclass(frozen=True)
class TempConfig:
    """The learned temperature of a contrastive loss; defaults are CLIP's."""

    temp_init: float = 0.07
    temp_min: float = 0.01  # the temperature is held above it before every step
    temp_max: float = 0.0  # and below this one; 0 = no bound

    def validate(self) -> None:
        """Raises ConfigError on unusable values."""
        if not 0 < self.temp_min <= min(self.temp_init, self.temp_max or math.inf):
            raise ConfigError(
                f"temp_init={self.temp_init}, temp_min={self.temp_min}, temp_max={self.temp_max}",
                "0 < temp_min <= temp_init and temp_max (0: none)",
                "0.07, 0.01 and 0 are CLIP's, 0.07, 0.001 and 0.5 ALBEF's",
            )


@dataclass(frozen=True)
class SameConfig:
    """Which other pairs of a batch are no negatives."""

    # Other pairs that are left out of ITC and of hard negatives, as they may be right: those of the
    # same image "id", with a caption of the same "words", or with one that differs by "synonyms"
    # only. The keys of a queue are told by their image id alone.
    same: tuple[str, ...] = ()
    # "wordnet" (needs nltk and its WordNet data) or a json file {word: [synonyms]}
    synonyms: str = ""

    def validate(self) -> None:
        """Raises ConfigError on unusable values."""
        if unknown := [name for name in self.same if name not in SAME]:
            raise ConfigError(f"same with {unknown[0]!r}", f"names of {', '.join(SAME)}", "mend it")
        if ("synonyms" in self.same) != bool(self.synonyms):
            raise ConfigError(
                f"same={self.same} with synonyms={self.synonyms!r}",
                "a table of synonyms where same has 'synonyms', and none elsewhere",
                "set synonyms to 'wordnet' or to a json file {word: [synonyms]}",
            )


@dataclass(frozen=True)
class ItcConfig(TempConfig, SameConfig):
    """Contrastive loss, its temperature and its queues."""

    temp_min: float = 0.001
    temp_max: float = 0.5
    queue_size: int = 65536  # Q; 0 = no queue; the batch size must divide it
    # never enqueue: the noise stays in the denominator, as in the NAS authors' runs
    queue_frozen: bool = False
    # every key with the same image id is a positive (ALBEF's retrieval fine-tuning)
    positives_by_id: bool = False

    def validate(self) -> None:
        """Raises ConfigError on unusable values."""
        TempConfig.validate(self)
        SameConfig.validate(self)
        if self.queue_size < 0:
            raise ConfigError(
                f"queue_size={self.queue_size}",
                "a queue of 0 or more rows",
                "65536 is ALBEF's",
            )


@dataclass(frozen=True)
class ItmConfig:
    """Matching loss over true pairs and negatives."""

    exclude_same_id: bool = True  # pairs with the row's own image id are no negatives
    # Blocks of the batch inside which hard negatives are drawn; 1 = the whole batch. As many as
    # devices with rows (or a multiple), and no image tokens cross from device to device.
    mining_shards: int = 1

    def validate(self) -> None:
        """Raises ConfigError on unusable values."""
        if self.mining_shards < 1:
            raise ConfigError(
                f"mining_shards={self.mining_shards}", "at least 1", "1 draws from the whole batch"
            )

    def check_batch(self, batch_size: int, pairs: bool = False) -> None:
        """Raises ConfigError unless the blocks hold whole rows; pairs: and two by two."""
        if batch_size % self.mining_shards:
            raise ConfigError(
                f"method.itm.mining_shards={self.mining_shards}, data.batch_size={batch_size}",
                "a divisor of the batch size",
                "change one of the two",
            )
        if pairs and batch_size // self.mining_shards % 2:
            raise ConfigError(
                f"data.batch_size={batch_size}, method.itm.mining_shards={self.mining_shards}",
                "an even number of rows in each block, as rows come in pairs",
                "change one of the two",
            )


@dataclass(frozen=True)
class MlmConfig:
    """Masked language modelling."""

    probability: float = 0.15
    # masked tokens of a caption, at most; only these reach the vocabulary; 0 = no limit
    max_masked: int = 0

    def validate(self) -> None:
        """Raises ConfigError on unusable values."""
        if not 0 < self.probability < 1:
            raise ConfigError(f"probability={self.probability}", "0 < p < 1", "0.15 is BERT's")


GIVEN = ("captions", "images", "siblings")
"""Negatives of the data that FGITM may have (methods/given.py)."""


@dataclass(frozen=True)
class FgitmConfig(ItmConfig):
    """Matching loss over true pairs and all kinds of negatives."""

    # "mean": one mean over all rows, as in the code; "weighted": ITM + weights * (NVA, NTA)
    form: str = "mean"
    nva_weight: float = 1 / 3  # used by "weighted"
    nta_weight: float = 1 / 3
    # Negatives of the data that are rows too: "captions" and "images", as many as
    # method.negatives.given and given_images say; "siblings": the other record of a source beside
    # it in the batch (data.siblings)
    given: tuple[str, ...] = ()
    given_weight: float = 1 / 3  # used by "weighted", of each kind of these rows

    def validate(self) -> None:
        """Raises ConfigError on unusable values."""
        super().validate()
        if self.form not in ("mean", "weighted"):
            raise ConfigError(f"form={self.form!r}", "mean or weighted", "set one of them")
        if set(self.given) - set(GIVEN) or len(set(self.given)) < len(self.given):
            raise ConfigError(
                f"given={self.given}", f"some of {', '.join(GIVEN)}, each once", "mend it"
            )

    def check_batch(self, batch_size: int, pairs: bool = False) -> None:
        """As ITM's; siblings are pairs of rows."""
        super().check_batch(batch_size, pairs or "siblings" in self.given)


@dataclass(frozen=True)
class NasMlmConfig(MlmConfig):
    """Masked language modelling."""

    # epoch from which MLM reads dictionary tokens; negative = never
    dictionary_from_epoch: float = -1.0


GENERATORS = ("swap", "sister", "refill", "exchange", "given")
"""Who makes negative captions (methods/text_negatives.py)."""
NEGATIVE_TERMS = ("negative_itc", "negative_rank", "negative_intra_text", "negative_itm")
"""The losses that read them."""
_GIVEN = tuple(f"itm.given={name}" for name in GIVEN)
_READERS = {  # of a setting of negative captions; of the others all of NEGATIVE_TERMS
    "rank_margin": ("negative_rank",),
    "stop_gradient": ("negative_itm", *_GIVEN),
    "given": (*NEGATIVE_TERMS, _GIVEN[0]),
    "given_kinds": (*NEGATIVE_TERMS, _GIVEN[0]),
    "given_images": (_GIVEN[1],),
}
NEED_A_MODEL = ("refill", "exchange")  # the generator of NTA, VL-Match and ViLTA


@dataclass(frozen=True)
class NegativeTextConfig:
    """Negative captions of the terms that read them; nothing is made where no term does."""

    # One caption each: "swap": two words change places; "sister": a word gives way to a sister
    # term; "refill" and "exchange": by the method's own language model, as NTA; "given": those of
    # the data (docs/data.md)
    generators: tuple[str, ...] = ("swap",)
    given: int = 1  # captions of "given" for each pair: of each of given_kinds
    given_kinds: tuple[str, ...] = ()  # as the data call them, counted apart; () = of any kind
    given_images: int = 1  # negative pictures of the data for each pair, where a loss reads them
    # Words of the same kind that mean something else: "wordnet" (needs nltk and its WordNet data),
    # "world:NAME" (the words of a world of scenes), or a json file {word: [sister terms]}
    sisters: str = ""
    swap_sisters: bool = False  # only sister terms of each other change places
    rank_margin: float = 10.0  # of the term "negative_rank"; CE-CLIP's own adapts
    # the rows of negative captions in the matching loss train the fusion encoder and its head only
    stop_gradient: bool = False

    def validate(self) -> None:
        """Raises ConfigError on unusable values."""
        if not self.generators or any(name not in GENERATORS for name in self.generators):
            raise ConfigError(
                f"generators={self.generators}", f"some of {', '.join(GENERATORS)}", "name them"
            )
        if len(set(self.generators)) < len(self.generators):
            raise ConfigError(
                f"generators={self.generators}", "each name once", "name other generators too"
            )
        if ("sister" in self.generators or self.swap_sisters) and not self.sisters:
            raise ConfigError(
                f"generators={self.generators}, swap_sisters={self.swap_sisters} without sisters",
                "a table of sister terms",
                "set sisters to 'wordnet', to world:NAME or to a json file {word: [sister terms]}",
            )
        if self.rank_margin < 0 or min(self.given, self.given_images) < 1:
            raise ConfigError(
                f"rank_margin={self.rank_margin}, given={self.given}, "
                f"given_images={self.given_images}",
                "a margin of 0 or more, and at least one caption and picture",
                "10, 1 and 1 are the defaults",
            )
        if len(set(self.given_kinds)) < len(self.given_kinds):
            raise ConfigError(
                f"given_kinds={self.given_kinds}",
                "each kind once",
                "raise given for more of a kind",
            )

    @property
    def given_names(self) -> tuple[str, ...]:
        """What the given captions of a pair are called in metrics."""
        if not self.given_kinds:
            return tuple(f"given_{number}" for number in range(self.given))
        numbers = [""] if self.given == 1 else [f"_{number}" for number in range(self.given)]
        return tuple(f"given_{kind}{number}" for kind in self.given_kinds for number in numbers)

    @property
    def count(self) -> int:
        """C, the negative captions of a pair."""
        return sum(len(self.given_names) if name == "given" else 1 for name in self.generators)

    def check_terms(self, names: Collection[str]) -> None:
        """Raises ConfigError on a setting that no term reads. names: of NEGATIVE_TERMS, and
        itm.given=NAME of each of GIVEN that FGITM has.
        """
        for item in fields(self):
            value, default = getattr(self, item.name), item.default
            readers = _READERS.get(item.name, NEGATIVE_TERMS)
            if value != default and not set(readers) & set(names):
                raise ConfigError(
                    f"negatives.{item.name}={value!r}, which no term reads",
                    f"{default!r}, or a method that has {' or '.join(readers)}",
                    f"leave it at {default!r}; method.terms adds terms to methods like albef",
                )

    def check_model(self, has_generator: bool) -> None:
        """Raises ConfigError where a language model is asked for that the method does not train."""
        asked = [name for name in self.generators if name in NEED_A_MODEL]
        if asked and not has_generator:
            raise ConfigError(
                f"negatives.generators with {asked[0]!r}",
                "a method that trains a generator, as nas does with nta.enabled, vlmatch and vilta",
                "use swap, sister or given",
            )
