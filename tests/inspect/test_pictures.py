"""The pictures of a trained run: files, the report, text that fits, and letters of any script."""

from __future__ import annotations

import json
import random
import warnings

import numpy as np
import pytest
from PIL import Image

from nas_jax.inspect import dictionary, foils, words
from nas_jax.inspect.foils_measure import FoilScored, sorted_out
from nas_jax.inspect.foils_picture import draw_foils
from nas_jax.inspect.picture_sections import SECTIONS
from nas_jax.inspect.run import main as write_report
from nas_jax.inspect.sheet import Sheet, percent, probability, resized
from nas_jax.inspect.words_measure import PictureWords, WordMap
from nas_jax.inspect.words_picture import draw_words

SCRIPTS = "红色的圆在左边 دائرة حمراء लाल वृत्त 赤い丸 🔴 $x_2$ ^_{"


def size_of(path) -> tuple[int, int]:
    with Image.open(path) as picture:
        assert np.ptp(np.asarray(picture.convert("L"))) > 200  # something is on it
        return picture.size


# ---------------------------------------------------------------------------------- commands


def test_each_command_leaves_its_picture_and_its_numbers_and_the_report_shows_them(workdir, capsys):
    _, folder = workdir
    assert dictionary.main([str(folder), "--images", "20"]) == 0
    assert "8 codes in use, perplexity" in capsys.readouterr().out
    assert words.main([str(folder), "--pictures", "3"]) == 0
    assert capsys.readouterr().out.count("P(match)") == 3
    assert foils.main([f"{folder}/checkpoints/4", "--set", "heldout"]) == 0
    assert "4 foils of heldout right" in capsys.readouterr().out  # eval.max_pairs of the run

    found = json.loads((folder / "dictionary.json").read_text())
    assert found["pictures"] == 20 and found["patches"] == 320 and found["codes"] == 8
    assert sum(one["share"] for one in found["most_used"]) == pytest.approx(1)
    assert size_of(folder / "dictionary.png")[0] == 760
    found = json.loads((folder / "words.json").read_text())
    assert [len(one["words"]) > 3 for one in found["pictures"]] == [True] * 3
    assert np.shape(found["pictures"][0]["words"][1]["attention"]) == (4, 4)
    assert size_of(folder / "words.png")[0] > 1300
    found = json.loads((folder / "foils.json").read_text())
    assert found["set"] == "heldout" and found["count"] == 4
    assert size_of(folder / "foils.png")[0] == 1294

    assert write_report([str(folder)]) == 0
    page = (folder / "report.html").read_text()
    for name, (heading, note) in SECTIONS.items():
        assert page.count(f'alt="{name}"') == 1 and f"<h2>{heading}</h2>" in page and note in page


def test_a_picture_and_a_caption_of_ones_own(workdir, tmp_path, capsys):
    _, folder = workdir
    Image.new("RGB", (50, 30), "red").save(tmp_path / "own.png")
    (tmp_path / "no.png").write_text("not a picture")
    out = ["--out", str(tmp_path)]
    own = ["--image", str(tmp_path / "own.png"), "--caption", "A red, square!"]
    assert words.main([str(folder), *own, *out]) == 0
    (one,) = json.loads((tmp_path / "words.json").read_text())["pictures"]
    assert (one["picture"], one["caption"]) == ("own.png", "a red square")
    assert [word["word"] for word in one["words"]] == ["[CLS]", "red", "square"]
    assert words.main([str(folder), "--picture", "7", "--caption", SCRIPTS[:12], *out]) == 0
    (one,) = json.loads((tmp_path / "words.json").read_text())["pictures"]
    assert one["picture"] == "scenes 7" and one["caption"] == SCRIPTS[:12].strip()
    capsys.readouterr()
    for flags, code, said in (
        (["--picture", "512"], 2, "expected 0 to 511"),
        (["--caption", "a"], 2, "--caption without a picture"),
        (own[:2], 2, "--image without --caption"),
        ([*own, "--picture", "1"], 2, "--image with --picture"),
        (["--picture", "1", "--caption", "?!"], 2, "give some words"),
        (["--image", str(tmp_path / "no.png"), "--caption", "a"], 3, "a picture that can be read"),
        (["--image", str(tmp_path / "none"), "--caption", "a"], 3, "No such file"),
        (["--pictures", "0"], 2, "1 or more"),
    ):
        assert words.main([str(folder), *flags, *out]) == code
        text = capsys.readouterr().err
        assert said in text and text.count("\n") == 1, text
    for command in (dictionary, words, foils):
        assert command.main([str(tmp_path)]) == 4
    assert dictionary.main([str(folder), "--images", "1"]) == 2
    assert dictionary.main([str(folder), "--images", "20", "--from", "9"]) == 2
    assert capsys.readouterr().err.count("error: ") == 5


