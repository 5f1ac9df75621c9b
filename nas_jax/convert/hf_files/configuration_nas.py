"""Configuration of NasModel (modeling_nas.py), as nas_jax exports it."""

from transformers import PretrainedConfig


class NasConfig(PretrainedConfig):
    """Sizes and switches of an exported model; the defaults are ALBEF's base size."""

    model_type = "nas_jax"

    def __init__(
        self,
        method="nas",  # what it was trained with: albef or nas
        hidden_size=768,
        num_attention_heads=12,  # of the text and fusion layers
        image_attention_heads=12,
        image_layers=12,
        text_layers=6,  # read the text alone
        fusion_layers=6,  # read the text and the image tokens
        mlp_ratio=4,
        image_size=256,
        patch_size=16,
        vocab_size=30522,
        max_position_embeddings=512,
        projection_dim=256,  # width of the ITC features
        dictionary_codes=0,  # entries of the visual dictionary; 0 = none
        literal_gate=False,  # the NAS authors' two-valued gate
        text_generator=False,  # has the text-only language model of NTA
        # masked words are predicted from dictionary tokens instead of image tokens
        mlm_on_dictionary=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.method = method
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.image_attention_heads = image_attention_heads
        self.image_layers = image_layers
        self.text_layers = text_layers
        self.fusion_layers = fusion_layers
        self.mlp_ratio = mlp_ratio
        self.image_size = image_size
        self.patch_size = patch_size
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.projection_dim = projection_dim
        self.dictionary_codes = dictionary_codes
        self.literal_gate = literal_gate
        self.text_generator = text_generator
        self.mlm_on_dictionary = mlm_on_dictionary
