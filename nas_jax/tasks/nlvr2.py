"""NLVR2: is a sentence true of two pictures? (Li et al. 2021, section 4 and appendix A; ALBEF code,
models/model_nlvr.py and model_pretrain_nlvr.py).

Each fusion layer becomes two, one after the other: the first attends to the left picture, the
second to the right one, with the same projections of keys and values. Text assignment
(`tasks/text_assignment.py`) prepares the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from nas_jax.data.config import DataConfig
from nas_jax.data.readers import Example, Field, Spec
from nas_jax.data.scene_tasks import draw_pair_statement
from nas_jax.evals.results import Result
from nas_jax.kernels.dropout import token_seeds
from nas_jax.kernels.image_tokens import ImageTokens, cls_apart
from nas_jax.kernels.last_layer import TextRows
from nas_jax.models.bert import BertLayer
from nas_jax.models.layers import rematerialised
from nas_jax.models.sizes import ModelConfig
from nas_jax.tasks.finetuned import AnswerHead, Classified, FineTuneConfig, JointNetwork
from nas_jax.tasks.records import Entry, asked, is_text, read_list
from nas_jax.tasks.task import Asker, Classifying, Found, Label, TestSet, share
from nas_jax.typing import Array, Batch, Params

LABELS = ("False", "True")
SIDES = ("first_encoder", "second_encoder")


@dataclass(frozen=True)
class Nlvr2Config(FineTuneConfig):
    """Its switches; defaults are ALBEF's."""

    name: str = "nlvr2"
    alpha_ramp_epochs: float = 1.0


class SideLayers(nn.Module):
    """The fusion layers that attend to the picture of one side."""

    config: ModelConfig

    def setup(self):
        layer = rematerialised(BertLayer, self.config.remat)
        self.layer = [layer(self.config) for _ in range(self.config.fusion_layers)]

    def __call__(self, number: int, *inputs: Any) -> Array:
        """One of them; inputs: as of `BertLayer`."""
        return self.layer[number](*inputs)


class PairEncoder(JointNetwork):
    """Two pictures and a text, fused."""

    def setup(self):
        super().setup()
        self.first_encoder, self.second_encoder = (SideLayers(self.config) for _ in SIDES)

    def fuse_pair(
        self, text: tuple[Array, Array], images: Sequence[Array], seeds: Mapping[str, Array]
    ) -> Array:
        """The fused [CLS] (B, D). text: ids and mask (B, L); images: tokens (B, T, D) of both."""
        ids_BxL, mask_BxL = text
        x_BxLxD = self.text_encoder(ids_BxL, mask_BxL, seeds.get("text"))
        rows = TextRows(mask_BxL, token_seeds(seeds.get("fusion"), ids_BxL.shape[1]))
        seen: list[tuple[ImageTokens, ...]]
        seen = [(ImageTokens((tokens_BxTxD,)),) for tokens_BxTxD in images]
        if self.config.cls_apart:
            seen = list(map(cls_apart, seen))
        number = self.config.text_layers
        for pair in range(self.config.fusion_layers):
            for side, image in zip((self.first_encoder, self.second_encoder), seen, strict=True):
                x_BxLxD = side(pair, x_BxLxD, number, rows, image)
                number += 1
        return x_BxLxD[:, 0]

    def encode_both(self, *images: Array) -> list[Array]:
        """Image tokens (B, T, D) of each, in one call; rows stay on their devices."""
        both = jnp.stack(images, axis=1)
        tokens = self.encode_image(both.reshape(-1, *both.shape[2:]))
        tokens = tokens.reshape(-1, len(images), *tokens.shape[1:])
        return [tokens[:, side] for side in range(len(images))]


class PairNetwork(PairEncoder):
    """A head on the fused [CLS]."""

    classes: int = len(LABELS)

    def setup(self):
        super().setup()
        self.answer_head = AnswerHead(self.config, self.classes)

    def __call__(
        self,
        image_BxHxWx3: Array,
        token_ids_BxL: Array,
        token_mask_BxL: Array,
        right_BxHxWx3: Array | None = None,
        seeds: Mapping[str, Array] = {},  # noqa: B006 (never written to)
    ) -> Array:
        """Logits (B, A). right: the second picture; None: the first one again, for `init`."""
        images = image_BxHxWx3, image_BxHxWx3 if right_BxHxWx3 is None else right_BxHxWx3
        text = token_ids_BxL, token_mask_BxL
        return self.answer_head(self.fuse_pair(text, self.encode_both(*images), seeds))


def without_twins(params: Params) -> Params:
    """The parameters without the keys and values of the second side, which are the first's."""
    return params | {SIDES[1]: _changed(params[SIDES[1]], lambda _, cross: _drop(cross))}


def with_twins(params: Params) -> Params:
    """The parameters as the network reads them."""
    first = params[SIDES[0]]

    def add(name: str, cross: Params) -> Params:
        return cross | {"key_value": first[name]["cross_attention"]["key_value"]}

    return params | {SIDES[1]: _changed(params[SIDES[1]], add)}


def _drop(cross: Params) -> Params:
    return {name: part for name, part in cross.items() if name != "key_value"}


def _changed(layers: Params, change: Any) -> Params:
    return {
        name: layer | {"cross_attention": change(name, layer["cross_attention"])}
        for name, layer in layers.items()
    }


