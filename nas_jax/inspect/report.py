"""Pictures of a trained model on an evaluation set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nas_jax.data.eval_sets import EvalSet
from nas_jax.data.tokenizer import TextTokenizer
from nas_jax.inspect.nva import NvaPictures, draw_nva
from nas_jax.methods.draws import Draws
from nas_jax.methods.method import Method, MethodState
from nas_jax.models.vit import patchify
from nas_jax.storage.files import through_disk
from nas_jax.train.workdir import writing
from nas_jax.typing import Batch, Params

SHOWN = 4  # images drawn
READ = 128  # images whose patches show what a code looks like


def mean_patches(
    images_BxHxWx3: np.ndarray, code_ids_BxN: np.ndarray, patch_size: int
) -> Mapping[int, np.ndarray]:
    """Code -> uint8 (p, p, 3): the mean of the patches that chose it."""
    patches_MxP = np.asarray(patchify(images_BxHxWx3, patch_size)).reshape(code_ids_BxN.size, -1)
    ids_M = code_ids_BxN.reshape(-1)
    return {
        int(code): patches_MxP[ids_M == code]
        .mean(0)
        .round()
        .astype(np.uint8)
        .reshape(patch_size, patch_size, 3)
        for code in np.unique(ids_M)
    }


def draw_nva_examples(
    path: Path,
    method: Method,
    params: Params,
    state: MethodState,
    eval_set: EvalSet,
    tokenizer: TextTokenizer,
    text_length: int,
) -> bool:
    """Draws the method's picture negatives of a few images with captions: which patches are
    replaced, and what by.

    False, and nothing is drawn, where the method makes none or no image has a caption.
    """
    captioned = [index for index, captions in enumerate(eval_set.captions) if captions][:READ]
    if not captioned:
        return False
    captions = [eval_set.captions[index][0] for index in captioned]
    images_BxHxWx3 = np.stack([eval_set.images[index] for index in captioned])
    token_ids_BxL, token_mask_BxL = tokenizer.encode(captions, text_length)
    batch = {
        "image_BxHxWx3": jnp.asarray(images_BxHxWx3),
        "token_ids_BxL": jnp.asarray(token_ids_BxL),
        "token_mask_BxL": jnp.asarray(token_mask_BxL),
    }

    @jax.jit
    def explain(params: Params, state: MethodState, batch: Batch) -> Any | None:
        return method.explain_negatives(params, state, batch, Draws(jax.random.key(0)))

    negative = jax.device_get(explain(params, state, batch))
    if negative is None:
        return False
    # neighbours are often alike
    shown = np.arange(min(SHOWN, len(captions))) * len(captions) // SHOWN
    patch_size = method.network.config.patch_size
    pictures = NvaPictures(
        images_BxHxWx3[shown],
        [captions[index] for index in shown],
        negative.object_patch_B[shown],
        negative.replaced_BxN[shown],
        negative.similarity_BxN[shown],
        code_patches=mean_patches(images_BxHxWx3, negative.code_ids_BxN, patch_size),
        new_code_B=negative.code_B[shown],
    )
    with writing(path), through_disk(path) as file:
        draw_nva(file, pictures)
    return True
