"""The report of made-up runs: what is on the page, what it warns of.

tests/test_configs.py opens those of real ones.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import tarfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from browser import NEEDED, find_browser, look

from configs import demo, emoji, negclip
from nas_jax.config import from_config_dict, to_dict
from nas_jax.evals.metrics import Metric
from nas_jax.evals.suite import write_results
from nas_jax.inspect.charts import Chart, Series, draw, labels, number, ticks
from nas_jax.inspect.nva import NvaPictures, draw_nva
from nas_jax.inspect.page import POLICY
from nas_jax.inspect.run import main, report, state_of
from nas_jax.inspect.run_files import read_run
from nas_jax.inspect.run_warnings import find_warnings
from nas_jax.train.workdir import Records, open_workdir

SAVED = Path(__file__).parents[1] / "fixtures/checkpoint_1/checkpoint.tar.gz"
MACHINE = {
    "time": "2026-01-02 03:04:05 +0000",
    "devices": 2,
    "device": "cpu",
    "platform": "cpu",
    "processes": 1,
    "host": "here",
    "python": "3.11",
    "jax": "0.10",
    "nas_jax": "1.0",
    "parameters": 1_500_000,
    "total_steps": 1000,
}


def metric(key, value, chance, blind) -> Metric:
    return Metric(*key.split("/", 3), value=value, chance=chance, blind=blind, count=300)


def write_run(workdir: Path, config, steps: int, seed: int = 0) -> Path:
    """A run as the loop leaves it: curves, two evaluations, a checkpoint, a picture."""
    rng = np.random.default_rng(seed)
    open_workdir(workdir, to_dict(from_config_dict(config)))
    records = Records(workdir, 0)
    records.add_start(MACHINE)
    for step in range(10, steps + 1, 10):
        share, noise = step / steps, rng.normal(0, 0.1)
        records.add(
            step,
            "train",
            {
                "loss": 10 - 6 * share + noise,
                "loss/itc": 5 - 3 * share,
                "loss/itm": 0.5,
                "optim/lr": 1e-3,
                "optim/grad_norm": 5 + noise,
                "grad_norm/image_encoder": 4.0,
                "grad_norm/neck": 1e-4,
                "itm_accuracy/nva": 1.0,
                "itm_accuracy/positive": share,
                "itc/temp": 0.07 - 0.01 * share,
                "dictionary/perplexity": 30.0,
                "dictionary/distance": 5.0,
                "dictionary/decay": 0.5 if share < 0.8 else 1.0,
                "dictionary/dead_codes": 100 * (1 - share),
                "nva/replaced_share": 0.1,
                "teacher/distance": 0.01,
                "unheard/of": 1.0,
                "data/skipped": 0,
            },
        )
        timing = {
            "seconds_per_step": 0.5,
            "pairs_per_second": 64.0,
            "input_share": 0.02,
            "mfu": 0.4,
            "host_gib": 2.0,
        }
        split = {
            "input_seconds": 0.1,
            "compute_seconds": 4.9,
            "checkpoint_seconds": 0.5,
            "evaluation_seconds": 1.0,
        }
        records.add_timing(step, timing | split | {"compile_seconds": 0.0, "elapsed": 0.65 * step})
    for step, accuracy in ((steps // 2, 60.0), (steps, 80.0)):
        write_results(
            workdir / f"evals/{step}.json",
            [
                metric("val/retrieval/itm/text_to_image_r@1", accuracy, 1.0, 0.0),
                metric("val/foils/itm/colour", accuracy + 5, 50.0, 50.0),
                metric("val/foils/itm/<b>", accuracy + 4, 50.0, 50.0),
            ],
            {"step": step},
        )
    records.close()
    with tarfile.open(SAVED) as archive:
        archive.extractall(workdir / "checkpoints", filter="data")
    (saved,) = (path for path in (workdir / "checkpoints").iterdir())
    saved.rename(saved.with_name(str(steps)))
    pictures = NvaPictures(
        rng.integers(0, 255, (2, 16, 16, 3), np.uint8),
        ["a cat", "a dog"],
        np.array([1, 2]),
        np.eye(16, dtype=bool)[:2],
        rng.random((2, 16)),
    )
    draw_nva(workdir / "nva.png", pictures)
    return workdir


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The demo's and the emoji's configs; the first is finished at step 1000, the second goes
    on.
    """
    folder = tmp_path_factory.mktemp("runs")
    return {
        "demo": write_run(folder / "demo", demo.get_config(), 1000),
        "emoji": write_run(folder / "emoji", emoji.get_config(), 800, seed=1),
    }


