"""ALBEF (Li et al. 2021) and NAS (Wang et al. 2025) in PyTorch, for weights from nas_jax.

    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    output = model(pixel_values=..., input_ids=..., attention_mask=...)

A picture tower (ViT), a text tower (the first layers of a BERT) and a fusion encoder (its last
layers, which attend to the picture). ITC compares the features of the towers; ITM scores a pair in
the fusion encoder, MLM predicts masked words there. NAS passes the picture through a visual
dictionary before ITM. There is no dropout.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_nas import NasConfig

IMAGE_NORM_EPS, TEXT_NORM_EPS, NECK_NORM_EPS = 1e-6, 1e-12, 1e-5


@dataclass
class NasOutput(ModelOutput):
    """What `NasModel.forward` gives; B pairs, N patches, L words, D wide."""

    image_embeds: torch.Tensor | None = None  # (B, E) unit ITC features
    text_embeds: torch.Tensor | None = None  # (B, E)
    # (B, B) all pictures against all texts, divided by the temperature
    logits_per_image: torch.Tensor | None = None
    itm_logits: torch.Tensor | None = None  # (B, 2) of picture b with text b; class 1 = match
    mlm_logits: torch.Tensor | None = None  # (B, L, V) of every position of text b beside picture b
    image_tokens: torch.Tensor | None = None  # (B, N + 1, D), [CLS] first
    text_tokens: torch.Tensor | None = None  # (B, L, D), [CLS] first
    # (B, N + 1, D), what ITM reads of the picture; None without NAS
    dictionary_tokens: torch.Tensor | None = None
    code_ids: torch.Tensor | None = None  # (B, N) the dictionary's code of each patch


class SelfAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, tokens, key_mask=None):
        query, key, value = split_heads(self.qkv(tokens), 3, self.heads)
        return self.out(attend(query, key, value, key_mask))


class CrossAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key_value, self.out = (
            nn.Linear(dim, dim),
            nn.Linear(dim, 2 * dim),
            nn.Linear(dim, dim),
        )

    def forward(self, tokens, image_tokens):
        (query,) = split_heads(self.query(tokens), 1, self.heads)
        key, value = split_heads(self.key_value(image_tokens), 2, self.heads)
        return self.out(attend(query, key, value))


def split_heads(projected, parts, heads):
    """(B, T, parts * D) -> `parts` of (B, H, T, D / H)."""
    batch, length, _ = projected.shape
    return projected.view(batch, length, parts, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def attend(query, key, value, key_mask=None):
    """Attention (B, T, D) over the heads; key_mask (B, T): True on real keys."""
    mask = None if key_mask is None else key_mask[:, None, None, :].bool()
    return (
        F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
    )


class Block(nn.Module):
    """Pre-norm layer of the picture tower."""

    def __init__(self, config):
        super().__init__()
        dim, hidden = config.hidden_size, config.mlp_ratio * config.hidden_size
        self.attention_norm = nn.LayerNorm(dim, eps=IMAGE_NORM_EPS)
        self.attention = SelfAttention(dim, config.image_attention_heads)
        self.mlp_norm = nn.LayerNorm(dim, eps=IMAGE_NORM_EPS)
        self.mlp_in, self.mlp_out = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, tokens):
        tokens = tokens + self.attention(self.attention_norm(tokens))
        return tokens + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(tokens))))


class ImageEncoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        dim, patches = config.hidden_size, (config.image_size // config.patch_size) ** 2
        self.patch_embed = nn.Conv2d(3, dim, config.patch_size, config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position_embedding = nn.Parameter(torch.zeros(1, patches + 1, dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.image_layers))
        self.norm = nn.LayerNorm(dim, eps=IMAGE_NORM_EPS)

    def forward(self, pixel_values):
        patches = self.patch_embed(pixel_values).flatten(2).transpose(1, 2)
        tokens = (
            torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
            + self.position_embedding
        )
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class BertLayer(nn.Module):
    """Post-norm layer of the text tower, or with cross-attention of the fusion encoder."""

    def __init__(self, config, cross):
        super().__init__()
        dim, hidden = config.hidden_size, config.mlp_ratio * config.hidden_size
        self.attention = SelfAttention(dim, config.num_attention_heads)
        self.attention_norm = nn.LayerNorm(dim, eps=TEXT_NORM_EPS)
        self.cross_attention = CrossAttention(dim, config.num_attention_heads) if cross else None
        self.cross_attention_norm = nn.LayerNorm(dim, eps=TEXT_NORM_EPS) if cross else None
        self.mlp_in, self.mlp_out = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.mlp_norm = nn.LayerNorm(dim, eps=TEXT_NORM_EPS)

    def forward(self, tokens, mask, image_tokens=None):
        tokens = self.attention_norm(tokens + self.attention(tokens, mask))
        if self.cross_attention is not None:
            tokens = self.cross_attention_norm(tokens + self.cross_attention(tokens, image_tokens))
        return self.mlp_norm(tokens + self.mlp_out(F.gelu(self.mlp_in(tokens))))


class TextEncoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        dim = config.hidden_size
        self.word_embedding = nn.Embedding(config.vocab_size, dim)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, dim)
        self.type_embedding = nn.Embedding(2, dim)
        self.embedding_norm = nn.LayerNorm(dim, eps=TEXT_NORM_EPS)
        self.layers = nn.ModuleList(
            BertLayer(config, cross=False) for _ in range(config.text_layers)
        )

    def forward(self, input_ids, mask):
        length, places = input_ids.shape[1], len(self.position_embedding.weight)
        if length > places:
            raise ValueError(
                f"texts of {length} tokens for a model of {places} positions: call the tokenizer "
                "with truncation=True, which cuts as in training"
            )
        positions = self.position_embedding.weight[: input_ids.shape[1]]
        tokens = self.embedding_norm(
            self.word_embedding(input_ids) + positions + self.type_embedding.weight[0]
        )
        for layer in self.layers:
            tokens = layer(tokens, mask)
        return tokens


class FusionEncoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList(
            BertLayer(config, cross=True) for _ in range(config.fusion_layers)
        )

    def forward(self, text_tokens, mask, image_tokens):
        for layer in self.layers:
            text_tokens = layer(text_tokens, mask, image_tokens)
        return text_tokens


class MlmHead(nn.Module):
    """BERT's prediction head; its decoder is the table of word embeddings."""

    def __init__(self, config):
        super().__init__()
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=TEXT_NORM_EPS)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def resize(self, vocab_size):
        """A bias of so many words: those of the first ones kept, 0 for new ones."""
        bias = self.bias.new_zeros(vocab_size)
        kept = min(vocab_size, len(self.bias))
        bias[:kept] = self.bias.data[:kept]
        self.bias = nn.Parameter(bias, requires_grad=self.bias.requires_grad)

    def forward(self, tokens, word_table):
        return F.linear(self.norm(F.gelu(self.transform(tokens))), word_table, self.bias)


