"""transformers' pipelines for NasModel: captions of a picture by ITC, and by ITM.

    pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)
    pipeline("image-text-matching", model=folder, trust_remote_code=True)

Both are called with a picture and `candidate_labels`, and give each label with its score, best
first.
"""

from transformers import ZeroShotImageClassificationPipeline


class NasZeroShotPipeline(ZeroShotImageClassificationPipeline):
    """Scores of ITC: softmax of `logits_per_image` over the labels, as for CLIP."""

    def check_model_type(self, supported_models):
        """The base class knows CLIP's kin only."""

    def preprocess(self, image, candidate_labels=None, **options):
        """Texts are cut as in training."""
        options["tokenizer_kwargs"] = {"truncation": True} | options.get("tokenizer_kwargs", {})
        return super().preprocess(image, candidate_labels, **options)


class NasMatchingPipeline(NasZeroShotPipeline):
    """Scores of ITM: the probability that a label matches the picture, each by itself."""

    def preprocess(self, image, candidate_labels=None, **options):
        """Labels are whole captions: without a template."""
        options.setdefault("hypothesis_template", "{}")
        return super().preprocess(image, candidate_labels, **options)

    def _forward(self, model_inputs):
        labels, texts = model_inputs.pop("candidate_labels"), model_inputs.pop("text_inputs")[0]
        texts = texts if hasattr(texts, "keys") else texts[0]  # in batches there is one list more
        pixels = model_inputs["pixel_values"]
        _, scores = self.model.score_texts(pixels, texts["input_ids"], texts["attention_mask"])
        return {"candidate_labels": labels, "scores": scores}

    def postprocess(self, model_outputs):
        scores = model_outputs["scores"][0].tolist()
        found = [
            {"score": score, "label": label}
            for score, label in zip(scores, model_outputs["candidate_labels"], strict=True)
        ]
        return sorted(found, key=lambda row: -row["score"])
