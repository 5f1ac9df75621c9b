"""What the compiler predicts of one block of the image encoder on TPUs, in several forms. Needs libtpu, no TPU.

    python -m benchmarks.levers                       v5e:2x2, ViT-B/16, 32 pictures a chip, two to three minutes
    python -m benchmarks.levers --topology v5p:2x2x1

Prints for each form the predicted time of forward and backward, its share of the chip's peak, the temporary memory and
the seconds that compiling took. Predicted: the sum of the compiler's cycle estimates, without custom calls.
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp

from nas_jax.models.sizes import model_config
from nas_jax.models.vit import Block
from nas_jax.parallel.hlo import read_program
from nas_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from nas_jax.parallel.topology import topology_devices
from nas_jax.rehearsal import EFFORTS

FORMS = {  # tokens of each stream, effort of the compiler
    "[CLS] and patches in one array": ((257,), "full"),
    "[CLS] apart (model.cls_apart)": ((1, 256), "full"),
    "patches alone, for comparison": ((256,), "full"),
    "one array, compiled quickly": ((257,), "quick"),
}


def predict(topology: str, streams: tuple[int, ...], effort: str, pictures: int) -> dict[str, float]:
    """Compiles one block for `pictures` a chip."""
    devices, chip = topology_devices(topology)
    mesh = make_mesh(devices=devices)
    model = model_config("base", dtype="bfloat16")
    block = Block(model)

    def loss(params, tokens):
        return sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in block.apply(params, tokens))

    def shaped(shape, sharding, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    tokens = tuple(shaped((pictures * mesh.size, length, model.dim), batch_sharding(mesh)) for length in streams)
    params = jax.eval_shape(block.init, jax.random.key(0), tokens)
    params = jax.tree.map(lambda leaf: shaped(leaf.shape, replicated(mesh), leaf.dtype), params)
    began = time.process_time()
    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(loss, (0, 1))).lower(params, tokens)
        compiled = lowered.compile(compiler_options=EFFORTS[effort])
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
    parser.add_argument("--pictures", type=int, default=32, help="a chip")
    options = parser.parse_args()
    print(f"{'form':<34} {'predicted ms':>12} {'of peak':>8} {'temporaries MB':>15} {'compiled in s':>14}")
    for form, (streams, effort) in FORMS.items():
        found = predict(options.topology, streams, effort, options.pictures)
        print(
            f"{form:<34} {found['ms']:>12.2f} {found['share']:>8.1%} {found['temporaries_MB']:>15.0f} "
            f"{found['compile_s']:>14.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