def test_the_page_has_everything_and_refers_to_nothing(runs):
    for workdir in runs.values():
        assert main([str(workdir)]) == 0
        text = (workdir / "report.html").read_text()
        for wanted in (
            "Losses by part",
            "Gradient norm by module",
            "Matching accuracy by kind of pair",
            "unheard/of",
            "MFU",
            "Temperature",
            "Dictionary: perplexity",
            "Distance of the teacher",
            "val: retrieval, R@1",
            "checkpoint 7.7%",
            "1.5 M",
            "2 x cpu (cpu), 1 process",
            "train.log_every",
            "text_to_image_r@1",
            "val: foils, itm",
        ):
            assert wanted in re.sub(r"</?b>", "", text), wanted
        assert "data:image/png;base64," in text and "<b></td>" not in text  # names are escaped
        references = re.findall(r"""(?:src|href|action|data)=["']?([^"'\s>]+)""", text)
        assert (
            all(one.startswith(("#", "data:image/png")) for one in references)
            and len(references) > 5
        )
        assert not re.search(
            r"url\(|@import|fetch\(|XMLHttp|://", text.replace(html.escape(str(workdir)), "")
        )
    assert state_of(read_run(runs["demo"])) == "finished at step 1000"
    assert state_of(read_run(runs["emoji"])) == "unfinished, at step 800 of 1000"


class Counter(BaseHTTPRequestHandler):
    """Notes what it is asked for, and has nothing."""

    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_error(404)

    def log_message(self, *args):
        """Says nothing."""


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Counter) as server:
        server.asked = []
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_page_that_asks_the_network_is_found_out_and_stopped_by_the_policy(
    runs, server, tmp_path
):
    """The negative control of every test that opens a report."""
    where = f"http://127.0.0.1:{server.server_port}"
    page = report(read_run(runs["demo"])).replace("</body>", f'<img src="{where}/x.png"></body>')
    (tmp_path / "free").mkdir()
    seen = look(page.replace(POLICY, ""), tmp_path / "free")
    assert seen["asked"] == seen["requests"] == [f"{where}/x.png"] and seen["blocked"] == []
    assert server.asked == ["/x.png"]
    # The policy stops the picture, but not a connection opened beforehand: of that only the
    # browser's log tells.
    seen = look(
        page.replace("</head>", f'<link rel="preconnect" href="{where}/"></head>'), tmp_path
    )
    assert (
        seen["blocked"] == [f"{where}/x.png"]
        and seen["asked"] == [f"{where}/"]
        and server.asked == ["/x.png"]
    )


def test_without_a_browser_a_test_skips_unless_there_must_be_one(monkeypatch):
    monkeypatch.setenv("PATH", "")
    for value, outcome in (("", pytest.skip.Exception), ("1", pytest.fail.Exception)):
        monkeypatch.setenv(NEEDED, value)
        with pytest.raises(outcome, match="none of chromium, .* is installed"):
            find_browser()


def texts(workdir: Path) -> str:
    return "\n".join(f"{one.level}: {one.text}" for one in find_warnings(read_run(workdir)))


def test_a_healthy_run_has_no_warning_and_each_fault_has_its_own(runs, tmp_path):
    assert texts(runs["demo"]) == ""
    broken = shutil.copytree(runs["demo"], tmp_path / "broken")
    last = json.loads((broken / "metrics.jsonl").read_text().splitlines()[-1])
    faulty = last | {
        "step": 1010,
        "dictionary/dead_codes": 90.0,
        "dictionary/perplexity": 1.5,
        "dictionary/distance": 300.0,
        "data/skipped": 900,
    }
    with (broken / "metrics.jsonl").open("a") as file:
        file.write("not JSON\n" + json.dumps(faulty) + '\n{"step": 10')
    with (broken / "timings.jsonl").open("a") as file:
        file.writelines(
            json.dumps({"step": 1000 + n, "input_share": 0.5}) + "\n" for n in range(20)
        )
    (broken / "checkpoints/1000").rename(broken / "checkpoints/damaged-1000")
    (broken / "checkpoints/1010/position").mkdir(parents=True)
    (broken / "checkpoints/1010/position/metadata").write_text("{")
    (broken / "hang-1.txt").write_text(
        "hang: process 1: nothing done for 9s after step 7, waits for input; threads: a"
    )
    metrics = [
        metric(f"val/foils/itm/{name}", value, 50.0, blind)
        for name, value, blind in (
            ("colour", 60.0, 50.0),
            ("size", 90.0, 89.0),
            ("number", 50.0, 50.0),
        )
    ]
    write_results(broken / "evals/1010.json", metrics, {})
    found = texts(broken)
    for wanted in (
        "bad: checkpoint damaged-1000 is damaged",
        "bad: checkpoint 1010 is damaged: position/metadata",
        "bad: metrics.jsonl, line 101, is not an entry: left out",
        "bad: hang-1.txt: 1 hangs; the last: hang: process 1: nothing done for 9s after step 7, "
        "waits for input",
        "bad: the dictionary has a perplexity of 1.5",
        "look: patches left the dictionary behind when it was frozen: squared distance to their "
        "codes 34.5, 5 before",
        "look: 90 of 128 codes of the dictionary are dead (70%)",
        "look: the step waits for data 50% of its time",
        "look: 900 pictures could not be read",
        "look: falling: val/foils/itm/colour from 85.0 at step 1000 to 60.0",
        "look: not above chance at step 1010, 1 of 3 metrics: val/foils/itm/number 50.0 (chance "
        "50.0)",
        "look: no better than the text alone at step 1010: val/foils/itm/size 90.0 (text alone "
        "89.0)",
    ):
        assert wanted in found, found
    # a line half written at the end is no fault: the run may go on
    assert len(found.splitlines()) == 12
    assert "damaged-1000" in report(read_run(broken))


