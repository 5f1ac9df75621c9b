"""VQA v2: an answer decoder beside ALBEF's encoders (Li et al. 2021, section 4; its code,
models/model_vqa.py).

The decoder starts from the fusion encoder. In training each answer that people gave has the weight
of its share; in tests a closed list of answers is ranked by their probability.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.data.config import DataConfig
from nas_jax.data.scene_tasks import draw_question, scene_answers
from nas_jax.data.worlds import WORLDS
from nas_jax.evals.metrics import Metric
from nas_jax.evals.results import Result
from nas_jax.losses.soft_targets import soft_cross_entropy
from nas_jax.methods.draws import Draws
from nas_jax.methods.method import MethodState
from nas_jax.parallel.chunks import in_pieces
from nas_jax.parallel.mesh import pin_rows
from nas_jax.tasks.answer_decoder import VqaNetwork
from nas_jax.tasks.finetuned import FineTuneConfig, FineTuned
from nas_jax.tasks.records import Entry
from nas_jax.tasks.task import Asker, Asking, Found, Predict, TestSet, share
from nas_jax.tasks.vqa_accuracy import vqa_accuracy
from nas_jax.tasks.vqa_files import PeopleAnswers, read_answer_list, read_questions
from nas_jax.typing import Array, Batch, Metrics, Params
from nas_jax.utils.errors import ConfigError

TOGETHER = 16  # answers that are scored at once in a test


@dataclass(frozen=True)
class VqaConfig(FineTuneConfig):
    """Its switches; defaults are ALBEF's."""

    name: str = "vqa"
    alpha_ramp_epochs: float = 1.0
    max_answers: int = 10  # different answers to a question that are trained on, the most given
    answer_length: int = 10  # tokens of an answer, the first and the last one included
    answers: str = ""  # answer_list.json, which tests rank; "" = those of scenes
    candidates: int = 128  # of that list, by their first token, that are scored whole

    def validate(self) -> None:
        """Raises ConfigError on unusable values."""
        super().validate()
        for name, least in (("max_answers", 1), ("answer_length", 3), ("candidates", 1)):
            if getattr(self, name) < least:
                got = f"{name}={getattr(self, name)}"
                raise ConfigError(got, f"{least} or more", "raise it")


