"""Configuration of the methods: one dataclass a component, so that each switch stands beside its
default.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nas_jax.models.visual_dictionary import DictionaryConfig
from nas_jax.negatives.nta import NtaConfig
from nas_jax.negatives.nva import NvaConfig
from nas_jax.utils.errors import ConfigError


@dataclass(frozen=True)
class ItcConfig:
    """Contrastive loss, its temperature and its queues."""

    queue_size: int = 65536  # Q; 0 = no queue; the batch size must divide it
    # never enqueue: the noise stays in the denominator, as in the NAS authors' runs
    queue_frozen: bool = False
    # every key with the same image id is a positive (ALBEF's retrieval fine-tuning)
    positives_by_id: bool = False
    temp_init: float = 0.07
    temp_min: float = 0.001  # the temperature is clamped to [temp_min, temp_max] before every step
    temp_max: float = 0.5


@dataclass(frozen=True)
class ItmConfig:
    """Matching loss over positives and all kinds of negatives (FGITM)."""

    exclude_same_id: bool = True  # pairs with the row's own image id are no negatives
    # blocks of the batch inside which hard negatives are drawn; 1 = the whole batch. As many as
    mining_shards: int = 1
    # devices with rows (or a multiple), and no image tokens cross from device to device
    # "mean": one mean over all rows, as in the code; "weighted": ITM + weights * (NVA, NTA)
    form: str = "mean"
    nva_weight: float = 1 / 3  # used by "weighted"
    nta_weight: float = 1 / 3


@dataclass(frozen=True)
class MlmConfig:
    """Masked language modelling."""

    probability: float = 0.15
    # picks a caption at most; only these positions reach the vocabulary; 0 = all positions
    max_masked: int = 0
    # epoch from which MLM reads dictionary tokens; negative = never
    dictionary_from_epoch: float = -1.0


@dataclass(frozen=True)
class MethodConfig:
    """Which method, and its switches."""

    name: str = "nas"  # "albef" or "nas"
    momentum: float = 0.995  # of the teacher
    alpha: float = 0.4  # weight of the teacher's soft targets in ITC and MLM
    alpha_ramp_epochs: float = 1.0  # epochs over which alpha rises from 0
    # every row by itself, as the equations read: the same numbers from more operations
    plain: bool = False
    itc: ItcConfig = field(default_factory=ItcConfig)
    itm: ItmConfig = field(default_factory=ItmConfig)
    mlm: MlmConfig = field(default_factory=MlmConfig)
    dictionary: DictionaryConfig = field(default_factory=DictionaryConfig)
    nva: NvaConfig = field(default_factory=NvaConfig)
    nta: NtaConfig = field(default_factory=NtaConfig)

    def validate(self) -> None:
        """Raises ConfigError on values that contradict each other."""
        if self.name not in ("albef", "nas"):
            raise ConfigError(f"method.name={self.name!r}", "albef or nas", "set one of them")
        if not 0 <= self.momentum <= 1 or not 0 <= self.alpha <= 1:
            raise ConfigError(
                f"method.momentum={self.momentum}, method.alpha={self.alpha}",
                "shares of 1",
                "0.995 and 0.4 are ALBEF's",
            )
        if self.itc.queue_size < 0 or self.itc.temp_init <= 0:
            raise ConfigError(
                f"method.itc.queue_size={self.itc.queue_size}, temp_init={self.itc.temp_init}",
                "a queue of 0 or more rows and a positive temperature",
                "65536 and 0.07 are ALBEF's",
            )
        if self.itm.form not in ("mean", "weighted"):
            raise ConfigError(
                f"method.itm.form={self.itm.form!r}", "mean or weighted", "set one of them"
            )
        if self.itm.mining_shards < 1:
            raise ConfigError(
                f"method.itm.mining_shards={self.itm.mining_shards}",
                "at least 1",
                "1 draws from the whole batch",
            )
        if not 0 < self.mlm.probability < 1:
            raise ConfigError(
                f"method.mlm.probability={self.mlm.probability}", "0 < p < 1", "0.15 is BERT's"
            )
        if self.name == "albef" and (
            self.dictionary.enabled or self.nva.enabled or self.nta.enabled
        ):
            raise ConfigError(
                "method.name='albef' with a dictionary, nva or nta enabled",
                "albef without them",
                "use method.name='nas', or variant=albef in the config argument",
            )
        if self.nva.enabled and not self.dictionary.enabled:
            raise ConfigError(
                "method.nva.enabled=True without a dictionary",
                "a dictionary, in which NVA looks for neighbours",
                "set method.dictionary.enabled=True",
            )
        if self.nva.enabled and self.nva.neighbours >= self.dictionary.codes:
            raise ConfigError(
                f"method.nva.neighbours={self.nva.neighbours} of {self.dictionary.codes} codes",
                "fewer neighbours than codes",
                "lower the one or raise the other",
            )
        if self.mlm.dictionary_from_epoch >= 0 and not self.dictionary.enabled:
            raise ConfigError(
                "method.mlm.dictionary_from_epoch without a dictionary",
                "-1",
                "set method.dictionary.enabled=True",
            )
        self.dictionary.validate()
        self.nva.validate()
        self.nta.validate()


VARIANTS: dict[str, dict[str, bool]] = {
    "albef": {"dictionary": False, "nva": False, "nta": False},
    "vd": {"dictionary": True, "nva": False, "nta": False},
    "vd_nva": {"dictionary": True, "nva": True, "nta": False},
    "vd_nta": {"dictionary": True, "nva": False, "nta": True},
    "nas": {"dictionary": True, "nva": True, "nta": True},
}
"""The ablation of the paper: what each variant switches on."""
