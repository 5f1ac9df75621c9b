"""Which data a run reads, and how pictures and captions become arrays."""

from __future__ import annotations

from dataclasses import dataclass

from nas_jax.utils.errors import ConfigError

KINDS = ("scenes", "albef_json", "webdataset")


@dataclass(frozen=True)
class DataConfig:
    """Sources, cleaning, augmentation and batching. Defaults are ALBEF's where it has the setting."""

    # What is read.
    kind: str = "scenes"  # scenes (made from a seed) | albef_json ([{image, caption}]) | webdataset (tar shards)
    train: tuple[str, ...] = ()  # files or globs: json lists or tars
    image_root: str = ""  # albef_json: the folder that relative image paths start from
    holdout: float = 0.0  # share of the keys in `train` kept out of training, as the validation split
    val: tuple[str, ...] = ()  # validation files instead of a holdout
    foils: tuple[str, ...] = ()  # jsonl files: {image, caption, foil, category}
    quads: tuple[str, ...] = ()  # jsonl files: {image_0, image_1, caption_0, caption_1}
    num_train: int = 20000  # scenes: number of training pictures
    # Pictures.
    image_size: int = 256  # pixels a side
    crop_scale: tuple[float, ...] = (0.2, 1.0)  # share of the area a random crop keeps; () = plain resize
    flip: bool = False  # mirror half of the pictures, as ALBEF does; wrong wherever captions say left and right
    rand_augment_ops: int = 2  # RandAugment operations a picture; 0 = off
    rand_augment_magnitude: int = 7  # 0 to 10
    # Captions.
    clean_captions: bool = True  # lower-case, without punctuation
    max_words: int = 30  # words of a cleaned caption that are kept
    text_length: int = 25  # tokens a caption, [CLS] included
    tokenizer: str = ""  # folder or Hugging Face name; "" = learn WordPiece from the training captions
    vocab_size: int = 2000  # entries at most, where the vocabulary is learned
    add_sep: bool = False  # end captions with [SEP]; ALBEF does not
    # Batches.
    batch_size: int = 512  # pairs in the global batch
    workers: int = 0  # processes that prepare batches; 0 = threads of this process
    threads: int = 4  # threads that prepare batches, in each worker or in this process
    max_skipped_share: float = 0.05  # more unreadable images than this end the run

    def validate(self) -> None:
        """Raises ConfigError on values that are out of range or contradict each other."""
        if self.kind not in KINDS:
            raise ConfigError(f"data.kind={self.kind!r}", " | ".join(KINDS), "set data.kind to one of them")
        for name, least in (
            ("num_train", 1),
            ("image_size", 16),
            ("text_length", 3),
            ("max_words", 1),
            ("vocab_size", 64),
            ("batch_size", 1),
            ("workers", 0),
            ("threads", 1),
            ("rand_augment_ops", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"data.{name}={getattr(self, name)}", f"at least {least}", f"raise data.{name}")
        if not 0 <= self.rand_augment_magnitude <= 10:
            raise ConfigError(
                f"data.rand_augment_magnitude={self.rand_augment_magnitude}", "0 to 10", "ALBEF's level is 7"
            )
        scale = self.crop_scale
        if scale and not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
            raise ConfigError(
                f"data.crop_scale={scale}", "two shares with 0 < smallest <= largest <= 1", "use () for a plain resize"
            )
        if not 0 <= self.holdout < 1:
            raise ConfigError(f"data.holdout={self.holdout}", "a share of at least 0 and below 1", "0.1 is usual")
        if not 0 <= self.max_skipped_share <= 1:
            raise ConfigError(f"data.max_skipped_share={self.max_skipped_share}", "a share in [0, 1]", "0.05 is usual")
        if self.kind == "scenes":
            self._validate_scenes()
        else:
            self._validate_files()

    def _validate_scenes(self) -> None:
        for name in ("train", "val", "foils", "quads", "image_root", "holdout"):
            if getattr(self, name):
                raise ConfigError(
                    f"data.{name} with data.kind='scenes'",
                    "no files: scenes are drawn",
                    f"unset data.{name} or set kind",
                )
        if self.flip:
            raise ConfigError(
                "data.flip=True with data.kind='scenes'", "no mirroring: captions say left and right", "set flip=False"
            )

    def _validate_files(self) -> None:
        if not self.train:
            raise ConfigError(f"data.kind={self.kind!r} without data.train", "files to read", "list them in data.train")
        if self.holdout and self.val:
            raise ConfigError("both data.holdout and data.val", "one way to validate", "set data.holdout=0")
        if (self.foils or self.quads) and not (self.holdout or self.val):
            raise ConfigError(
                "data.foils or data.quads without data.holdout or data.val",
                "pictures that are not trained on",
                "set data.holdout=0.1",
            )