class Dictionary(nn.Module):
    """The codes, and the statistics that they follow in training; no gradients."""

    def __init__(self, config):
        super().__init__()
        codes, dim = config.dictionary_codes, config.hidden_size
        self.register_buffer("codes", torch.zeros(codes, dim))
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, dim))
        self.register_buffer("last_use", torch.zeros(codes, dtype=torch.int32))
        self.register_buffer("step", torch.zeros((), dtype=torch.int32))

    def distances(self, features):
        """Squared distances (B, N, K) of features to codes, in float32."""
        x, e = features.float(), self.codes.float()
        return x.square().sum(-1, keepdim=True) + e.square().sum(-1) - 2 * F.linear(x, e)


class DictionaryNeck(nn.Module):
    """What stands around the dictionary."""

    def __init__(self, config):
        super().__init__()
        dim = config.hidden_size
        self.linear, self.linear_norm = nn.Linear(dim, dim), nn.LayerNorm(dim, eps=NECK_NORM_EPS)
        self.align_linear, self.gate = nn.Linear(dim, dim), nn.Linear(2 * dim, 2)
        self.gate_norm = nn.LayerNorm(2, eps=NECK_NORM_EPS) if config.literal_gate else None
        self.norm = nn.LayerNorm(dim, eps=NECK_NORM_EPS)

    def features(self, patches):
        """What is compared with the codes."""
        return F.relu(self.linear_norm(self.linear(patches)))

    def forward(self, features, quantized):
        """Dictionary tokens (B, N, D): a gated mix of codes and features, with its place."""
        aligned = self.align_linear(quantized)
        gate = self.gate(torch.cat([aligned, features], dim=-1))
        if self.gate_norm is not None:
            gate = F.relu(self.gate_norm(gate))
        gate = gate.softmax(-1)
        mixed = gate[..., :1] * aligned + gate[..., 1:] * features
        place = sine_position_code(math.isqrt(mixed.shape[1]), mixed.shape[2])
        return self.norm(mixed + place.to(mixed))


