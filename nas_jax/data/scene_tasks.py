"""Scenes with a question: what downstream tasks train and test on without a file.

Every answer follows from the scene. The text is drawn first and the answer after it, evenly, so
that no text tells its answer: a model that does not look is right by chance alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from nas_jax.data.records import Box
from nas_jax.data.scene_captions import Noun, Statement
from nas_jax.data.scene_pictures import CORNERS, Item, SceneSpec, render
from nas_jax.data.scenes import choose, draw_scene, draw_statement, draw_wording
from nas_jax.data.worlds import NUMBERS, World

SPLITS = ("train", "val", "heldout")
# The first word of every random stream: task word + number of the split. Scenes of pretraining have
# 1 to 5 (scenes.STREAMS).
WORDS = {"snli_ve": 100, "grounding": 110, "vqa": 120, "nlvr2": 130, "probe": 140}
COVER = 0.22  # half the side of a cover, as a share of the picture's: hides the biggest shape
COVER_RGB = (128, 128, 128)
ENTAILMENT = ("contradiction", "neutral", "entailment")  # the label is the index


class Shown(NamedTuple):
    """A scene, and the shape that a grey square covers."""

    scene: SceneSpec
    covered: Item | None = None

    def picture(self, image_size: int) -> np.ndarray:
        """uint8 (image_size, image_size, 3)."""
        image_HxWx3 = render(self.scene, image_size)
        if self.covered is None:
            return image_HxWx3
        image_HxWx3 = image_HxWx3.copy()
        x, y = self.covered.x, self.covered.y
        (left, right), (top, bottom) = (
            (max(0, round((at - COVER) * image_size)), round((at + COVER) * image_size))
            for at in (x, y)
        )
        image_HxWx3[top:bottom, left:right] = COVER_RGB
        return image_HxWx3


class Posed(NamedTuple):
    """What a task asks of one scene, or of two."""

    shown: tuple[Shown, ...]
    text: str
    gold: Any  # the answer


Draw = Callable[..., Posed]
"""(world, generator, whether held-out pairs may occur) -> one item of a task; where several items
share a text, also the number of the item among these.
"""


def scene_rng(task: str, split: str, seed: int, index: int) -> np.random.Generator:
    """The generator of one item: a function of these alone."""
    return np.random.default_rng((WORDS[task] + SPLITS.index(split), seed, index))


def recoloured(
    world: World, statement: Statement, index: int, rng: np.random.Generator, held_out: bool
) -> Statement:
    """The statement with another colour for one of its nouns."""
    noun = statement.nouns[index]
    colours = [
        colour
        for colour, shape in world.allowed(held_out)
        if shape == noun.shape and colour != noun.colour
    ]
    nouns = list(statement.nouns)
    nouns[index] = replace(noun, colour=choose(rng, colours))
    return replace(statement, nouns=tuple(nouns))


def draw_entailment(world: World, rng: np.random.Generator, held_out: bool) -> Posed:
    """Three shapes and a hypothesis about two of them; gold: the index in ENTAILMENT.

    entailment: both are seen. contradiction: one of them has another colour, and nothing is
    covered. neutral: that one is covered. In half of the entailments a third shape is covered, so
    that a cover alone tells nothing for certain.
    """
    whole = draw_statement(world, "existence", rng, held_out)
    whole = replace(whole, nouns=(*whole.nouns[:2], replace(whole.nouns[2], number=1)))
    said = draw_wording(replace(whole, nouns=whole.nouns[:2]), rng)
    label, index, even = int(rng.integers(3)), int(rng.integers(2)), rng.random() < 0.5
    other = recoloured(world, whole, index, rng, held_out)
    true = label == 2 or (label == 1 and even)
    scene = draw_scene(world, whole if true else other, rng, held_out)
    covered = {0: None, 1: scene.items[index], 2: scene.items[2] if even else None}[label]
    return Posed((Shown(scene, covered),), said.text(), label)


# ---------------------------------------------------------------------------------------- grounding

SIDE = 480  # of a scene in the units of its boxes
DISTRACTORS = 5  # boxes of no shape among the proposals


class Named(NamedTuple):
    """Where a named thing is, and the boxes among which it is to be found."""

    box: Box
    proposals: tuple[Box, ...]
    size: tuple[int, int]  # width and height of the picture, in the units of the boxes
    part: str = ""  # of the test set


def item_box(item: Item) -> Box:
    """The smallest box around a shape."""
    xs, ys = zip(*CORNERS[item.shape], strict=True)
    left, top = item.x + item.radius * min(xs), item.y + item.radius * min(ys)
    width, height = item.radius * (max(xs) - min(xs)), item.radius * (max(ys) - min(ys))
    return tuple(round(SIDE * one, 2) for one in (left, top, width, height))


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    inside = max(0.0, width) * max(0.0, height)
    return inside / (one[2] * one[3] + other[2] * other[3] - inside)


def draw_boxes(world: World, rng: np.random.Generator, held_out: bool) -> Posed:
    """Three shapes and the name of one of them; gold: `Named`.

    The proposals are the boxes of the three, in any order, and boxes of shapes' sizes that overlap
    the named one by less than half.
    """
    whole = draw_statement(world, "existence", rng, held_out)
    whole = replace(whole, nouns=(*whole.nouns[:2], replace(whole.nouns[2], number=1)))
    scene, index = draw_scene(world, whole, rng, held_out), int(rng.integers(3))
    boxes = [item_box(item) for item in scene.items]
    others: list[Box] = []
    while len(others) < DISTRACTORS:
        side = float(rng.uniform(0.2, 0.4)) * SIDE
        left, top = rng.uniform(0, SIDE - side, 2).tolist()
        box = round(left, 2), round(top, 2), round(side, 2), round(side, 2)
        if overlap(box, boxes[index]) < 0.5:
            others.append(box)
    proposals = boxes + others
    order = rng.permutation(len(proposals)).tolist()
    named = Named(boxes[index], tuple(proposals[k] for k in order), (SIDE, SIDE))
    noun = replace(whole.nouns[index], number=None)
    return Posed((Shown(scene),), noun.text("a"), named)


# ---------------------------------------------------------------------------------------- questions

QUESTIONS = ("colour", "shape", "number", "existence")
HUMANS = 10  # equal answers to a question


class Answers(NamedTuple):
    """What people answered to a question."""

    given: tuple[str, ...]  # () where that is not known
    weight: float = 1.0  # of all of them in training
    spelt: tuple[str, ...] = ()  # as they are trained on, where that is not as they are judged


def scene_answers(world: World) -> tuple[str, ...]:
    """All answers to the questions of a world."""
    return (*world.colours, *world.shapes, *NUMBERS[1:], "yes", "no")


def draw_question(world: World, rng: np.random.Generator, held_out: bool) -> Posed:
    """A scene of two or three things and a question on one of them; gold: `Answers`.

    Of "what colour" and "what shape" the rest of the name fits no other thing.
    """
    kind = choose(rng, QUESTIONS)
    if kind == "number":
        whole = draw_statement(world, "count", rng, held_out)
        noun = choose(rng, whole.nouns)
        plural = replace(noun, number=2).text("").removeprefix(NUMBERS[2] + " ")
        text, answer = f"what number of {plural} is there", NUMBERS[noun.counted]
        return _question(draw_scene(world, whole, rng, held_out), text, answer)
    whole = draw_statement(world, "existence", rng, held_out)
    whole = replace(whole, nouns=(*whole.nouns[:2], replace(whole.nouns[2], number=1)))
    index = int(rng.integers(2))
    noun = whole.nouns[index]
    if kind == "existence":
        there = rng.random() < 0.5
        shown = whole if there else recoloured(world, whole, index, rng, held_out)
        scene = draw_scene(world, shown, rng, held_out)
        return _question(scene, f"is there {noun.text('a')}", "yes" if there else "no")
    scene = draw_scene(world, whole, rng, held_out)
    alone = [
        one
        for one in scene.items
        if sum(getattr(one, _SAID[kind]) == getattr(other, _SAID[kind]) for other in scene.items)
        == 1
    ]
    if not alone:
        return draw_question(world, rng, held_out)
    item = choose(rng, alone)
    if kind == "colour":
        return _question(scene, f"what colour is the {item.shape}", item.colour)
    return _question(scene, f"what is {item.colour}", item.shape)


_SAID = {"colour": "shape", "shape": "colour"}  # what is said of the thing that is asked for


def _question(scene: SceneSpec, text: str, answer: str) -> Posed:
    # VQA's annotations have digits for words of numbers, of which captions of scenes have none
    judged = str(NUMBERS.index(answer)) if answer in NUMBERS[1:] else answer
    return Posed((Shown(scene),), text, Answers((judged,) * HUMANS, spelt=(answer,)))


# ----------------------------------------------------------------------- statements on two scenes

FORMS = {
    "left": "the left picture has",
    "right": "the right picture has",
    "both": "both pictures have",
    "one": "one picture has",  # and the other one has not
}
TRUE_OF = {  # form -> which of the two pictures may show the thing
    "left": ((True, True), (True, False)),
    "right": ((True, True), (False, True)),
    "both": ((True, True),),
    "one": ((True, False), (False, True)),
}
ALL_PAIRS = ((False, False), (False, True), (True, False), (True, True))


def draw_pair_statement(
    world: World, rng: np.random.Generator, held_out: bool, number: int = 0
) -> Posed:
    """Two scenes and a statement on both; gold: 1 if it is true, else 0.

    number: of the pair of scenes, for statements that several pairs share.
    """
    form = choose(rng, tuple(FORMS))
    noun = choose(rng, draw_statement(world, "existence", rng, held_out).nouns[:2])
    for _ in range(number + 1):
        true = rng.random() < 0.5
        pairs = [pair for pair in ALL_PAIRS if (pair in TRUE_OF[form]) == true]
        scenes = [_with_or_without(world, noun, has, rng, held_out) for has in choose(rng, pairs)]
    text = f"{FORMS[form]} {noun.text('a')}"
    return Posed(tuple(map(Shown, scenes)), text, int(true))


def _with_or_without(
    world: World, noun: Noun, has: bool, rng: np.random.Generator, held_out: bool
) -> SceneSpec:
    """Three shapes, among them the thing; or, in its place, one that differs in its colour."""
    while True:
        whole = draw_statement(world, "existence", rng, held_out)
        third = replace(whole.nouns[2], number=1)
        whole = replace(whole, nouns=(noun, whole.nouns[1], third))
        shown = whole if has else recoloured(world, whole, 0, rng, held_out)
        scene = draw_scene(world, shown, rng, held_out)
        if any(map(noun.fits, scene.items)) == has:
            return scene
