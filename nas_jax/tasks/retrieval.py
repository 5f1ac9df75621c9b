"""Retrieval fine-tuning on COCO or Flickr30k: ITC and ITM at 384 px, without MLM (ALBEF code,
Retrieval.py and models/model_retrieval.py), and the same with NAS's dictionary and NVA (NAS code).

Pictures have several captions: in ITC all keys of the row's own picture are right, in the batch and
in the queue, and none of them is a hard negative of ITM.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from nas_jax.methods.albef import Albef, AlbefConfig
from nas_jax.methods.config import ItcConfig
from nas_jax.methods.nas import Nas, NasConfig
from nas_jax.methods.terms import Terms
from nas_jax.tasks.task import Task


def _by_id() -> ItcConfig:
    return ItcConfig(positives_by_id=True)


@dataclass(frozen=True)
class RetrievalConfig(AlbefConfig):
    """ALBEF's switches; `mlm` is not read."""

    name: str = "retrieval"
    itc: ItcConfig = field(default_factory=_by_id)


@dataclass(frozen=True)
class RetrievalNasConfig(NasConfig):
    """NAS's switches; `mlm` is not read."""

    name: str = "retrieval_nas"
    itc: ItcConfig = field(default_factory=_by_id)


def _without_mlm(terms: Terms) -> Terms:
    return {name: term for name, term in terms.items() if name != "mlm"}


@dataclass(frozen=True)
class Retrieval(Albef):
    """ALBEF without MLM."""

    Config = RetrievalConfig

    def terms(self, stage: Hashable) -> Terms:
        """L = L_itc + L_itm."""
        return _without_mlm(super().terms(stage))


@dataclass(frozen=True)
class RetrievalNas(Nas):
    """NAS without MLM."""

    Config = RetrievalNasConfig

    def terms(self, stage: Hashable) -> Terms:
        """L = L_itc + L_fgitm."""
        return _without_mlm(super().terms(stage))


class RetrievalTask(Task):
    """The pairs and evaluations of pretraining."""

    method = Retrieval


class RetrievalNasTask(Task):
    """The pairs and evaluations of pretraining."""

    method = RetrievalNas