# ---------------------------------------------------------------------------------- drawing


def test_letters_of_any_script_and_long_texts_are_drawn_without_a_warning(tmp_path):
    image, rng = np.zeros((16, 16, 3), np.uint8), np.random.default_rng(0)
    item = FoilScored(0, SCRIPTS * 5, SCRIPTS[::-1], SCRIPTS, 0.99999, 0.2, 9.0, False)
    maps = tuple(
        WordMap(text, rng.random((4, 4)), np.zeros((4, 4)), 1.0, float("nan"))
        for text in [*SCRIPTS.split(), "Donaudampfschifffahrtsgesellschaft"] * 3
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_foils(tmp_path / "foils.png", sorted_out([item], SCRIPTS, SCRIPTS), [image])
        draw_words(
            tmp_path / "words.png", "run", [PictureWords("a", image, SCRIPTS * 9, 0.5, maps)]
        )
    assert size_of(tmp_path / "foils.png") == (1294, 96 + 3 * 40 + 3 * 172 + 56)
    assert size_of(tmp_path / "words.png")[1] > 900  # three lines of words


def test_text_fits_its_lines_and_an_ellipsis_stands_for_the_rest():
    sheet, rng = Sheet(400, 100), random.Random(0)
    for _ in range(20):
        words = [("n" * rng.randint(1, 40), rng.random() < 0.3) for _ in range(12)]
        width = rng.randint(60, 300)
        whole = sheet.lines(words, 10, width, most=99)
        assert "".join(word for line in whole for word, _ in line) == "".join(w for w, _ in words)
        cut = sheet.lines(words, 10, width, most=2)
        assert len(cut) == 2 and (len(whole) == 2 or cut[-1][-1] == ("…", False))
        for line in whole:
            text = " ".join(word for word, _ in line)
            weight = "bold" if all(marked for _, marked in line) else "normal"
            assert sheet.width_of(text, 10, weight) <= width + 1
        fitted = sheet.fitted(words[0][0], 10, 50)
        assert sheet.width_of(fitted, 10) <= 50
        assert fitted == words[0][0] or fitted.endswith("…")


def test_pictures_are_pasted_pixel_by_pixel(tmp_path):
    sheet = Sheet(60, 40)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    sheet.paste(10, 5, resized(pixels, 16, 24))
    sheet.box(50, 30, (4, 6), "#ff0000", linewidth=0)
    sheet.save(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        page = np.asarray(picture.convert("RGB"))
    assert page.shape == (40, 60, 3)
    np.testing.assert_array_equal(page[5:21, 10:34], pixels.repeat(2, axis=0).repeat(3, axis=1))
    assert (page[31:35, 51:53] == (255, 0, 0)).all() and (page[0] == 255).all()


def test_numbers_are_written_short_and_never_as_nothing():
    assert [percent(x) for x in (0.5, 0.1, 0.0123, 0.00012)] == ["50 %", "10 %", "1.2 %", "0.012 %"]
    texts = [probability(x) for x in (0.5, 0.004, 0.00001, 0.9987, 0.99999)]
    assert texts == ["0.50", "0.0040", "<0.0001", "0.9987", ">0.9999"]
