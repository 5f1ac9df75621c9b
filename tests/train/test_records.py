"""What a run writes beside its checkpoints."""

from __future__ import annotations

import resource
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from nas_jax.train.workdir import Records
from nas_jax.utils.errors import CheckpointError


def events(path):
    """Of a file of TensorBoard: records of length, checksum, bytes, checksum."""
    content, found = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        found.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


def test_tensorboard_gets_every_value_at_its_step(tmp_path):
    records = Records(tmp_path, 4)
    records.add(5, "train", {"loss": 2.5, "loss/itc": 1.5})
    records.add_timing(5, {"seconds_per_step": 0.25})
    records.add(6, "eval", {"val/r@1": 0.5})
    records.close()
    (path,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    first, start, *scalars = events(path)
    assert first.file_version == "brain.Event:2"
    # hides what a lost start wrote
    assert (start.step, start.session_log.status) == (5, start.session_log.START)
    values = [
        (event.step, value.tag, value.simple_value)
        for event in scalars
        for value in event.summary.value
    ]
    tags = {"loss": 2.5, "loss/itc": 1.5, "time/seconds_per_step": 0.25}
    assert values == [*((5, tag, value) for tag, value in tags.items()), (6, "val/r_1", 0.5)]


def test_a_full_disk_is_an_error_and_never_a_run_that_waits(tmp_path, capfd):
    records = Records(tmp_path, 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(
            CheckpointError,
            match="writing to .*tensorboard/events.* failed .File too large.; .*room",
        ):
            for step in range(1, 10_000):
                records._board.add(step, {"loss": 1.0})  # alone, as metrics.jsonl would fail first
        with pytest.raises(CheckpointError, match="File too large"):
            records.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert records._metrics._file.closed and records._timings._file.closed
    del records
    assert capfd.readouterr() == ("", "")
