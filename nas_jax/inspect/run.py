"""One HTML report of a run, finished or not, that opens in a browser without a network.

python -m nas_jax.inspect.run runs/demo/nas
python -m nas_jax.inspect.run runs/demo/nas --out demo.html
"""

from __future__ import annotations

import argparse
import html
import re
import sys
from collections.abc import Mapping, Sequence

from nas_jax.evals.results import flat
from nas_jax.inspect.charts import Chart, Series, draw, number, split_bar, value_bar
from nas_jax.inspect.negatives_found import NEGATIVES_PICTURE
from nas_jax.inspect.negatives_section import diagnosis_section
from nas_jax.inspect.page import facts, folded, page, picture, table, tile
from nas_jax.inspect.picture_sections import SECTIONS, picture_sections
from nas_jax.inspect.run_files import Entry, RunFiles, read_run
from nas_jax.inspect.run_warnings import RunWarning, find_warnings
from nas_jax.storage.files import make_folder, write_whole
from nas_jax.storage.paths import as_path, failures, in_words, reaching
from nas_jax.utils.errors import CheckpointError, UserError
from nas_jax.utils.logging import format_seconds

REPORT = "report.html"
SPLIT = ("input", "compute", "checkpoint", "evaluation", "compile")
SHARE = {"least": 0.0}

# Title, what it says, keys (a name, or a beginning with /), and how it is drawn. What no line names
# comes last.
CURVES: tuple[tuple[str, str, tuple[str, ...], Mapping[str, object]], ...] = (
    ("Loss", "", ("loss",), {}),
    ("Losses by part", "", ("loss/",), {}),
    ("Learning rate", "", ("optim/lr",), SHARE),
    ("Temperature", "of the contrastive loss", ("itc/temp",), {}),
    ("Gradient norm", "before clipping", ("optim/grad_norm",), SHARE),
    ("Gradient norm by module", "", ("grad_norm/",), {"log": True}),
    (
        "Matching accuracy by kind of pair",
        "true pairs, and each kind of negative",
        ("itm_accuracy/",),
        {"most": 1.02},
    ),
    ("Dictionary: codes used in a batch", "share of all codes", ("dictionary/used_share",), SHARE),
    (
        "Dictionary: perplexity",
        "how many codes a batch uses evenly",
        ("dictionary/perplexity",),
        SHARE,
    ),
    ("Dictionary: dead codes", "", ("dictionary/dead_codes",), SHARE),
    ("Dictionary: distance", "of a patch to its code, squared", ("dictionary/distance",), SHARE),
    ("Dictionary: decay", "1 = frozen", ("dictionary/decay",), SHARE),
    ("Negatives made", "patches replaced by NVA, captions changed by NTA", ("nva/", "nta/"), SHARE),
    (
        "Distance of the teacher",
        "from the student, relative to its size",
        ("teacher/distance",),
        SHARE,
    ),
    ("Weight of the soft targets", "", ("itc/alpha",), SHARE),
    ("Pictures replaced", "unreadable ones, since the start", ("data/skipped",), SHARE),
)
MACHINE: tuple[tuple[str, str, tuple[str, ...], Mapping[str, object]], ...] = (
    ("Pairs a second", "", ("pairs_per_second",), SHARE),
    ("Seconds a step", "", ("seconds_per_step",), SHARE),
    ("Waiting for input", "share of a step", ("input_share",), SHARE),
    ("Operations", "TFLOP/s of a device, matmuls only", ("tflops_per_device",), SHARE),
    ("MFU", "of the published peak", ("mfu",), SHARE),
    ("Memory", "most so far, GiB", ("host_gib", "device_gib"), SHARE),
)
NO_CURVE = {"step", "kind", "elapsed", *(f"{name}_seconds" for name in SPLIT)}


