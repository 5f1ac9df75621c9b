"""SNLI-VE, visual entailment (Xie et al. 2019): a picture entails a sentence, contradicts it, or
neither.

As ALBEF: a head of two layers on the fused [CLS], and distillation from a momentum teacher
(section 4, "Visual Entailment"; its code, models/model_ve.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nas_jax.data.config import DataConfig
from nas_jax.data.scene_tasks import ENTAILMENT, draw_entailment
from nas_jax.storage import reading
from nas_jax.storage.paths import join
from nas_jax.tasks.finetuned import AnswerHead, Classified, FineTuneConfig, JointNetwork
from nas_jax.tasks.records import Entry, is_text, read_list
from nas_jax.tasks.task import Classifying, Label
from nas_jax.typing import Array


@dataclass(frozen=True)
class SnliVeConfig(FineTuneConfig):
    """Its switches; alpha does not rise from 0."""

    name: str = "snli_ve"


class SnliVeNetwork(JointNetwork):
    """The encoders with a three-way head."""

    def setup(self):
        super().setup()
        self.answer_head = AnswerHead(self.config, len(ENTAILMENT))

    def __call__(
        self,
        image_BxHxWx3: Array,
        token_ids_BxL: Array,
        token_mask_BxL: Array,
        seeds: Mapping[str, Array] = {},  # noqa: B006 (never written to)
    ) -> Array:
        """Logits (B, 3). seeds: of the dropout; {} for evaluation."""
        text = token_ids_BxL, token_mask_BxL
        return self.answer_head(self.first_token(text, self.encode_image(image_BxHxWx3), seeds))


@dataclass(frozen=True)
class SnliVe(Classified):
    """The method of the task."""

    Config = SnliVeConfig
    Network = SnliVeNetwork
    wants = (Label(),)


class SnliVeTask(Classifying):
    """Records {image, sentence, label}, as in ALBEF's ve_train, ve_dev and ve_test.json."""

    method = SnliVe
    draw = staticmethod(draw_entailment)
    classes = ENTAILMENT

    def read(self, path: str, config: DataConfig, tested: bool) -> Sequence[Entry]:
        """The key of an item is its number: a picture stands in several."""
        labels = ", ".join(sorted(ENTAILMENT))
        fields = {
            "image": (is_text, "a Flickr30k number or a path"),
            "sentence": (is_text, "the hypothesis"),
            "label": (lambda label: label in ENTAILMENT, f"one of {labels}"),
        }
        entries = read_list(path, fields)
        suffix = _suffix(entries[0]["image"], config.image_root) if entries else ""
        return [
            Entry(
                f"{number}",
                (one["image"] + suffix,),
                one["sentence"],
                ENTAILMENT.index(one["label"]),
            )
            for number, one in enumerate(entries)
        ]


def _suffix(image: str, root: str) -> str:
    """ALBEF's lists name a picture by its number, and its code adds .jpg."""
    return "" if reading.is_file(join(root, image)) else "" if "." in image else ".jpg"
