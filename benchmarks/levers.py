"""What the compiler predicts of single layers on TPUs, in several forms. Needs libtpu, no TPU.

    python -m benchmarks.levers                   v5e:2x2, ViT-B/16, BERT base, 32 pairs a chip
    python -m benchmarks.levers --topology v5p:2x2x1
    python -m benchmarks.levers --only fusion --length 16
    python -m benchmarks.levers --plain sum_last,gelu           these kernels as their plain twins

Prints for each form the predicted time of forward and backward, its share of the chip's peak, the
temporary memory and the seconds that compiling took. Predicted: the sum of the compiler's cycle
estimates, without custom calls. The fusion layer is one of NAS: beside each picture five texts, of
which two attend to it, one to another picture, one to it with replaced patches and one without a
gradient to it; or one text, as MLM has it.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from nas_jax.kernels import plain_only
from nas_jax.kernels.image_tokens import (
    ImageTokens,
    PositionTerms,
    QueryGroup,
    Replacement,
    cls_apart,
)
from nas_jax.kernels.last_layer import TextRows
from nas_jax.models.bert import BertLayer
from nas_jax.models.sizes import ModelConfig, model_config
from nas_jax.models.vit import Block
from nas_jax.parallel.hlo import read_program
from nas_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from nas_jax.parallel.topology import topology_devices
from nas_jax.rehearsal.compiled import EFFORTS
from nas_jax.typing import PyTree

PATCHES, ROWS = 256, 5

# apply(params, inputs) -> arrays, shapes of the parameters, of the inputs
Given = tuple[Callable, PyTree, PyTree]


class Shapes:
    """Arrays without contents: split by rows, or whole on every chip."""

    def __init__(self, mesh: Mesh, pairs: int, length: int):
        self.mesh, self.pairs, self.length = mesh, pairs * mesh.size, length

    def rows(
        self, *shape: int, of: int = 1, dtype: jnp.dtype = jnp.bfloat16
    ) -> jax.ShapeDtypeStruct:
        """`of` rows a pair."""
        return jax.ShapeDtypeStruct(
            (self.pairs * of, *shape), dtype, sharding=batch_sharding(self.mesh)
        )

    def whole(self, *shape: int, dtype: jnp.dtype = jnp.float32) -> jax.ShapeDtypeStruct:
        """The same everywhere."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(self.mesh))


def image_block(shapes: Shapes, *streams: int) -> Given:
    """A block of the image encoder, its tokens in one array or several."""
    block, model = Block(_model(False)), _model(False)
    tokens = tuple(shapes.rows(length, model.dim) for length in streams)
    return block.apply, jax.eval_shape(block.init, jax.random.key(0), tokens), tokens


def fusion_layer(shapes: Shapes, apart: bool) -> Given:
    """A layer of the fusion encoder."""
    model = _model(apart)
    layer, shards = BertLayer(model), shapes.mesh.size

    def image(given: dict) -> tuple[ImageTokens, ...]:
        replacement = Replacement(given["where"], given["base"], given["scale"])
        groups = (
            QueryGroup(2),
            QueryGroup(1, False, given["index"], shards),
            QueryGroup(1, True, None, 1, replacement),
            QueryGroup(1, True),
        )
        positions = PositionTerms(given["row"], given["column"], given["bias"])
        tokens = (ImageTokens((given["tokens"],), groups, positions),)
        return cls_apart(tokens) if apart else tokens

    def call(function: Callable) -> Callable:
        def called(first: PyTree, given: dict) -> PyTree:
            rows = TextRows(given["mask"], given["seeds"])
            return function(first, given["texts"], model.text_layers, rows, image(given))

        return called

    given = {
        "texts": shapes.rows(shapes.length, model.dim, of=ROWS),
        "mask": shapes.rows(shapes.length, of=ROWS, dtype=jnp.bool_),
        "seeds": shapes.rows(shapes.length, of=ROWS, dtype=jnp.uint32),
        "tokens": shapes.rows(PATCHES + 1, model.dim),
        "index": shapes.rows(dtype=jnp.int32),
        "where": shapes.rows(PATCHES, dtype=jnp.bool_),
        "base": shapes.rows(model.dim),
        "scale": shapes.rows(PATCHES),
        "row": shapes.whole(math.isqrt(PATCHES), model.dim),
        "column": shapes.whole(math.isqrt(PATCHES), model.dim),
        "bias": shapes.whole(model.dim),
    }
    return call(layer.apply), jax.eval_shape(call(layer.init), jax.random.key(0), given), given


