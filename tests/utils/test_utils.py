from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from nas_jax.utils.commands import exit_code
from nas_jax.utils.logging import Console, Timer, format_losses, format_seconds
from nas_jax.utils.trees import all_finite, diff, flatten_dict, named_leaves, num_params

ROOT = Path(__file__).resolve().parents[2]


def test_diff_names_each_field_once():
    old = {"a": {"b": 1, "names": ("x", "y")}, "seed": 0, "gone": None}
    new = {"a": {"b": True, "names": ["x", "y"]}, "seed": 1, "new": {"c": 2.0}}
    assert diff(old, new) == [
        "a.b (1, True)",
        "gone (None, 'absent')",
        "new.c ('absent', 2.0)",
        "seed (0, 1)",
    ]
    assert diff(old, new, ignore=("seed", "gone", "a.b", "new")) == []
    assert flatten_dict({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}


def test_trees():
    tree = {"a": (jnp.ones((2, 3)), jnp.arange(4)), "b": {"c": jnp.zeros(())}}
    assert list(named_leaves(tree)) == ["a/0", "a/1", "b/c"]
    assert num_params(tree) == 11
    assert all_finite(tree) and all_finite({"ids": jnp.arange(3)})
    assert not all_finite(tree | {"bad": jnp.array([0.0, jnp.inf])})


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (130, "2m10s"), (7300, "2h01m"), (200000, "2d07h")]
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_losses_on_one_line():
    assert format_losses({"loss": 5.1234, "loss/itc": 2.5, "optim/lr": 1.0, "loss/mlm": 2.625}) == (
        "loss 5.123 (itc 2.5 mlm 2.62)"
    )


def test_timer_adds_up_sections():
    now = iter([0.0, 1.0, 5.0, 7.0])
    timer = Timer(lambda: next(now))
    with timer("input"):
        pass
    with timer("step"):
        pass
    assert (
        timer.seconds == {"input": 1.0, "step": 2.0} and timer.total("input", "step", "save") == 3.0
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(stream, enabled=True):
    now = iter([0.0, 0.0, 0.1, 1.0, 1.0])
    console = Console(stream, enabled=enabled, clock=lambda: next(now))
    console.progress("step 1", due=False)
    console.progress("step 2", due=False)  # too soon after step 1 to redraw
    console.progress("step 3", due=True)
    console.say("saved")
    console.close()
    return stream.getvalue()


def test_progress_is_rewritten_on_a_terminal_and_lines_elsewhere():
    assert show(Terminal()) == "\r\x1b[Kstep 1\r\x1b[Kstep 3\r\x1b[Ksaved\n"
    assert show(io.StringIO()) == "step 3\nsaved\n"
    assert show(io.StringIO(), enabled=False) == ""


def test_the_second_ctrl_c_ends_at_once():
    program = """
import os, signal
from nas_jax.utils.signals import StopSignals
with StopSignals() as signals:
    os.kill(os.getpid(), signal.SIGINT)
    print("first", signals.received, flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("not reached", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGINT
    assert done.stdout == "first 2\n"
    assert "SIGINT: will save and stop" in done.stderr and "stopped at once" in done.stderr


@pytest.mark.parametrize("code", ["print('x')", "print('x' * 10**6)"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_reads_ends_quietly(code, unbuffered):
    """As with `| head`: no traceback, and the code of a program that SIGPIPE ended."""
    reader, writer = os.pipe()
    os.close(reader)
    lines = [
        "import sys",
        "from nas_jax.utils.commands import exit_code",
        f"sys.exit(exit_code(lambda argv: {code}))",
    ]
    command = [sys.executable, "-c", "\n".join(lines)]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    pipes = {"stdout": writer, "stderr": subprocess.PIPE}
    done = subprocess.run(command, **pipes, text=True, env=environment, cwd=ROOT)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_broken_pipe_elsewhere_is_not_hidden(capfd):
    def run(argv):
        raise BrokenPipeError("of a worker")

    with pytest.raises(BrokenPipeError, match="of a worker"):
        exit_code(run, [])