@functools.lru_cache(maxsize=8)
def sine_position_code(side, dim):
    """Fixed 2-D sine code (side * side, dim), y half, then x half (DETR, Carion et al. 2020)."""
    # On the CPU and in float64 for all devices alike; no buffer, because loaders leave buffers
    # without weights empty.
    half, kind = dim // 2, {"dtype": torch.float64, "device": "cpu"}
    coordinate = (torch.arange(side, **kind) + 1) / (side + 1e-6) * 2 * math.pi
    number = torch.arange(half, **kind)
    angle = coordinate[:, None] / 10000.0 ** (2 * torch.floor(number / 2) / half)
    code = torch.where(number % 2 == 0, angle.sin(), angle.cos())
    rows = code[:, None].expand(side, side, half)
    columns = code[None].expand(side, side, half)
    return torch.cat([rows, columns], dim=-1).reshape(side * side, dim).float()


class NasModel(PreTrainedModel):
    """Both towers, the fusion encoder, the heads of ITC, ITM and MLM, and NAS's dictionary where
    the config has one.
    """

    config_class = NasConfig
    base_model_prefix = "nas"
    main_input_name = "pixel_values"
    _no_split_modules = ["Block", "BertLayer"]

    def __init__(self, config):
        super().__init__(config)
        dim = config.hidden_size
        self.image_encoder, self.text_encoder = ImageEncoder(config), TextEncoder(config)
        self.fusion_encoder, self.mlm_head = FusionEncoder(config), MlmHead(config)
        self.image_proj, self.text_proj = (
            nn.Linear(dim, config.projection_dim),
            nn.Linear(dim, config.projection_dim),
        )
        self.itm_head, self.temp = nn.Linear(dim, 2), nn.Parameter(torch.tensor(0.07))
        self.generator_head = MlmHead(config) if config.text_generator else None
        self.neck = DictionaryNeck(config) if config.dictionary_codes else None
        self.dictionary = Dictionary(config) if config.dictionary_codes else None
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)

    def get_input_embeddings(self):
        return self.text_encoder.word_embedding

    def set_input_embeddings(self, value):
        self.text_encoder.word_embedding = value

    def resize_token_embeddings(self, *args, **kwargs):
        """As of any model; the biases of the heads that predict words follow, with 0 for new ones.

        Their decoder is the table of words.
        """
        table = super().resize_token_embeddings(*args, **kwargs)
        for head in (self.mlm_head, self.generator_head):
            if head is not None:
                head.resize(len(table.weight))
        return table

    def encode_image(self, pixel_values):
        """Normalised pictures (B, 3, S, S) -> tokens (B, N + 1, D) and unit ITC features (B, E)."""
        tokens = self.image_encoder(pixel_values)
        return tokens, F.normalize(self.image_proj(tokens[:, 0]), dim=-1)

    def encode_text(self, input_ids, attention_mask=None):
        """Token ids (B, L) -> text tokens (B, L, D) and unit ITC features (B, E)."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        tokens = self.text_encoder(input_ids, mask)
        return tokens, F.normalize(self.text_proj(tokens[:, 0]), dim=-1)

    def get_image_features(self, pixel_values):
        """Unit ITC features (B, E) of pictures."""
        return self.encode_image(pixel_values)[1]

    def get_text_features(self, input_ids, attention_mask=None):
        """Unit ITC features (B, E) of texts."""
        return self.encode_text(input_ids, attention_mask)[1]

    def look_up(self, image_tokens, code_ids=None):
        """Image tokens -> dictionary tokens (B, N + 1, D), [CLS] as it was, and codes (B, N).

        code_ids: take these codes instead of the nearest ones.
        """
        if self.neck is None:
            raise ValueError("this model was trained without a visual dictionary")
        features = self.neck.features(image_tokens[:, 1:])
        if code_ids is None:
            code_ids = self.dictionary.distances(features).argmin(-1)
        # straight-through gradient
        quantized = features + (self.dictionary.codes[code_ids] - features).detach()
        return torch.cat([image_tokens[:, :1], self.neck(features, quantized)], dim=1), code_ids

    def fuse(self, image_tokens, text_tokens, attention_mask=None):
        """Text tokens (B, L, D) that have read the image tokens; text b reads picture b."""
        mask = (
            text_tokens.new_ones(text_tokens.shape[:2])
            if attention_mask is None
            else attention_mask
        )
        return self.fusion_encoder(text_tokens, mask, image_tokens)

    def match(self, image_tokens, text_tokens, attention_mask=None):
        """ITM logits (B, 2), class 1 = match.

        NAS expects the tokens of `look_up`, ALBEF those of `encode_image`.
        """
        return self.itm_head(self.fuse(image_tokens, text_tokens, attention_mask)[:, 0])

    def score_texts(self, pixel_values, input_ids, attention_mask=None):
        """P pictures, C texts -> ITC cosines (P, C) and ITM match probabilities (P, C)."""
        image_tokens, image_embeds = self.encode_image(pixel_values)
        text_tokens, text_embeds = self.encode_text(input_ids, attention_mask)
        seen = image_tokens if self.neck is None else self.look_up(image_tokens)[0]
        texts = len(text_tokens)
        probabilities = [
            self.match(tokens.expand(texts, -1, -1), text_tokens, attention_mask).softmax(-1)[:, 1]
            for tokens in seen
        ]
        return image_embeds @ text_embeds.T, torch.stack(probabilities)

    def predict_words(self, fused_tokens):
        """MLM logits (..., V) of fused tokens."""
        return self.mlm_head(fused_tokens, self.text_encoder.word_embedding.weight)

    def generate_words(self, text_tokens):
        """Logits (..., V) of NTA's language model, which reads the text alone."""
        if self.generator_head is None:
            raise ValueError("this model was trained without NTA's language model")
        return self.generator_head(text_tokens, self.text_encoder.word_embedding.weight)

    def forward(
        self,
        pixel_values=None,
        input_ids=None,
        attention_mask=None,
        code_ids=None,
        return_dict=None,
    ):
        """Pictures, texts or pairs of both; gives what can be computed from them."""
        output = NasOutput()
        if pixel_values is not None:
            output["image_tokens"], output["image_embeds"] = self.encode_image(pixel_values)
            if self.neck is not None:
                output["dictionary_tokens"], output["code_ids"] = self.look_up(
                    output.image_tokens, code_ids
                )
        if input_ids is not None:
            output["text_tokens"], output["text_embeds"] = self.encode_text(
                input_ids, attention_mask
            )
        if pixel_values is not None and input_ids is not None:
            output["logits_per_image"] = output.image_embeds @ output.text_embeds.T / self.temp
            if len(pixel_values) == len(input_ids):
                self._score_pairs(output, attention_mask)
        return output.to_tuple() if return_dict is False else output

    def _score_pairs(self, output, attention_mask):
        seen = output.image_tokens if output.dictionary_tokens is None else output.dictionary_tokens
        fused = self.fuse(seen, output.text_tokens, attention_mask)
        output["itm_logits"] = self.itm_head(fused[:, 0])
        if seen is not output.image_tokens and not self.config.mlm_on_dictionary:
            fused = self.fuse(output.image_tokens, output.text_tokens, attention_mask)
        output["mlm_logits"] = self.predict_words(fused)
