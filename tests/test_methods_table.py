"""The table of all methods' costs: what is counted, which records count, and the page."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks import methods, step
from benchmarks.extrapolate import FIGURES
from nas_jax.config import RunConfig, to_dict
from nas_jax.data.config import DataConfig
from nas_jax.methods import METHODS
from nas_jax.methods.albef import AlbefConfig
from nas_jax.methods.config import ItcConfig
from nas_jax.models.sizes import SIZES, ModelConfig, model_config
from nas_jax.parallel.hlo import Program
from nas_jax.rehearsal.compiled import Rehearsal
from nas_jax.utils.errors import ConfigError, DataError

RUN = RunConfig(method=AlbefConfig(), model=model_config("base"))
MADE = {"hardware": "CPU, a CPU", "date": "2026-01-01", "code": "abc", "versions": "jax 1"}
LEAST = ModelConfig(16, 2, 1, 1, 1, image_size=16, patch_size=8, embed_dim=8, max_text_length=32)


def record(name, gflop, **fields):
    """A record with counts."""
    made = methods.new_record(name, f"configs/{name}.py:size=base", RUN)
    counts = {
        "pairs": methods.PAIRS, "image_size": 256, "patch_size": 16, "text_length": 25,
        "params_M": 200.0, "gflop_per_pair": gflop, "mb_per_pair": 10 * gflop, **MADE,
    }  # fmt: skip
    return made | {"counts": counts} | fields


def program(parts, milliseconds, batch=methods.PAIRS * 256):
    """What the compiler says of a shallow model."""
    layers = {"image_layers": 2 * parts, "text_layers": parts, "fusion_layers": parts}
    figures = dict.fromkeys(FIGURES, 2.0**30 * parts) | {"predicted_seconds": milliseconds / 1e3}
    known = {"topology": "v5e:16x16", "batch": batch, "devices": 256, "capacity_bytes": 16 * 2**30}
    return figures | known | MADE | {"config": {"model": layers}}


def test_albef_is_counted_as_by_the_benchmark_of_the_step(monkeypatch):
    monkeypatch.setitem(SIZES, "least", LEAST)
    monkeypatch.setitem(step.PRESETS, "least", step.Preset("least", 4, 128, 16, 1.0, 0.5))
    options = step.parse(["--preset", "least", "--method", "albef", "--count-only"])
    expected, built = step.run(options), step.build(options)
    model = model_config("least", vocab_size=128)
    data = DataConfig(image_size=16, text_length=expected["length"], batch_size=8)
    run = RunConfig(method=built.method.config, model=replace(model, dtype="bfloat16"), data=data)
    found = methods.count(run, 4)
    assert found["gflop_per_pair"] == expected["gflop_per_pair"] > 0
    assert found["gflop_per_pair_matmuls"] == expected["gflop_per_pair_matmuls"]
    assert found["params_M"] == expected["params_M"] and found["mb_per_pair"] > 0


def test_every_method_has_a_config_of_its_base_size():
    found = methods.base_configs()
    assert list(found) == list(METHODS)
    assert found["albef"] == "configs/nas_base_4m.py:variant=albef"
    assert found["tcl"] == "configs/tcl.py:size=base"
    for name, config in found.items():
        run = methods.run_config(config)
        assert run.method.name == name and run.model.dim == model_config("base").dim


TWO_METHODS = """
from dataclasses import replace
from nas_jax.config import RunConfig, arguments, to_config_dict
from nas_jax.methods import METHODS
from nas_jax.models.sizes import model_config

def get_config(argument=""):
    given = arguments(argument, method="fdt", size="scenes")
    method = METHODS[given["method"]].Config()
    size = "base" if given["size"] == "base" else "nano"
    return to_config_dict(RunConfig(method=method, model=model_config(size)))