@dataclass(frozen=True)
class Vqa(FineTuned):
    """The method of the task."""

    Config = VqaConfig
    Network = VqaNetwork
    seed_names = ("text", "fusion", "decoder")
    copies = (
        (r"answer_decoder/layer_", "fusion_encoder/layer_"),
        (r"answer_decoder/mlm_head/", "mlm_head/"),
        (r"answer_decoder/", "text_encoder/"),
    )

    @property
    def wants(self) -> tuple[Any, ...]:
        """The answers."""
        return (PeopleAnswers(self.config.max_answers, self.config.answer_length),)

    def loss_of(
        self, params: Params, teacher: Params | None, batch: Batch, draw: Draws, alpha: Array
    ) -> tuple[Array, Metrics]:
        """The weighted sum over answers of their negative log-likelihood, the mean over questions;
        of each word the target is (1 - alpha) * the true one + alpha * the teacher's.
        """
        size = len(batch["token_ids_BxL"])
        rows = {
            "batch": {name: batch[name] for name in BATCH},
            "student": self.seeds(draw, "student", size),
            "teacher": self.seeds(draw, "teacher", size),
        }

        def piece(rows: dict) -> Array:
            given = rows["batch"]
            targets_BxKxA = self.targets(given["answer_ids_BxKxA"], given["answer_mask_BxKxA"])
            logits_BxKxAxV = self.word_logits(params, given, rows["student"])
            words = logits_BxKxAxV.shape[-1]
            soft = None
            if teacher is not None:
                taught = self.word_logits(teacher, given, rows["teacher"])
                soft = (jax.lax.stop_gradient(taught).reshape(-1, words),)
            truth = (targets_BxKxA.reshape(-1),)
            loss_R = soft_cross_entropy((logits_BxKxAxV.reshape(-1, words),), soft, truth, alpha)
            loss_BxKxA = loss_R.reshape(targets_BxKxA.shape) * given["answer_mask_BxKxA"]
            return pin_rows((loss_BxKxA.sum(-1) * given["answer_weight_BxK"]).sum(-1))

        return in_pieces(piece, self.setting.pieces, rows).mean(), {}

    def word_logits(self, params: Params, batch: Batch, seeds: Mapping[str, Array]) -> Array:
        """Logits (B, K, A, V) of the words of the batch's answers."""
        net, answers = self.apply(params), batch["answer_ids_BxKxA"].shape[1]
        question = batch["token_ids_BxL"], batch["token_mask_BxL"]
        states_BxLxD = net.read(batch["image_BxHxWx3"], *question, seeds)
        text = batch["answer_ids_BxKxA"], batch["answer_mask_BxKxA"]
        seeds_BxK = seeds["decoder"][:, None] + jnp.arange(answers, dtype=jnp.uint32) * 7919
        return net.decode(*text, (states_BxLxD, question[1]), seeds_BxK)

    def targets(self, ids_BxKxA: Array, mask_BxKxA: Array) -> Array:
        """The word after each token of answers; [SEP] after the last one."""
        last_BxKx1 = mask_BxKxA.sum(-1, keepdims=True) - 1
        places_A = jnp.arange(ids_BxKxA.shape[-1])
        following = jnp.roll(ids_BxKxA, -1, axis=-1)
        return jnp.where(places_A == last_BxKx1, self.setting.vocabulary.sep, following)

    def log_likelihood(
        self, params: Params, states: tuple[Array, Array], ids_BxKxA: Array, mask_BxKxA: Array
    ) -> Array:
        """log P(answer) of K answers to each question, (B, K), of all their words and [SEP]."""
        logits = self.apply(params).decode(ids_BxKxA, mask_BxKxA, states)
        logs_BxKxAxV = jax.nn.log_softmax(logits)
        targets_BxKxA = self.targets(ids_BxKxA, mask_BxKxA)
        found = jnp.take_along_axis(logs_BxKxAxV, targets_BxKxA[..., None], -1)[..., 0]
        return (found * mask_BxKxA).sum(-1)

    def rank(
        self, params: Params, batch: Batch, answers: tuple[np.ndarray, np.ndarray], candidates: int
    ) -> tuple[Array, Array]:
        """Numbers (B, C) of the answers whose first word is the likeliest, and the log-likelihood
        of each (B, C).

        answers: ids and mask (N, A) of the closed list.
        """
        ids_NxA, mask_NxA = map(jnp.asarray, answers)
        net, question = self.apply(params), (batch["token_ids_BxL"], batch["token_mask_BxL"])
        states = net.read(batch["image_BxHxWx3"], *question, {}), jnp.asarray(question[1])
        first = ids_NxA[None, :1, :1] * jnp.ones((len(question[0]), 1, 1), jnp.int32)
        logs_BxV = jax.nn.log_softmax(net.decode(first, first >= 0, states)[:, 0, 0])
        count = min(candidates, len(ids_NxA))
        _, chosen_BxC = jax.lax.top_k(logs_BxV[:, self.targets(ids_NxA, mask_NxA)[:, 0]], count)
        groups = -(-count // TOGETHER)
        padded = jnp.pad(chosen_BxC, ((0, 0), (0, groups * TOGETHER - count)))
        groups_GxBxC = padded.reshape(len(padded), groups, TOGETHER).swapaxes(0, 1)

        def score(numbers_BxC: Array) -> Array:
            return self.log_likelihood(params, states, ids_NxA[numbers_BxC], mask_NxA[numbers_BxC])

        scores_GxBxC = jax.lax.map(score, groups_GxBxC)
        scores_BxC = scores_GxBxC.swapaxes(0, 1).reshape(len(padded), -1)[:, :count]
        return chosen_BxC, scores_BxC


BATCH = (
    *("image_BxHxWx3", "token_ids_BxL", "token_mask_BxL"),
    *("answer_ids_BxKxA", "answer_mask_BxKxA", "answer_weight_BxK"),
)
"""The arrays that the loss reads."""


# ----------------------------------------------------------------------------------------- the task


class VqaTask(Asking):
    """Records {question_id, question, image, answer} as in ALBEF's vqa_*.json and vg_qa.json."""

    method = Vqa
    draw = staticmethod(draw_question)

    def read(self, path: str, config: DataConfig, tested: bool) -> Sequence[Entry]:
        """Questions with the answers of people, which a file to test on may lack."""
        return read_questions(path, answered=not tested)

    def keys(self, tests: Sequence[TestSet]) -> list[str]:
        """Of the tests whose answers are known."""
        return super().keys([test for test in tests if test.source.gold(0).given])

    def answers(self, asker: Asker) -> tuple[str, ...]:
        """The closed list that is ranked. Raises DataError."""
        path = asker.method.config.answers
        return read_answer_list(path) if path else scene_answers(WORLDS[asker.data.scene_world])

    def predictor(self, asker: Asker) -> Predict:
        """The number of the best answer, (B,), and its log-likelihood."""
        method = asker.method_as(Vqa)
        config = method.config
        encoded = asker.tokenizer.encode(list(self.answers(asker)), config.answer_length)

        def predict(params: Params, state: MethodState, batch: Batch) -> dict[str, Array]:
            chosen_BxC, scores_BxC = method.rank(params, batch, encoded, config.candidates)
            best_Bx1 = scores_BxC.argmax(-1)[:, None]
            both = {"answer": chosen_BxC, "score": scores_BxC}
            return {name: jnp.take_along_axis(x, best_Bx1, 1)[:, 0] for name, x in both.items()}

        return predict

    def measure(
        self, asker: Asker, test: TestSet, seen: Found, blind: Found, resamples: int
    ) -> Result:
        """The official accuracy; none where the answers of people are not known."""
        names, count = self.answers(asker), len(test.source)
        people = [test.source.gold(k).given for k in range(count)]
        rows: tuple[Metric, ...] = ()
        scores: dict[str, list[float]] = {}
        if all(people):
            judged, judged_blind = (
                np.array(
                    [
                        vqa_accuracy(names[k], p)
                        for k, p in zip(found["answer"], people, strict=True)
                    ]
                )
                for found in (seen, blind)
            )
            most = Counter(answer for given in people for answer in given).most_common(1)[0][0]
            chance = 100 * float(np.mean([vqa_accuracy(most, given) for given in people]))
            hits = judged, judged_blind
            rows = (share(test.name, "all", self.name, "accuracy", hits, chance, resamples),)
            scores = {self.name: judged.tolist()}
        return Result(
            name=f"{test.name}:{self.name}",
            form="answers",
            protocol={
                "accuracy": "official: min(1, people who say so / 3), over all but one of them",
                "answers": f"the best of {len(names)}",
                "chance": "always the answer that people give most",
                "text-only": "the same model sees a blank picture",
            },
            dropped={},
            counts={"questions": count},
            rows=rows,
            keys=tuple(map(test.source.key, range(count))),
            categories=("none",) * count,
            units=tuple(range(count)),
            scores=scores,
        )

    def files(self, asker: Asker, test: TestSet, seen: Found) -> dict[str, str]:
        """vqa_TEST.json, as the official server takes it."""
        names, keys = self.answers(asker), map(test.source.key, range(len(test.source)))
        rows = [
            {"question_id": int(key) if key.isdecimal() else key, "answer": names[k]}
            for key, k in zip(keys, seen["answer"], strict=True)
        ]
        return {f"vqa_{test.name}.json": json.dumps(rows) + "\n"}