def masked_layer(shapes: Shapes) -> Given:
    """A layer of the fusion encoder with one text beside each picture, as MLM has it."""
    model = _model(True)
    layer = BertLayer(model)

    def call(function: Callable) -> Callable:
        def called(first: PyTree, given: dict) -> PyTree:
            image = cls_apart((ImageTokens((given["tokens"],)),))
            rows = TextRows(given["mask"], given["seeds"])
            return function(first, given["texts"], model.text_layers, rows, image)

        return called

    given = {
        "texts": shapes.rows(shapes.length, model.dim),
        "mask": shapes.rows(shapes.length, dtype=jnp.bool_),
        "seeds": shapes.rows(shapes.length, dtype=jnp.uint32),
        "tokens": shapes.rows(PATCHES + 1, model.dim),
    }
    return call(layer.apply), jax.eval_shape(call(layer.init), jax.random.key(0), given), given


def _model(cls_apart: bool) -> ModelConfig:
    return model_config("base", dtype="bfloat16", cls_apart=cls_apart)


class Form(NamedTuple):
    """A layer and how it is compiled."""

    build: Callable[[Shapes], Given]
    effort: str = "full"  # of the compiler
    plain: tuple[str, ...] = ()  # kernels that run their plain twins


FORMS = {
    "image: [CLS] and patches in one array": Form(lambda shapes: image_block(shapes, PATCHES + 1)),
    "image: [CLS] apart (model.cls_apart)": Form(lambda shapes: image_block(shapes, 1, PATCHES)),
    "image: patches alone, for comparison": Form(lambda shapes: image_block(shapes, PATCHES)),
    "image: one array, compiled quickly": Form(
        lambda shapes: image_block(shapes, PATCHES + 1), "quick"
    ),
    "fusion: [CLS] and patches in one array": Form(lambda shapes: fusion_layer(shapes, False)),
    "fusion: [CLS] apart (model.cls_apart)": Form(lambda shapes: fusion_layer(shapes, True)),
    "fusion, one text: keys and values of all tokens": Form(masked_layer, plain=("absorbs",)),
    "fusion, one text: the tokens as they are": Form(masked_layer),
}
WIDTH = max(map(len, FORMS))


def predict(topology: str, form: Form, pairs: int, length: int) -> dict[str, float]:
    """Compiles one layer, forward and backward, for `pairs` a chip with texts of `length`
    tokens.
    """
    devices, chip = topology_devices(topology)
    shapes = Shapes(make_mesh(devices=devices), pairs, length)
    apply, params, given = form.build(shapes)
    params = jax.tree.map(lambda leaf: shapes.whole(*leaf.shape, dtype=leaf.dtype), params)

    def loss(params: PyTree, floats: PyTree, rest: PyTree) -> jax.Array:
        inputs = jax.tree.map(
            lambda a, b: b if a is None else a, floats, rest, is_leaf=lambda leaf: leaf is None
        )
        return sum(
            jnp.sum(x.astype(jnp.float32) ** 2) for x in jax.tree.leaves(apply(params, inputs))
        )

    trained = jax.tree.map(
        lambda leaf: leaf if leaf.dtype == jnp.bfloat16 and len(leaf.shape) == 3 else None, given
    )
    rest = jax.tree.map(
        lambda leaf: None if leaf.dtype == jnp.bfloat16 and len(leaf.shape) == 3 else leaf, given
    )
    began = time.process_time()
    # Without names plain_only would take all kernels.
    plain = plain_only(*form.plain) if form.plain else contextlib.nullcontext()
    with jax.set_mesh(shapes.mesh), plain:
        lowered = jax.jit(jax.grad(loss, (0, 1))).lower(params, trained, rest)
        compiled = lowered.compile(compiler_options=EFFORTS[form.effort])
    seconds = read_program(compiled.as_text()).cycles / chip.clock_hz
    return {
        "ms": 1e3 * seconds,
        "share": compiled.cost_analysis()["flops"] / seconds / chip.peak_flops,
        "temporaries_MB": compiled.memory_analysis().temp_size_in_bytes / 1e6,
        "compile_s": time.process_time() - began,
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--pairs", type=int, default=32, help="a chip")
    parser.add_argument("--length", type=int, default=25, help="tokens of each text")
    parser.add_argument("--only", default="", help="forms whose name begins with this")
    parser.add_argument("--plain", default="", help="kernels that run their plain twins: NAME,...")
    options = parser.parse_args()
    plain = tuple(filter(None, options.plain.split(",")))
    print(
        f"{'form':<{WIDTH}} {'predicted ms':>12} {'of peak':>8} {'temporaries MB':>15} "
        f"{'compiled in s':>14}"
    )
    for name, form in FORMS.items():
        if not name.startswith(options.only):
            continue
        form = form._replace(plain=form.plain + plain)
        found = predict(options.topology, form, options.pairs, options.length)
        print(
            f"{name:<{WIDTH}} {found['ms']:>12.2f} {found['share']:>8.1%} "
            f"{found['temporaries_MB']:>15.0f} "
            f"{found['compile_s']:>14.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