@dataclass(frozen=True)
class RightPicture(Field):
    """The second picture of a record, mirrored and cropped by itself."""

    def spec(self, config: DataConfig) -> Spec:
        """See Field."""
        return {"right_BxHxWx3": ((config.image_size, config.image_size, 3), np.uint8)}

    def read(self, example: Example) -> Mapping[str, Any]:
        """See Field."""
        (other,) = asked(example.record).others
        return {"right_BxHxWx3": example.view(example.rng("right picture"), other)}


@dataclass(frozen=True)
class Paired(Classified):
    """A method of a `PairEncoder`."""

    Network: ClassVar[type[nn.Module]] = PairNetwork
    copies = ((rf"({'|'.join(SIDES)})/", "fusion_encoder/"),)

    def init(self, rng: Array) -> tuple[Params, dict]:
        """Fresh parameters; the sides share keys and values."""
        params = without_twins(super().init(rng)[0])
        return params, self.start_from(params, {}, None)

    def logits(self, params: Params, batch: Batch, seeds: Mapping[str, Array]) -> Array:
        """(B, A)."""
        return super().logits(with_twins(params), batch, seeds)


@dataclass(frozen=True)
class Nlvr2(Paired):
    """The method of the task."""

    Config = Nlvr2Config
    wants = (Label(), RightPicture())
    inputs = ("image_BxHxWx3", "token_ids_BxL", "token_mask_BxL", "right_BxHxWx3")


# -------------------------------------------------------------------------------------- the task


class Nlvr2Task(Classifying):
    """Records {identifier, sentence, label}, or ALBEF's {images, sentence, label}."""

    method = Nlvr2
    draw = staticmethod(draw_pair_statement)
    sharing = 4
    classes = LABELS
    quantities: ClassVar[tuple[str, ...]] = ("accuracy", "consistency")

    def read(self, path: str, config: DataConfig, tested: bool) -> Sequence[Entry]:
        """Items of a jsonl file of the authors, or of a list of ALBEF's."""
        return read_statements(path)

    def measure(
        self, asker: Asker, test: TestSet, seen: Found, blind: Found, resamples: int
    ) -> Result:
        """Accuracy, and consistency: sentences that are judged right beside all their pairs."""
        result = super().measure(asker, test, seen, blind, resamples)
        sentences = [test.source.about(k) for k in range(len(test.source))]
        _, sentence_N = np.unique(np.array(sentences, dtype=str), return_inverse=True)
        label_N = seen["label"]
        most = np.bincount(label_N).argmax()
        hits = [one["logits"].argmax(-1) == label_N for one in (seen, blind)]
        right, blind_right, constant = (all_of(one, sentence_N) for one in (*hits, label_N == most))
        chance, both = 100 * constant.mean(), (right, blind_right)
        row = share(test.name, "all", self.name, "consistency", both, chance, resamples)
        protocol = {**result.protocol, "consistency": "sentences that are right in all their items"}
        rows, units = (*result.rows, row), tuple(sentence_N.tolist())
        return replace(result, rows=rows, protocol=protocol, units=units)


def all_of(hit_N: np.ndarray, group_N: np.ndarray) -> np.ndarray:
    """Whether all items of each group are right, (groups,)."""
    found = np.ones(group_N.max() + 1, bool)
    np.logical_and.at(found, group_N, hit_N)
    return found


_IDENTIFIER = re.compile(r"(.+)-(\d+)-(\d+)-(\d+)")  # split, set, pair, sentence
_IMAGE = re.compile(r"(.+-\d+)-\d+-img[01]")  # split and set, pair, side


def read_statements(path: str) -> list[Entry]:
    """The items of a file. Raises DataError.

    Of the authors' files the pictures are IDENTIFIER without the sentence, -img0.png and -img1.png;
    pairs of one sentence share split, set and sentence of the identifier.
    """
    label = {"label": (lambda one: one in LABELS, "True or False")}
    sentence = {"sentence": (is_text, "a text")}
    listed = read_list(path, sentence | label)
    if listed and "images" in listed[0]:
        pair = {"images": (_are_two, "two paths")}
        return [
            Entry(
                f"{k}", tuple(one["images"]), one["sentence"], LABELS.index(one["label"]), _set(one)
            )
            for k, one in enumerate(read_list(path, pair | sentence | label))
        ]
    named = {"identifier": (_is_identifier, "split-set-pair-sentence, like dev-850-0-0")}
    found = []
    for one in read_list(path, named | sentence | label):
        split, number, beside, text = one["identifier"].rsplit("-", 3)
        images = tuple(f"{split}-{number}-{beside}-img{side}.png" for side in (0, 1))
        found.append(_entry(one["identifier"], images, one, f"{split}-{number}-{text}"))
    return found


def _entry(key: str, images: tuple[str, ...], one: Mapping[str, Any], about: str) -> Entry:
    return Entry(key, images, one["sentence"], LABELS.index(one["label"]), about)


def _is_identifier(value: Any) -> bool:
    return isinstance(value, str) and bool(_IDENTIFIER.fullmatch(value))


def _are_two(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_text, value))


def _set(entry: Mapping[str, Any]) -> str:
    """What tells sentences apart in ALBEF's lists: the set of the pictures, and the text."""
    name = entry["images"][0].rsplit("/", 1)[-1]
    found = _IMAGE.match(name)
    return f"{found[1] if found else ''} {entry['sentence']}"
