"""Sections of a method's config that several methods have."""

from __future__ import annotations

from dataclasses import dataclass

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

    def validate(self) -> None:
        """Raises ConfigError on unusable values."""
        if self.queue_size < 0 or self.temp_init <= 0:
            raise ConfigError(
                f"queue_size={self.queue_size}, temp_init={self.temp_init}",
                "a queue of 0 or more rows and a positive temperature",
                "65536 and 0.07 are ALBEF's",
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


@dataclass(frozen=True)
class FgitmConfig(ItmConfig):
    """Matching loss over true pairs and all kinds of negatives."""

    # "mean": one mean over all rows, as in the code; "weighted": ITM + weights * (NVA, NTA)
    form: str = "mean"
    nva_weight: float = 1 / 3  # used by "weighted"
    nta_weight: float = 1 / 3

    def validate(self) -> None:
        """Raises ConfigError on unusable values."""
        super().validate()
        if self.form not in ("mean", "weighted"):
            raise ConfigError(f"form={self.form!r}", "mean or weighted", "set one of them")


@dataclass(frozen=True)
class NasMlmConfig(MlmConfig):
    """Masked language modelling."""

    # epoch from which MLM reads dictionary tokens; negative = never
    dictionary_from_epoch: float = -1.0
