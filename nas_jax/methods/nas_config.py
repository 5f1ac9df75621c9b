"""What can be set of NAS (methods/nas.py), and which of its parts are on at a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from nas_jax.methods.albef_config import AlbefConfig
from nas_jax.methods.config import FgitmConfig, NasMlmConfig
from nas_jax.models.codebook import DictionaryConfig
from nas_jax.negatives.nta import NtaConfig
from nas_jax.negatives.nva import NvaConfig
from nas_jax.utils.errors import ConfigError


@dataclass(frozen=True)
class NasConfig(AlbefConfig):
    """ALBEF's switches, and those of the dictionary and the negatives."""

    name: str = "nas"
    itm: FgitmConfig = field(default_factory=FgitmConfig)
    mlm: NasMlmConfig = field(default_factory=NasMlmConfig)
    dictionary: DictionaryConfig = field(default_factory=DictionaryConfig)
    nva: NvaConfig = field(default_factory=NvaConfig)
    nta: NtaConfig = field(default_factory=NtaConfig)

    def validate(self) -> None:
        """Raises ConfigError on values that are out of range or contradict each other."""
        super().validate()
        if self.nva.enabled and not self.dictionary.enabled:
            raise ConfigError(
                "nva.enabled=True without a dictionary",
                "a dictionary, in which NVA looks for neighbours",
                "set method.dictionary.enabled=True",
            )
        self.nva.check_codes(self.dictionary.codes)
        if self.mlm.dictionary_from_epoch >= 0 and not self.dictionary.enabled:
            raise ConfigError(
                "mlm.dictionary_from_epoch without a dictionary",
                "-1",
                "set method.dictionary.enabled=True",
            )

    @property
    def has_generator(self) -> bool:
        """NTA's."""
        return self.nta.enabled


class Stage(NamedTuple):
    """Which parts are on at a step; static, so that what is off costs nothing."""

    nva: bool = False
    nta: bool = False
    dictionary_frozen: bool = False
    mlm_on_dictionary: bool = False
