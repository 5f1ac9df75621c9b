"""The real method through the whole stack: scenes, tokenizer, loop, checkpoint, evaluation."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny

from nas_jax import runner
from nas_jax.checkpoint.manager import CheckpointManager
from nas_jax.config import RunConfig, check_vocabulary, to_dict
from nas_jax.data.config import DataConfig
from nas_jax.evals.config import EvalConfig
from nas_jax.methods.config import ItcConfig
from nas_jax.methods.nas import Nas, NasConfig
from nas_jax.models.codebook import DictionaryConfig
from nas_jax.preflight import preflight
from nas_jax.train.config import TrainConfig
from nas_jax.train.optimizer import OptimizerConfig
from nas_jax.utils.errors import CheckpointError, ConfigError, DivergedError

RUN = RunConfig(
    data=DataConfig(
        num_train=60,
        image_size=16,
        crop_scale=(),
        rand_augment_ops=0,
        text_length=40,
        vocab_size=200,
        batch_size=4,
        threads=1,
    ),
    model=tiny.model(vocab_size=0, max_text_length=40),
    method=NasConfig(
        itc=ItcConfig(queue_size=16), dictionary=DictionaryConfig(codes=8, revive_every=3)
    ),
    optimizer=OptimizerConfig(schedule="smooth", lr=1e-3, warmup_steps=4),
    train=TrainConfig(steps=20, log_every=5, checkpoint_every=8),
    eval=EvalConfig(rerank_k=4, batch_size=64, max_images=8, max_pairs=12),
)


def final_state(workdir, run=RUN, step=None):
    """Every leaf of the newest checkpoint, or of that of a step, by name."""
    parts = runner.assemble(run, workdir, learn=False)
    with CheckpointManager(workdir / "checkpoints", read_only=True) as manager:
        state, position = manager.restore(jax.eval_shape(parts.init_state), step)
    leaves = {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    return leaves, position


def signal_at(monkeypatch, step, number=signal.SIGTERM):
    """Sends this process a signal before the given step."""
    original = Nas.stage

    def stage(self, done):
        if done == step - 1:
            os.kill(os.getpid(), number)
        return original(self, done)

    monkeypatch.setattr(Nas, "stage", stage)


def test_resuming_equals_never_having_stopped(tmp_path, monkeypatch):
    """20 steps against 10, a restart and 10 more: every leaf of the state and the metrics, bit by
    bit.
    """
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert runner.train(RUN, straight) == 0
    with monkeypatch.context() as patch:
        signal_at(patch, 10)
        assert runner.train(RUN, resumed) == 128 + signal.SIGTERM
    assert final_state(resumed)[1]["next_step"] == 10
    assert runner.train(RUN, resumed) == 0
    assert (straight / "nva.png").stat().st_size > 10_000
    one, other = final_state(straight), final_state(resumed)
    assert one[1] == other[1] and one[0].keys() == other[0].keys()
    names = " ".join(one[0])
    assert all(
        part in names
        for part in (".params", "teacher", "queue", "dictionary", ".opt_state", ".rng")
    )
    for name, leaf in one[0].items():
        np.testing.assert_array_equal(leaf, other[0][name], err_msg=name)
    assert (straight / "metrics.jsonl").read_bytes() == (resumed / "metrics.jsonl").read_bytes()
    # negative control: the state does change from step to step
    earlier, _ = final_state(straight, step=16)
    assert any((leaf != one[0][name]).any() for name, leaf in earlier.items() if "teacher" in name)

    # The same checkpoint through --mode=eval gives the numbers of the end of the run.
    before, answers = (straight / "evals" / "20.json").read_text(), straight / "evals/20"
    scores = json.loads((answers / "results.json").read_text())["results"]  # of the last one
    shutil.rmtree(answers)
    (straight / "evals" / "20.json").unlink()
    assert runner.evaluate(RUN, straight) == 0
    assert (straight / "evals" / "20.json").read_text() == before
    assert json.loads((answers / "results.json").read_text())["results"] == scores
    # Another config in the same place is refused, by name and with both values.
    other_rate = replace(RUN, optimizer=replace(RUN.optimizer, lr=2e-3))
    with pytest.raises(CheckpointError, match=r"optimizer.lr.*0\.001.*0\.002"):
        runner.train(other_rate, straight)
    assert to_dict(RUN) != to_dict(other_rate)


def test_a_part_that_begins_after_the_last_step_is_said(tmp_path):
    def said(**nva):
        run = replace(RUN, method=replace(RUN.method, nva=replace(RUN.method.nva, **nva)))
        return runner.assemble(run, tmp_path, learn=True).summary(run, 1)

    line = "warning: a part of nas begins at step 30, after the last of 20; lower its start_epoch"
    assert line in said(start_epoch=2.0)  # 15 steps an epoch
    assert "warning" not in said(start_epoch=1.0)
    assert "warning" not in said(start_epoch=2.0, enabled=False)


def test_compiled_programs_are_where_jax_is_told_or_beside_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "shared"))
    assert runner.compile_cache(tmp_path / "run") == str(tmp_path / "shared")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    assert runner.compile_cache(tmp_path / "run") == tmp_path / "run/compile_cache"


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    wild = replace(RUN, optimizer=replace(RUN.optimizer, lr=1e30, warmup_lr=0.0, warmup_steps=12))
    wild = replace(wild, train=replace(wild.train, checkpoint_every=1))
    with pytest.raises(DivergedError, match="last good checkpoint: step"):
        runner.train(wild, tmp_path)
    leaves, position = final_state(tmp_path, wild)
    assert 1 <= position["next_step"] < 20
    assert all(np.isfinite(leaf).all() for name, leaf in leaves.items() if ".params" in name)


def test_the_word_table_has_a_row_for_each_word_of_the_tokenizer(tmp_path, capsys):
    words = runner.assemble(RUN, tmp_path, learn=True).tokenizer.vocab_size

    def sized(rows):
        data = replace(RUN.data, tokenizer=str(tmp_path / "tokenizer"))
        return replace(RUN, data=data, model=replace(RUN.model, vocab_size=rows))

    for rows in (words - 1, words + 1):
        line = f"model.vocab_size={rows} with a tokenizer of {words} entries; expected the same"
        with pytest.raises(ConfigError, match=f"{line}.*model.vocab_size=0"):
            runner.assemble(sized(rows), tmp_path / str(rows), learn=True)
        assert preflight(sized(rows), tmp_path / str(rows)) == ConfigError.exit_code
        assert line in capsys.readouterr().out
    runner.assemble(sized(words), tmp_path / "equal", learn=True)
    # A run of an older version may have rows that no word uses; it goes on.
    check_vocabulary(sized(words + 1).model, words, started=True)
    with pytest.raises(ConfigError):
        check_vocabulary(sized(words - 1).model, words, started=True)