@pytest.mark.parametrize(
    ("config", "field"),
    [(demo.get_config(), "method.itc.temp_min"), (negclip.get_config(), "method.temp_min")],
)
def test_a_temperature_at_its_bound_is_named_by_its_field(config, field, tmp_path):
    bound = config.to_dict()["method"]
    for name in field.split(".")[1:]:
        bound = bound[name]
    for temp, said in ((bound, [f"move {field} if it should go on"]), (1.5 * bound, [])):
        workdir = tmp_path / f"{temp}"
        open_workdir(workdir, to_dict(from_config_dict(config)))
        records = Records(workdir, 0)
        for step in range(1, 11):
            records.add(step, "train", {"loss": 1.0, "itc/temp": temp})
        records.close()
        found = [one.remedy for one in find_warnings(read_run(workdir)) if "temper" in one.text]
        assert found == said


def test_a_run_without_numbers_says_so_in_a_line(tmp_path, capsys):
    open_workdir(tmp_path / "empty", to_dict(from_config_dict(demo.get_config())))
    assert main([str(tmp_path / "empty"), "--out", str(tmp_path / "sub/page.html")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("nothing trained yet: numbers come with step ") and len(out) == 2
    assert "nothing trained yet" in (tmp_path / "sub/page.html").read_text()
    assert main([str(tmp_path / "nowhere")]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"error: no config.json in {tmp_path / 'nowhere'}; expected the --workdir of a run."
    )
    assert main([str(tmp_path / "empty"), "--out", str(tmp_path / "sub/page.html/under.html")]) == 4
    assert "Remedy: pass --out" in capsys.readouterr().err


def test_a_chart_shows_values_where_they_are():
    drawn = draw(
        Chart(
            "t",
            [Series("a", [0, 50, 100], [0.0, 5.0, 10.0])],
            least=0.0,
            most=10.0,
            marks={5.0: "chance"},
        )
    )
    (path,) = re.findall(r'<path[^>]* d="M([^"]*)"', drawn)
    points = [tuple(map(float, point.split(","))) for point in path.split("L")]
    assert points[0][0] < points[1][0] < points[2][0] and points[0][1] > points[1][1] > points[2][1]
    assert points[1][0] * 2 == pytest.approx(points[0][0] + points[2][0], abs=0.2)
    (level,) = re.findall(r'<line class="mark"[^>]*y1="([\d.]+)"', drawn)
    assert float(level) == pytest.approx(points[1][1], abs=0.1)
    assert draw(Chart("t", [Series("a", [1, 2], [float("nan"), float("inf")])])) == ""
    # no logarithm of 0
    assert draw(Chart("t", [Series("a", [1, 2, 3], [0.0, 1e-4, 10.0])], log=True)).count("L") == 1
    thousands = Series("a", range(5000), np.sin(np.arange(5000) / 300) + 2)
    assert len(draw(Chart("t", [thousands]))) < 20_000
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10] and ticks(0.31, 0.34)[0] == pytest.approx(0.31)
    assert [number(value) for value in (0, 1234, 48_000, 2.5e6, 1.2e-5, 0.123456)] == [
        "0", "1234", "48 k", "2.5 M", "1.2e-5", "0.123",
    ]  # fmt: skip
    # Beside an axis no two numbers read alike, and there is no step between two steps.
    assert labels(ticks(0.07, 0.0701)) == [
        "0.07",
        "0.07002",
        "0.07004",
        "0.07006",
        "0.07008",
        "0.0701",
    ]
    assert labels([1e-4, 1.05e-4, 1.1e-4]) == ["1e-4", "1.05e-4", "1.1e-4"]
    few = draw(Chart("t", [Series("a", [1, 2, 3, 4], [1.0, 2.0, 3.0, 4.0])]))
    assert re.findall(r'class="x"[^>]*>([^<]*)<', few) == ["1", "2", "3", "4"]
