"""Evaluation sets of scenes: retrieval, foils and quads.

Foils are *mirrored*: where (picture of c, caption c, foil f) is an item, (picture of f, caption f,
foil c) is one too. So captions and foils are the same multiset of texts in every category of every
set, held out or not, and a scorer that ignores the picture is right in exactly half of the items
(fewer where it ties). What remains: the two items of a pair share their texts, so an error bar
should count pairs; and the block of held-out pairs leaves the edits of "heldout" fewer colours (in
the small world yellow for purple and back) than those of "val".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from nas_jax.data.eval_sets import EvalSet, Foil, Quad
from nas_jax.data.scene_captions import Statement, holds, parse
from nas_jax.data.scene_pictures import SceneSpec, render
from nas_jax.data.scenes import (
    STREAMS,
    check_request,
    choose,
    draw_example,
    draw_scene,
    draw_statement,
    draw_wording,
)
from nas_jax.data.worlds import INVERSE, Pair, World
from nas_jax.utils.errors import ConfigError

MAX_TRIES = 200  # draws in a row without a new item before an evaluation set counts as exhausted


def _edited_noun(world: World, statement: Statement, rng: np.random.Generator) -> int:
    """Which of the first two nouns an edit changes: a held-out one first, as "heldout" asks."""
    held_out = [k for k in (0, 1) if statement.nouns[k].pair in world.held_out]
    return choose(rng, held_out or [0, 1])


def _with_noun(statement: Statement, index: int, **changes) -> Statement:
    nouns = list(statement.nouns)
    nouns[index] = replace(nouns[index], **changes)
    return replace(statement, nouns=tuple(nouns))


def _deny(world: World, statement: Statement, rng: np.random.Generator) -> Statement:
    last = statement.nouns[-1]
    return _with_noun(statement, len(statement.nouns) - 1, number=1 - last.counted)


def _recount(world: World, statement: Statement, rng: np.random.Generator) -> Statement:
    index = _edited_noun(world, statement, rng)
    return _with_noun(
        statement,
        index,
        number=choose(rng, [n for n in range(1, 5) if n != statement.nouns[index].number]),
    )


def _recolour(world: World, statement: Statement, rng: np.random.Generator) -> Statement:
    index = _edited_noun(world, statement, rng)
    return _with_noun(
        statement,
        index,
        colour=choose(rng, [c for c in world.colours if c != statement.nouns[index].colour]),
    )


def _exchange_colours(world: World, statement: Statement, rng: np.random.Generator) -> Statement:
    first, second = statement.nouns
    return replace(
        statement,
        nouns=(replace(first, colour=second.colour), replace(second, colour=first.colour)),
    )


def _resize(world: World, statement: Statement, rng: np.random.Generator) -> Statement:
    index = _edited_noun(world, statement, rng)
    size = {None: None, "small": "big", "big": "small"}[statement.nouns[index].size]
    return _with_noun(statement, index, size=size)


def _refill(world: World, statement: Statement, rng: np.random.Generator) -> Statement:
    index = _edited_noun(world, statement, rng)
    others = [fill for fill in world.named_fills if fill != statement.nouns[index].fill]
    return _with_noun(statement, index, fill=choose(rng, others))


def _turn(world: World, statement: Statement, rng: np.random.Generator) -> Statement:
    return replace(statement, relation=INVERSE[statement.relation or "none"])


def _exchange_nouns(world: World, statement: Statement, rng: np.random.Generator) -> Statement:
    return replace(statement, nouns=statement.nouns[::-1])


Edit = Callable[[World, Statement, np.random.Generator], Statement]
# category -> (kind of scene, the edit that makes the foil)
_FOILS: dict[str, tuple[str, Edit]] = {
    "existence": ("existence", _deny),
    "number": ("count", _recount),
    "colour": ("relation", _recolour),
    "binding": ("relation", _exchange_colours),
    "size": ("relation", _resize),
    "relation": ("relation", _turn),
    "fill": ("relation", _refill),
}
# Edits that keep the words and change their order alone.
QUADS: dict[str, tuple[str, Edit]] = {
    "binding": ("relation", _exchange_colours),
    "relation": ("relation", _exchange_nouns),
}


def foil_categories(world: World) -> tuple[str, ...]:
    """The categories of foils: six, and "fill" where captions name fills."""
    return tuple(name for name in _FOILS if name != "fill" or world.named_fills)


Side = tuple[Statement, SceneSpec]


def _contrasts(
    world: World, kind: str, edit: Edit, rng: np.random.Generator, held_out: bool
) -> Iterator[tuple[Side, Side]]:
    """Endless pairs of (statement, scene), each statement true of its own scene and false of the
    other, no pair twice.

    Both statements name as many held-out pairs, so the novelty of a pair does not tell which
    belongs to a picture. Stops after MAX_TRIES draws without a new pair.
    """
    known: set[str] = set()
    tries = 0
    while tries < MAX_TRIES:
        tries += 1
        first = draw_wording(draw_statement(world, kind, rng, held_out), rng)
        second = edit(world, first, rng)
        novel = [
            sum(pair in world.held_out for pair in statement.pairs) for statement in (first, second)
        ]
        if (
            novel[0] != novel[1]
            or len(set(second.pairs)) < 2
            or not known.isdisjoint((first.text(), second.text()))
        ):
            continue
        scenes = [draw_scene(world, statement, rng, held_out) for statement in (first, second)]
        # the edit changed nothing that is visible
        if holds(first, scenes[1]) or holds(second, scenes[0]):
            continue
        known.update((first.text(), second.text()))
        tries = 0
        yield (first, scenes[0]), (second, scenes[1])


def _retrieval(
    world: World, count: int, rng: np.random.Generator, held_out: bool
) -> list[tuple[SceneSpec, tuple[str, ...]]]:
    """Scenes with captions that are unique and true of no other scene in the list."""
    kept: list[tuple[SceneSpec, tuple[str, ...]]] = []
    truths: list[tuple[tuple[Statement, ...], frozenset[Pair]]] = []
    tries = 0
    while len(kept) < count:
        if (tries := tries + 1) > MAX_TRIES:
            raise ConfigError(
                f"scenes num_images={count}",
                f"at most {len(kept)} scenes apart",
                "ask for fewer images",
            )
        scene, captions = draw_example(world, rng, held_out)
        said, shown = tuple(parse(caption, world) for caption in captions), scene.pairs
        # The pairs are compared first: they settle nearly all cases and cost little.
        if any(
            (
                shown.issuperset(old_said[0].pairs)
                and any(holds(statement, scene) for statement in old_said)
            )
            or (
                old_shown.issuperset(said[0].pairs)
                and any(holds(statement, old) for statement in said)
            )
            for (old, _), (old_said, old_shown) in zip(kept, truths, strict=True)
        ):
            continue
        kept.append((scene, captions))
        truths.append((said, shown))
        tries = 0
    return kept


@dataclass(frozen=True)
class Counts:
    """How much an evaluation set holds."""

    num_images: int = 200  # pictures for retrieval
    foils_per_category: int = 100
    num_quads: int = 100

    def validate(self) -> None:
        """Raises ConfigError on a number below 0, and on items that are no pairs."""
        for setting, value in vars(self).items():
            if value < 0:
                raise ConfigError(
                    f"scenes {setting}={value}", "0 or more", "0 leaves that part out"
                )
            if setting != "num_images" and value % 2:
                raise ConfigError(
                    f"scenes {setting}={value}",
                    "an even number (items come in pairs)",
                    f"use {value + 1}",
                )


class _Draft:
    """A set that grows: scenes with their captions."""

    def __init__(self, world: World, name: str, seed: int):
        self.world, self.name, self.held_out = world, name, name == "heldout"
        self.rng = np.random.default_rng((STREAMS[f"eval/{name}"], seed))
        self.scenes: list[SceneSpec] = []
        self.captions: list[tuple[str, ...]] = []

    def add_retrieval(self, count: int) -> None:
        """Scenes with captions of their own."""
        for scene, texts in _retrieval(self.world, count, self.rng, self.held_out):
            self.scenes.append(scene)
            self.captions.append(texts)

    def add_contrasts(
        self, setting: str, category: str, how: tuple[str, Edit], wanted: int
    ) -> list[tuple[int, str, str]]:
        """Adds 2 * wanted scenes; (index of the first, text of the first, text of the second).

        setting: what asked for them, for errors. how: the kind of scene, and the edit.
        """
        found: list[tuple[int, str, str]] = []
        source = _contrasts(self.world, *how, self.rng, self.held_out)
        for _ in range(wanted):
            sides = next(source, None)
            if sides is None:
                raise ConfigError(
                    f"scenes {setting} needs {wanted} pairs of {category} in {self.name!r}",
                    f"at most {len(found)}, as the grammar has no more",
                    f"lower {setting}",
                )
            found.append((len(self.scenes), sides[0][0].text(), sides[1][0].text()))
            self.scenes.extend(scene for _, scene in sides)
            self.captions.extend(((), ()))
        return found


def scene_eval_set(
    world: World, name: str, seed: int, image_size: int, counts: Counts
) -> tuple[EvalSet, tuple[SceneSpec, ...]]:
    """The set "val" or "heldout", and the scenes behind its pictures. See `scene_eval_sets`."""
    draft = _Draft(world, name, seed)
    draft.add_retrieval(counts.num_images)
    foils: list[Foil] = []
    for category in foil_categories(world):
        for index, first, second in draft.add_contrasts(
            "foils_per_category", category, _FOILS[category], counts.foils_per_category // 2
        ):
            foils.append(Foil(index, first, second, category))
            foils.append(Foil(index + 1, second, first, category))
    quads = [
        Quad(index, index + 1, first, second, category)
        for category, how in QUADS.items()
        for index, first, second in draft.add_contrasts(
            "num_quads", category, how, counts.num_quads // len(QUADS)
        )
    ]
    images = tuple(render(scene, image_size) for scene in draft.scenes)
    captions = tuple(draft.captions)
    return EvalSet(name, images, captions, tuple(foils), tuple(quads)), tuple(draft.scenes)


def scene_eval_sets(
    seed: int, image_size: int, world: World, counts: Counts = Counts()
) -> tuple[EvalSet, ...]:
    """The sets "val" (no held-out pair) and "heldout" (a held-out pair in each scene).

    Each is drawn from a stream of its own. The first num_images pictures are for retrieval: 2 to 4
    captions each, true of no other among them. The pictures of foils and quads follow and have no
    captions of their own. Foils: existence, number, colour, binding, size, relation, and fill where
    the world has several; quads: binding, relation, half each.

    Raises:
        ConfigError: a number out of range, an odd foils_per_category or num_quads, or more than the
        grammar offers.
    """
    check_request(seed, image_size)
    counts.validate()
    return tuple(
        scene_eval_set(world, name, seed, image_size, counts)[0] for name in ("val", "heldout")
    )