"""


def test_a_file_may_give_several_methods_and_one_of_the_methods_name_comes_first(tmp_path):
    (tmp_path / "fdt.py").write_text(TWO_METHODS)
    (tmp_path / "z.py").write_text(TWO_METHODS.replace("fdt", "tcl"))
    found = methods.base_configs(tmp_path)
    assert found["fdt"] == f"{tmp_path.name}/fdt.py:size=base"
    assert found["c2lip"] == f"{tmp_path.name}/fdt.py:method=c2lip,size=base"


def test_a_record_of_another_config_does_not_count(tmp_path):
    made = record("albef", 226.0)
    methods.write_record(tmp_path, made)

    def known(run):
        return "counts" in methods.read_record(tmp_path, "albef", made["config"], run)

    assert known(RUN) and known(replace(RUN, name="other"))  # a name decides no number
    fine = replace(RUN, method=AlbefConfig(momentum=0.1234567))
    methods.write_record(tmp_path, made | methods.new_record("albef", "", fine))
    assert known(fine) and not known(RUN)  # figures are rounded, fields are not
    methods.write_record(tmp_path, made)
    assert not known(replace(RUN, model=replace(RUN.model, text_layers=12)))
    assert not known(replace(RUN, method=AlbefConfig(itc=ItcConfig(queue_size=512))))
    gone = to_dict(RUN) | {"model": {"gone": 1}}
    methods.write_record(tmp_path, made | {"fields": gone})
    assert not known(RUN)
    (tmp_path / "albef.json").write_text("{}")
    with pytest.raises(DataError, match=r"albef\.json.*delete it"):
        known(RUN)
    other = made["counts"] | {"pairs": methods.PAIRS + 1}
    assert methods.counted(made | {"counts": other}) is None


def test_the_page_orders_methods_by_operations_and_is_the_same_each_time():
    made = [record("tcl", 300.0), record("albef", 200.0), record("fdt", 100.0)]
    text = methods.page_text(made, ["nas"])
    assert text == methods.page_text(made[::-1], ["nas"])
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == ["fdt", "albef", "tcl"]
    assert [row.split(" | ")[4] for row in rows] == ["0.50", "1.00", "1.50"]
    assert "Not counted: `nas`." in text and "code abc" in text and "redicted" not in text
    assert "| 300.0 | - |" in methods.page_text(made[:1], [])  # no ALBEF to compare with


def test_predictions_are_on_the_line_through_two_shallow_models_and_called_so():
    key = methods.program_name
    pair = {
        key(methods.shallow(RUN, parts), "v5e:16x16"): program(parts, 10.0 * parts + 5)
        for parts in (1, 2)
    }
    assert list(pair)[0] == "v5e:16x16, 32 pairs a chip, 2 + 1 + 1 layers"
    whole = methods.predicted(record("albef", 1.0, programs=pair), "v5e:16x16")
    assert whole["predicted_seconds"] == pytest.approx(0.065)
    assert whole["rest_seconds"] == pytest.approx(0.005)
    assert whole["temporaries_bytes"] == whole["arguments_bytes"] == 6 * 2**30
    one = record("albef", 1.0, programs=dict([*pair.items()][:1]))
    assert methods.predicted(one, "v5e:16x16") is None
    assert methods.predicted(record("albef", 1.0, programs=pair), "v5p:4x4x4") is None
    text = methods.page_text([record("albef", 1.0, programs=pair), record("tcl", 2.0)], [])
    assert "**Predicted** for v5e:16x16 (256 chips)" in text and "predicted ms a step" in text
    row = "| `albef` | 65.0 | 1.00 | 5.0 ms | 6.00 GiB | 6.00 GiB | 12.00 GiB |"
    assert row in text and text.count("| `tcl`") == 1
    pair = {name: one | {"versions": "jax 1, libtpu 2"} for name, one in pair.items()}
    text = methods.page_text([record("albef", 1.0, programs=pair)], [])
    assert "a CPU; jax 1, libtpu 2; code abc" in text  # each once


def test_the_shallow_models_are_those_that_the_method_can_have():
    def layers(config):
        pair = methods.shallow_pair(methods.run_config(config))
        return [(one.model.image_layers, one.model.fusion_layers) for one in pair]

    assert layers("configs/tcl.py:size=base") == [(2, 1), (4, 2)]
    assert layers("configs/softmask.py:size=base") == [(4, 2), (6, 3)]  # needs two fusion layers
    with pytest.raises(ConfigError, match="text_layers=7.*multiples of 6"):
        methods.shallow(replace(RUN, model=replace(RUN.model, text_layers=7)), 1)


def test_a_method_that_fails_is_one_line_and_what_is_known_is_not_repeated(
    tmp_path, monkeypatch, capsys
):
    calls = []

    def count(run):
        calls.append(run.method.name)
        if run.method.name == "tcl":
            raise RuntimeError("no\nroom")
        return record("albef", 200.0)["counts"]

    monkeypatch.setattr(methods, "count", count)
    command = ["tcl", "albef", "--out", str(tmp_path)]
    assert methods.main(command) == 1
    out = capsys.readouterr().out
    assert "tcl: failed: RuntimeError: no room\n" in out and "failed: tcl\n" in out
    assert "200.0 GFLOP a pair" in out and "| `albef` |" in (tmp_path / "methods.md").read_text()
    assert json.loads((tmp_path / "methods/albef.json").read_text())["method"] == "albef"
    assert methods.main(command[1:]) == 0 and calls == ["tcl", "albef"]
    assert "albef: counted before" in capsys.readouterr().out
    assert methods.main([*command[1:], "--again"]) == 0 and calls[2:] == ["albef"]
    (tmp_path / "methods.md").unlink()
    assert methods.main(["--page", "--out", str(tmp_path)]) == 0 and len(calls) == 3
    assert "| `albef` |" in (tmp_path / "methods.md").read_text()
    assert methods.main(["moon", "--out", str(tmp_path)]) == 2
    assert "'moon'; expected some of albef" in capsys.readouterr().err


def test_what_was_compiled_for_chips_is_kept_program_by_program(tmp_path, monkeypatch, capsys):
    """Four simulated devices: 128 pairs, hard negatives drawn on each device."""
    monkeypatch.setattr(methods, "count", lambda run: record("albef", 200.0)["counts"])
    seen, room = [], 1

    def rehearse(run, topology):
        layers = run.model.image_layers
        seen.append((layers, run.data.batch_size, run.method.itm.mining_shards))
        program = Program((), (), 0) if len(seen) <= room else None
        return Rehearsal(
            topology, 4, {}, 128, program is not None, 0, 2.0**30, layers * 2.0**30,
            capacity_bytes=16 * 2**30, predicted_seconds=0.01 * layers, program=program,
        )  # fmt: skip

    monkeypatch.setattr(methods, "rehearse", rehearse)
    command = ["albef", "--compile", "--topology", "local", "--out", str(tmp_path)]
    assert methods.main(command) == 1
    assert "albef: failed: nas-base-4m-albef needs" in capsys.readouterr().out
    room = 9
    assert methods.main(command) == 0
    assert "2 + 1 + 1 layers compiled before" in capsys.readouterr().out
    assert seen == [(2, 128, 4), (4, 128, 4), (4, 128, 4)]
    text = (tmp_path / "methods.md").read_text()
    assert "| `albef` | 120.0 | 1.00 | 0.0 ms | 1.00 GiB | 12.00 GiB | 13.00 GiB |" in text