def report(run: RunFiles) -> str:
    """The whole page."""
    name = str(run.value("name", run.workdir.name))
    findings = find_warnings(run)
    sections = [
        ("Warnings", _warnings(findings) if run.train or findings else ""),
        ("Summary", _summary(run)),
        ("Training", _curves(run.train, CURVES)),
        (
            "Pictures",
            "".join(
                f"<h3>{html.escape(path.name)}</h3>{picture(path)}"
                for path in run.pictures
                if path.name not in (NEGATIVES_PICTURE, *SECTIONS)
            ),
        ),
        *picture_sections(run),
        ("Diagnosis of negatives", diagnosis_section(run)),
        ("Step time", _step_time(run)),
        ("Evaluation over time", _evaluation_curves(run)),
        ("Results", _results(run)),
        ("Checkpoints", _checkpoints(run)),
        (
            "Hangs",
            "".join(
                folded(name, f"<pre>{html.escape(text)}</pre>") for name, text in run.hangs.items()
            ),
        ),
        ("Config", folded("every field", facts(list(flat(run.config).items())))),
    ]
    return page(f"Report of {name}", _header(run, name), sections)


def state_of(run: RunFiles) -> str:
    """How far the run is, in a line."""
    if not run.train and not run.checkpoints:
        every = run.value("train.log_every", 1)
        return f"nothing trained yet: numbers come with step {every} (train.log_every)"
    of = f" of {run.total_steps}" if run.total_steps else ""
    return f"finished at step {run.step}" if run.finished else f"unfinished, at step {run.step}{of}"


def _header(run: RunFiles, name: str) -> str:
    kind = "done" if run.finished else "part" if run.train else ""
    badge = (
        "finished"
        if run.finished
        else "unfinished"
        if run.train or run.checkpoints
        else "not started"
    )
    return (
        f'<h1>{html.escape(name)}<span class="badge {kind}">{badge}</span></h1>'
        f"<p>{html.escape(state_of(run))} &middot; {html.escape(str(run.workdir))}</p>"
        f'<div class="tiles">{"".join(_tiles(run))}</div>'
    )


def _tiles(run: RunFiles) -> list[str]:
    found = [tile("Steps", f"{run.step}", f"of {run.total_steps}" if run.total_steps else "")]
    pairs = run.step * run.value("data.batch_size", 0)
    found += [tile("Pairs seen", number(pairs))] if pairs else []
    if run.timings:
        last = run.timings[-20:]
        speed = sum(entry.get("pairs_per_second", 0.0) for entry in last) / len(last)
        found.append(tile("Time", format_seconds(_elapsed(run)), f"{_starts(run)}"))
        found.append(
            tile(
                "Speed",
                f"{speed:.0f} pairs/s",
                f"MFU {last[-1]['mfu']:.1%}" if "mfu" in last[-1] else "",
            )
        )
    if run.train and "loss" in run.train[-1]:
        found.append(
            tile("Loss", number(run.train[-1]["loss"]), f"{number(run.train[0]['loss'])} at first")
        )
    if run.evaluations:
        for metric in _headline(run.evaluations[-1].metrics):
            found.append(
                tile(metric["key"], f"{metric['value']:.1f} %", f"chance {metric['chance']:.1f} %")
            )
    return found


def _headline(metrics: Sequence[Entry]) -> list[Entry]:
    """One of each kind: retrieval, foils, quads."""
    found = []
    for wanted in (
        r"/retrieval/itm/text_to_image_r@1$",
        r"/foils/itm/(all|macro)$",
        r"/quads/itm/group$",
    ):
        found += [metric for metric in metrics if re.search(wanted, metric["key"])][:1]
    return found


def _elapsed(run: RunFiles) -> float:
    """Seconds over all starts: `elapsed` begins anew with each."""
    total, before = 0.0, 0.0
    for entry in run.timings:
        now = entry.get("elapsed", before)
        total += now - before if now >= before else now
        before = now
    return total


def _starts(run: RunFiles) -> str:
    return f"{len(run.starts)} start{'s' if len(run.starts) > 1 else ''}" if run.starts else ""


def _warnings(findings: Sequence[RunWarning]) -> str:
    if not findings:
        return '<p class="note">None: no damage, no hang, input fast enough, no metric fell.</p>'
    lines = [
        f'<li class="{finding.level}">{html.escape(finding.text)}'
        f"<small>{html.escape(finding.remedy)}</small></li>"
        for finding in findings
    ]
    return f'<ul class="warnings">{"".join(lines)}</ul>'


