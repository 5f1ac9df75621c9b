"""The command for a machine with an accelerator: its parts go on, fail and stop as it says; the
kernels of a trace.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from benchmarks import accelerator, accelerator_parts, kernels, step
from benchmarks.accelerator_parts import Part, parts
from nas_jax.utils.errors import DataError

ROOT = Path(__file__).parents[1]
CHEAP = "parity"  # the parts that are run here as they are
COUNTING = "import sys; open('{0}', 'a').write(' '.join(sys.argv[1:]) + '|'); {1}"


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A call with parts of one line of Python: small(name=code, ...) -> exit code, lines."""
    monkeypatch.setattr(accelerator.Call, "ask_hardware", known_hardware)
    monkeypatch.setattr(accelerator, "LEAST", 1.0)
    monkeypatch.setattr(accelerator, "MARGIN", 1.0)

    def call(*options, goes_on=(), **codes):
        planned = {
            name: Part(
                name,
                ("-c", COUNTING.format(tmp_path / f"{name}.calls", code)),
                lambda log, out: f"said {log.split()[0]}",
                goes_on=name in goes_on,
            )
            for name, code in codes.items()
        }
        monkeypatch.setattr(accelerator, "parts", lambda out, dry_run: planned)
        return accelerator.main([str(tmp_path / "out"), *options])

    call.out = tmp_path / "out"
    call.calls = lambda name: (tmp_path / f"{name}.calls").read_text().split("|")[:-1]
    call.summary = lambda: (tmp_path / "out/summary.md").read_text()
    return call


def known_hardware(call) -> str:
    call.hardware = {"count": 2, "device": "made up", "platform": "gpu", "jax": "0.10"}
    return ""


def rows(text: str) -> dict[str, list[str]]:
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {one[0]: one[1:] for one in cells[1:]}


def test_what_is_done_is_not_done_again_and_what_failed_is(small, tmp_path, capsys):
    fine, broken = "print('seven')", "sys.exit('no such thing')"
    assert small(first=fine, second=broken, third="print('eight')") == 1
    found = rows(small.summary())
    assert found["first"][:3] == ["done", "said seven", "2 x made up, jax 0.10"]
    assert found["second"][:2] == ["FAILED", "exit code 1: no such thing"]
    assert found["third"][0] == "done" and found["third"][-1].startswith("`python -c ")
    assert (small.out / "second.log").read_text().strip() == "no such thing"
    assert small(first=fine, second=broken, third="print('nine')") == 1
    assert [len(small.calls(name)) for name in ("first", "second", "third")] == [1, 2, 2]
    assert small("--parts", "second", first=fine, second="print(1)", third="print(0)") == 0
    assert rows(small.summary())["first"][0] == "done"  # the page has all parts
    assert "second: done" in capsys.readouterr().out


def test_output_that_is_not_understood_is_a_failure(small):
    assert small(first="pass") == 1  # nothing printed: the figure cannot be made
    assert rows(small.summary())["first"][1].startswith("its output was not understood")


def test_the_study_gets_the_time_left_and_goes_on(small):
    unfinished = "print('left to do: a'); sys.exit(1)"
    for _ in range(2):
        assert small("--budget", "30", goes_on=("study",), study=unfinished) == 0
    assert rows(small.summary())["study"][0] == "to go on"
    calls = [one.split() for one in small.calls("study")]
    assert [words[0] for words in calls] == ["--budget"] * 2
    assert all(20 <= float(words[1]) <= 29 for words in calls)
    lost = "print('a failed: x'); print('left to do: a'); sys.exit(1)"
    assert small("--budget", "30", goes_on=("study",), study=lost) == 1


def test_what_takes_too_long_is_stopped_and_the_rest_waits(small):
    long = "import time; print('begun', flush=True); time.sleep(60)"
    began = time.monotonic()
    assert small("--budget", "3", first=long, second="print(1)") == 0
    assert time.monotonic() - began < 20
    found = rows(small.summary())
    assert found["first"][0] == "to go on" and found["second"][0] == "not yet"
    assert small("--budget", "30", first="print(2)", second="print(1)") == 0
    assert {row[0] for row in rows(small.summary()).values()} == {"done"}


def test_without_an_accelerator_nothing_is_measured(tmp_path, capsys):
    assert accelerator.main([str(tmp_path / "out")]) == 2  # the tests run on the CPU
    assert "expected an accelerator" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        accelerator.main([str(tmp_path), "--parts", "nothing"])
    assert "no part nothing" in capsys.readouterr().err


@pytest.mark.parametrize("dry_run", [False, True])
def test_every_part_is_a_command_that_exists(tmp_path, dry_run):
    planned = parts(tmp_path, dry_run)
    assert set(CHEAP.split(",")) < planned.keys() and "kernels" in planned
    for part in planned.values():
        _, module, *options = part.arguments
        assert str(tmp_path) not in part.command(tmp_path)
        if module == "benchmarks.step":
            assert step.parse(options).steps == (1 if dry_run else 20)
        elif module == "benchmarks.kernels":
            assert step.parse(options[: options.index("--json")]).batch == (4 if dry_run else 128)
        elif module == "benchmarks.study" and importlib.util.find_spec("benchmarks.study"):
            from benchmarks.study.__main__ import parser

            parser().parse_args([*options, "--budget", "60"])


