"""The model of this folder as a module of sentence-transformers (6 or newer).

    model = SentenceTransformer(folder, trust_remote_code=True)
    matcher = CrossEncoder(modules=[model[0]])  # the same weights

Alone, pictures and texts become ITC features; a picture and a text together become the logit of
ITM, which CrossEncoder turns into the probability of a match.
"""

from __future__ import annotations

from sentence_transformers.base.modality import infer_batch_modality, infer_modality
from sentence_transformers.base.modules import InputModule
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
from transformers.image_utils import load_image


class NasEncoder(InputModule):
    """Both towers and the matching head."""

    def __init__(self, model, tokenizer, processor):
        super().__init__()
        self.model, self.tokenizer, self.processor = model, tokenizer, processor

    @classmethod
    def load(
        cls,
        model_name_or_path,
        token=None,
        cache_folder=None,
        revision=None,
        local_files_only=False,
        trust_remote_code=False,
        model_kwargs=None,
        backend="torch",
        **kwargs,
    ):
        if backend != "torch":
            raise ValueError(f"backend={backend!r}: this module has PyTorch alone, backend='torch'")
        place = {
            "token": token,
            "cache_dir": cache_folder,
            "revision": revision,
            "local_files_only": local_files_only,
        }
        trusted = place | {"trust_remote_code": trust_remote_code}
        return cls(
            AutoModel.from_pretrained(model_name_or_path, **trusted, **(model_kwargs or {})),
            AutoTokenizer.from_pretrained(model_name_or_path, **trusted),
            AutoImageProcessor.from_pretrained(model_name_or_path, **place),
        )

    def save(self, output_path, *args, **kwargs):
        for part in (self.model, self.tokenizer, self.processor):
            part.save_pretrained(output_path)

    @property
    def modalities(self):
        return ["text", "image"]

    @property
    def max_seq_length(self):
        return self.tokenizer.model_max_length

    @max_seq_length.setter
    def max_seq_length(self, length):
        self.tokenizer.model_max_length = length

    def get_embedding_dimension(self):
        return self.model.config.projection_dim

    def preprocess(self, inputs, prompt=None, **kwargs):
        """Texts, pictures (PIL, arrays, paths, URLs), or pairs of both in either order."""
        pictures, texts = [], []
        if all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in inputs):
            for pair in inputs:
                kinds = [infer_modality(part, self.modalities) for part in pair]
                if sorted(kinds) != ["image", "text"]:
                    raise ValueError(
                        f"a pair of {' and '.join(kinds)}; expected a picture and a text"
                    )
                pictures.append(pair[kinds.index("image")])
                texts.append(pair[kinds.index("text")])
        elif infer_batch_modality(inputs, self.modalities) == "text":
            texts = inputs
        else:
            pictures = inputs
        features = {}
        if texts:
            texts = [(prompt or "") + text for text in texts]
            features |= self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        if pictures:
            pictures = [load_image(p) if isinstance(p, str) else p for p in pictures]
            features |= self.processor(images=pictures, return_tensors="pt")
        return features

    def forward(self, features, **kwargs):
        if "pixel_values" in features:
            pixels = features["pixel_values"].to(self.model.dtype)
            image_tokens, features["sentence_embedding"] = self.model.encode_image(pixels)
        if "input_ids" in features:
            words = features["input_ids"], features["attention_mask"]
            text_tokens, features["sentence_embedding"] = self.model.encode_text(*words)
        if "pixel_values" in features and "input_ids" in features:
            del features["sentence_embedding"]
            if self.model.neck is not None:
                image_tokens, _ = self.model.look_up(image_tokens)
            logits = self.model.match(image_tokens, text_tokens, features["attention_mask"])
            # softmax of two logits is the sigmoid of their difference
            features["scores"] = logits[:, 1:] - logits[:, :1]
        return features