def _summary(run: RunFiles) -> str:
    value, start = run.value, run.starts[-1] if run.starts else {}
    train = value("data.train") or ()
    sources = [train] if isinstance(train, str) else [str(one) for one in train]
    pairs: list[tuple[str, object]] = [
        ("method", value("method.name", "-")),
        ("parameters", number(start["parameters"]) if "parameters" in start else "not recorded"),
        ("data", ", ".join(sources) or "-"),
        ("batch size", value("data.batch_size", "-")),
        (
            "image size",
            f"{value('model.image_size', '-')}, patches of {value('model.patch_size', '-')}",
        ),
        ("width, layers", f"{value('model.dim', '-')}; {_layers(run)}"),
        (
            "dictionary",
            f"{value('method.dictionary.codes')} codes"
            if value("method.dictionary.enabled")
            else "none",
        ),
        ("negatives", ", ".join(_negatives(run))),
        (
            "optimizer",
            f"lr {value('optimizer.lr', '-')}, {value('optimizer.schedule', '-')} schedule",
        ),
    ]
    if start:
        processes = "1 process" if start["processes"] == 1 else f"{start['processes']} processes"
        devices = f"{start['devices']} x {start['device']} ({start['platform']}), {processes}"
        pairs.append(("hardware", devices))
        pairs.append(
            (
                "versions",
                f"nas_jax {start['nas_jax']}, jax {start['jax']}, Python {start['python']}",
            )
        )
        pairs += [
            ("start", f"{one['time']} on {one['host']}, from step {one['step']}")
            for one in run.starts[-5:]
        ]
    else:
        pairs.append(("hardware", "not recorded (the run is older than the record of it)"))
    if run.profile:
        pairs.append(
            ("profile", f"steps {value('train.profile_steps')}, in {run.workdir / 'profile'}")
        )
    return facts(pairs)


def _layers(run: RunFiles) -> str:
    return ", ".join(
        f"{run.value(f'model.{part}_layers', '-')} {part}" for part in ("image", "text", "fusion")
    )


def _negatives(run: RunFiles) -> list[str]:
    return [
        "in-batch",
        *(part.upper() for part in ("nva", "nta") if run.value(f"method.{part}.enabled")),
    ]


def _curves(entries: Sequence[Entry], groups) -> str:
    """Charts of the groups, then of all numbers that no group names."""
    keys = list(dict.fromkeys(key for entry in entries for key in entry if key not in NO_CURVE))
    charts, left = [], dict.fromkeys(keys)
    for title, note, wanted, options in groups:
        found = [
            key
            for key in keys
            if any(key == one or one[-1] == "/" and key.startswith(one) for one in wanted)
        ]
        for key in found:
            left.pop(key, None)
        series = [_series(entries, key, _label(key, wanted)) for key in found]
        charts.append(draw(Chart(title, series, note, **options)))
    charts += [draw(Chart(key, [_series(entries, key, key)])) for key in left]
    inside = "".join(charts)
    return f'<div class="grid">{inside}</div>' if inside else ""


def _series(entries: Sequence[Entry], key: str, name: str) -> Series:
    having = [entry for entry in entries if isinstance(entry.get(key), int | float)]
    return Series(
        name, [entry["step"] for entry in having], [float(entry[key]) for entry in having]
    )


def _label(key: str, wanted: Sequence[str]) -> str:
    """`loss/itc` in the group `loss/` is `itc`; where a chart has several groups, the whole key."""
    return key.split("/", 1)[1] if len(wanted) == 1 and wanted[0].endswith("/") else key


def _step_time(run: RunFiles) -> str:
    if not run.timings:
        return ""
    parts = {
        name: sum(entry.get(f"{name}_seconds", 0.0) for entry in run.timings) for name in SPLIT
    }
    note = "of the time on record"
    if not sum(parts.values()):  # a run from before these were recorded
        parts, before = {"input": 0.0, "compute": 0.0}, 0
        for entry in run.timings:
            seconds = entry.get("seconds_per_step", 0.0) * (entry["step"] - before)
            parts["input"] += seconds * entry.get("input_share", 0.0)
            parts["compute"] += seconds * (1 - entry.get("input_share", 0.0))
            before = entry["step"]
        note = (
            "of the steps; this run is older than the record of checkpoints, evaluations and "
            "compiling"
        )
    rows = [(name, format_seconds(seconds)) for name, seconds in parts.items()]
    return (
        f'<p class="note">Shares {note}.</p>{split_bar(parts)}{table((), rows, 1, "narrow")}'
        + _curves(run.timings, MACHINE)
    )