def test_a_dry_run_on_the_cpu(tmp_path):
    """The script itself, from another folder, twice."""
    environment = os.environ | {"DRY_RUN": "1", "PYTHON": sys.executable}
    command = [ROOT / "benchmarks/accelerator.sh", "out", "--parts", CHEAP]
    for said in ("parity: done in", "parity: done before"):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0 and said in done.stdout, done.stdout + done.stderr
    text = (tmp_path / "out/summary.md").read_text()
    assert "A dry run" in text and rows(text)["parity"][1].startswith("6 groups within tolerance")
    assert rows(text)["study"][0] == "not yet" and str(tmp_path) not in text


def test_figures_of_logs(tmp_path):
    log = """group   arrays  largest error  tolerance  worst array
intermediate arrays / scale      11       7.09e-07      1e-04  negative_dictionary_tokens
codes: entries that differ        3       0.00e+00      0e+00  object_candidates
losses, absolute                  3       9.54e-06      1e-05  itc"""
    found = accelerator_parts.parity_figure(log, tmp_path)
    assert found == "3 groups within tolerance, the nearest 9.5e-06 of 1e-05"
    log = "a: done in 3m\nfoils: done in 4m\npage: out/study.md\nleft to do: b\nleft to do: c\n"
    found = accelerator_parts.study_figure(log, tmp_path)
    assert found == "2 runs finished in this call, 2 left, page: out/study.md"


# ----------------------------------------------------------------------------------------- kernels


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (
            "jit(step)/transpose(jvp(Net.fuse))/Net.fuse/fusion_encoder/layer_11/attention/dot",
            "fusion_encoder/layer/attention/dot, backward",
        ),
        ("jit(step)/jvp(Net.look_up)/encoder/block_3/mlp_in/dot", "encoder/block/mlp_in/dot"),
        ("jit(step)/jvp()/while", "while"),
        ("jit(step)/jit(remainder)/and", "remainder/and"),
        ("jit(step)", "-"),
    ],
)
def test_the_part_of_the_model_is_in_the_name(name, part):
    assert kernels.part_of(name) == part


def write_trace(folder: Path, process: str, thread: str, events: list[tuple]) -> Path:
    """events: (name, operation or "", microseconds, on the thread)."""
    listed = [
        {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": process}},
        {"ph": "M", "pid": 1, "tid": 7, "name": "thread_name", "args": {"name": thread}},
    ]
    for name, operation, duration, there in events:
        about = {"hlo_op": operation} if operation else {}
        place = {"pid": 1, "tid": 7} if there else {"pid": 2, "tid": 3}
        listed.append({"ph": "X", "name": name, "dur": duration, "args": about} | place)
    path = folder / "plugins/profile/now/host.trace.json.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": listed}).encode()))
    return folder


def test_kernels_are_summed_over_layers_and_told_apart_by_part(tmp_path):
    program = """
  %fusion.3 = f32[2]{0} fusion(%a), metadata={op_name="jit(step)/jvp(N.f)/enc/layer_0/mul"}
  ROOT fusion.4 = f32[2] fusion(%a), metadata={op_name="jit(step)/jvp(N.f)/enc/layer_1/mul" id=3}
  %gemm.1 = f32[2] call(%a), metadata={op_name="jit(step)/transpose(jvp(N.f))/enc/layer_1/dot"}
"""
    events = [
        ("loop_fusion_3", "fusion.3", 20, True),
        ("loop_fusion_4", "fusion.4", 10, True),
        ("gemm_128x64", "gemm.1", 100, True),
        ("memcpy", "", 5, True),
        ("python", "", 999, False),
        ("host", "fusion.3", 999, False),  # its call on the host
    ]
    write_trace(tmp_path, "/device:GPU:0", "Stream #13(Compute)", events)
    found = kernels.costliest(kernels.read_trace(tmp_path), kernels.parts(program), 2)
    expected = [
        ("gemm_128x64", "enc/layer/dot, backward", 50e-6, 0.5),
        ("loop_fusion", "enc/layer/mul", 15e-6, 1.0),
        ("memcpy", "-", 2.5e-6, 0.5),
    ]
    assert [one[:2] for one in found] == [one[:2] for one in expected]
    assert [one[2:] for one in found] == [pytest.approx(one[2:]) for one in expected]


def test_a_trace_without_kernels_is_an_error(tmp_path):
    write_trace(tmp_path, "/host:CPU", "python", [("python", "", 10, True)])
    with pytest.raises(DataError, match="without a kernel"):
        kernels.read_trace(tmp_path)


class Toy(NamedTuple):
    """A state of two matrices."""

    params: dict[str, jax.Array]


def toy_step(state: Toy, batch: dict, stage) -> tuple[Toy, dict]:
    with jax.named_scope("encoder"), jax.named_scope("layer_1"):
        product = state.params["left"] @ state.params["right"]
    return Toy(state.params | {"left": product}), {"loss": product.sum()}


def test_a_profile_finds_the_matmul(monkeypatch, tmp_path, capsys):
    """A real profile of a step that is little but one matmul."""
    real = step.build

    def build(options):
        return real(options)._replace(
            init=lambda: Toy({"left": jnp.ones((500, 500)), "right": jnp.eye(500)}),
            step=jax.jit(toy_step, donate_argnums=0, static_argnums=2),
            shardings=None,
        )

    monkeypatch.setattr(step, "build", build)
    path = tmp_path / "kernels.json"
    assert kernels.main(["--preset", "tinybody", "--json", str(path), "--profiled", "4"]) == 0
    found = json.loads(path.read_text())
    first = found["kernels"][0]
    assert first["part"] == "encoder/layer/dot_general" and first["share"] > 0.5
    assert 0 < first["seconds"] < found["step_seconds"] * os.cpu_count() and first["calls"] >= 1
    assert "| `" + first["name"] in capsys.readouterr().out
    assert kernels.main(["--preset", "tinybody", "--batch", "7"]) == 2