def _evaluation_curves(run: RunFiles) -> str:
    """Retrieval: R@1 of a set. Everything else: a chart for each set, task and scorer."""
    latest = {metric["key"]: metric for one in run.evaluations for metric in one.metrics}
    groups: dict[str, list[str]] = {}
    for key in latest:
        parts = key.split("/")
        if len(parts) != 4:
            continue
        where, task, scorer, quantity = parts
        if task == "retrieval":
            if quantity.endswith("_r@1"):
                groups.setdefault(f"{where}: retrieval, R@1", []).append(key)
        else:
            groups.setdefault(f"{where}: {task}, {scorer}", []).append(key)
    charts = []
    for title, keys in groups.items():
        levels = sorted({round(latest[key]["chance"], 1) for key in keys})
        series = [
            Series(
                _quantity(key),
                [
                    one.step
                    for one in run.evaluations
                    for metric in one.metrics
                    if metric["key"] == key
                ],
                [
                    metric["value"]
                    for one in run.evaluations
                    for metric in one.metrics
                    if metric["key"] == key
                ],
            )
            for key in keys
        ]
        marks = {level: "chance" for level in levels}
        charts.append(draw(Chart(title, series, unit=" %", marks=marks, least=0.0)))
    inside = "".join(charts)
    return f'<p class="note">Dashed: chance.</p><div class="grid">{inside}</div>' if inside else ""


def _quantity(key: str) -> str:
    _, task, scorer, quantity = key.split("/")
    return (
        f"{scorer}, {quantity.removesuffix('_r@1').replace('_', ' ')}"
        if task == "retrieval"
        else quantity
    )


def _results(run: RunFiles) -> str:
    if not run.evaluations:
        return ""
    last, before = run.evaluations[-1], run.evaluations[-2] if len(run.evaluations) > 1 else None
    old = {metric["key"]: metric["value"] for metric in before.metrics} if before else {}
    groups: dict[str, list[Entry]] = {}
    for metric in last.metrics:
        groups.setdefault("/".join(metric["key"].split("/")[:2]), []).append(metric)
    header = (
        "metric",
        "",
        "value",
        "chance",
        "text-only",
        f"since step {before.step}" if before else "",
        "n",
    )
    tables = [
        folded(
            f"{group} ({len(metrics)})",
            table(header, [_result(metric, old) for metric in metrics], 5),
            True,
        )
        for group, metrics in groups.items()
    ]
    note = f"At step {last.step}, in percent. Bar: value; dashed: chance; dot: from the text alone."
    return f'<p class="note">{note}</p>' + "".join(tables)


def _result(metric: Entry, old: Mapping[str, float]) -> tuple[str, ...]:
    blind = metric["blind"]
    change = f"{metric['value'] - old[metric['key']]:+.1f}" if metric["key"] in old else ""
    return (
        html.escape("/".join(metric["key"].split("/")[2:])),
        value_bar(metric["value"], metric["chance"], blind),
        f"{metric['value']:.1f}",
        f"{metric['chance']:.1f}",
        "-" if blind is None else f"{blind:.1f}",
        change,
        str(metric["count"]),
    )


def _checkpoints(run: RunFiles) -> str:
    rows = [
        (
            html.escape(one.name),
            html.escape(one.damage or "record is whole"),
            f"{one.bytes / 2**20:.1f} MiB",
        )
        for one in run.checkpoints
    ]
    return table(("checkpoint", "state", "size"), rows, 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m nas_jax.inspect.run", description="An HTML report of a run."
    )
    parser.add_argument("workdir", help="the --workdir of a run, finished or not")
    parser.add_argument("--out", default="", help=f"the file to write; default: WORKDIR/{REPORT}")
    options = parser.parse_args(argv)
    try:
        with reaching(options.workdir):
            run = read_run(as_path(options.workdir))
            text = report(run)
        out = as_path(options.out) if options.out else run.workdir / REPORT
        try:
            make_folder(out.parent)
            write_whole(out, text)
        except failures() as error:
            raise CheckpointError(
                f"{out}: {in_words(error)}", "a file that can be written", "pass --out"
            ) from error
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{state_of(run)}")
    for finding in find_warnings(run):
        print(f"{finding.level}: {finding.text}")
    print(f"report: {out} ({len(text) / 2**20:.1f} MiB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
