"""Which data a run reads, and how pictures and captions become arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields

from nas_jax.data.text_ops import ACCENTS
from nas_jax.data.worlds import WORLDS
from nas_jax.storage.local_copy import Cache
from nas_jax.utils.errors import ConfigError


@dataclass(frozen=True)
class DataConfig:
    """Sources, cleaning, augmentation and batching.

    Defaults are ALBEF's where it has the setting.
    """

    # What is read. An entry is "scenes" (drawn from the seed), a folder made by
    # nas_jax.data.prepare, a path, glob or {000..012} of WebDataset *.tar or of ALBEF's *.json
    # lists, or tfds:NAME[:SPLIT]. All paths may be gs://BUCKET/...
    train: tuple[str, ...] = ("scenes",)
    # share of each entry in a batch, in any unit; () = every record equally often
    weights: tuple[float, ...] = ()
    shared_keys: bool = False  # the same key in two entries names the same picture; False: another
    image_root: str = ""  # *.json: the folder that relative image paths start from
    # one for each entry of data.train, "" where it needs none; () = image_root for all
    image_roots: tuple[str, ...] = ()
    val_image_roots: tuple[str, ...] = ()  # the same for data.val
    # gs://: local folder for copies of prepared and tfds: folders and indices of tars; "" = none
    cache: str = ""
    # tfds: the text feature with the captions, as a/b/c; "" = known or the only one
    tfds_captions: str = ""
    # share of the keys in `train`, scenes apart, kept out of training, as the validation split
    holdout: float = 0.0
    val: tuple[str, ...] = ()  # validation files instead of a holdout
    foils: tuple[str, ...] = ()  # jsonl files: {image, caption, foil, category}
    quads: tuple[str, ...] = ()  # jsonl files: {image_0, image_1, caption_0, caption_1}
    num_train: int = 20000  # scenes: number of training pictures
    # scenes: foils of each category in an evaluation set, and as many quads; they come in pairs
    scene_foils: int = 100
    # scenes: records 2k and 2k + 1 differ in one thing said of two, with keys k#0 and k#1
    scene_variations: bool = False
    scene_world: str = "small"  # scenes: what they show, a row of WORLDS (data/worlds.py)
    # Pictures.
    image_size: int = 256  # pixels a side
    # values that are black and white in pictures of more than 8 bits; () = as the file says
    image_range: tuple[float, ...] = ()
    # share of the area a random crop keeps; () = plain resize
    crop_scale: tuple[float, ...] = (0.2, 1.0)
    # mirror half of the pictures, as ALBEF does; wrong wherever captions say left and right
    flip: bool = False
    rand_augment_ops: int = 2  # RandAugment operations a picture; 0 = off
    rand_augment_magnitude: int = 7  # 0 to 10
    # Captions.
    # without punctuation, and lower-case unless the tokenizer tells capitals apart
    clean_captions: bool = True
    max_words: int = 30  # words of a cleaned caption that are kept
    # long captions: 1 to so many neighbouring sentences of one, drawn anew each time; 0 = all of it
    sentences: int = 0
    text_length: int = 25  # tokens a caption, [CLS] included
    # folder or Hugging Face name; "" = learn WordPiece from the training captions
    tokenizer: str = ""
    vocab_size: int = 2000  # entries at most, where the vocabulary is learned
    # there, of letters: keep | strip | auto: kept where more than 1 word in 100 has one
    accents: str = "auto"
    add_sep: bool = False  # end captions with [SEP]; ALBEF does not
    # lengths below text_length: batches of captions of like length, padded to these
    text_buckets: tuple[int, ...] = ()
    bucket_window: int = 16  # batches among which the captions are sorted by length
    # Batches.
    # Records of one source that stand next to each other in a batch, filled up with others; their
    # keys are equal up to the last "#" (data/siblings.py); 0 = records are shuffled one by one
    siblings: int = 0
    batch_size: int = 512  # pairs in the global batch
    workers: int = 0  # processes that prepare batches; 0 = threads of this process
    threads: int = 4  # threads that prepare batches, in each worker or in this process
    max_skipped_share: float = 0.05  # more unreadable images than this end the run
    # What the tokenizer makes of the training captions (data/text_check.py). Before its first
    # checkpoint a run stops above these shares.
    max_unknown_share: float = 0.2  # of the tokens: [UNK]
    # of the captions that differ as written: those with the tokens of another one
    max_equal_share: float = 0.2
    # of the captions: no word that NTA could replace; judged where the method has NTA
    max_wordless_share: float = 0.5

    def validate(self) -> None:
        """Raises ConfigError on values that are out of range or contradict each other."""
        self._check_entries()
        self._check_least()
        self._check_scenes()
        self._check_siblings()
        self._check_pictures()
        self._check_captions()
        self._check_shares()
        self._check_evaluation()

    def _check_entries(self) -> None:
        if not self.train:
            raise ConfigError(
                "an empty data.train", "files to read, or scenes", "list them in data.train"
            )
        if "://" in self.cache:
            raise ConfigError(
                f"data.cache={self.cache!r}", "a folder on a local disk", "name one with room"
            )
        if self.weights and (len(self.weights) != len(self.train) or min(self.weights) <= 0):
            raise ConfigError(
                f"data.weights={self.weights}",
                f"a number above 0 for each of the {len(self.train)} entries of data.train",
                "use () for every record equally often",
            )
        for name, entries in (("image_roots", self.train), ("val_image_roots", self.val)):
            roots = getattr(self, name)
            if roots and len(roots) != len(entries):
                raise ConfigError(
                    f"data.{name} with {len(roots)} folders",
                    f"one for each of the {len(entries)} entries, '' where it needs none",
                    "use () for data.image_root in all",
                )

    def _check_least(self) -> None:
        for name, least in (
            ("num_train", 1),
            ("scene_foils", 0),
            ("image_size", 16),
            ("text_length", 3),
            ("max_words", 1),
            ("sentences", 0),
            ("vocab_size", 64),
            ("batch_size", 1),
            ("workers", 0),
            ("threads", 1),
            ("rand_augment_ops", 0),
            ("bucket_window", 1),
        ):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"data.{name}={getattr(self, name)}", f"at least {least}", f"raise data.{name}"
                )

    def _check_scenes(self) -> None:
        if self.scene_foils % 2:
            raise ConfigError(
                f"data.scene_foils={self.scene_foils}",
                "an even number, as foils come in pairs",
                f"set data.scene_foils={self.scene_foils + 1}",
            )
        if self.scene_world not in WORLDS:
            raise ConfigError(
                f"data.scene_world={self.scene_world!r}",
                f"one of {', '.join(WORLDS)}",
                "small is the default",
            )

    def _check_siblings(self) -> None:
        mixed = self.weights or self.text_buckets
        if self.siblings and (self.siblings < 2 or self.batch_size % self.siblings or mixed):
            raise ConfigError(
                f"data.siblings={self.siblings} with data.batch_size={self.batch_size}",
                "0, or 2 or more that divide the batch, without data.weights and data.text_buckets",
                "change one of them",
            )
        if self.scene_variations and self.num_train % 2:
            raise ConfigError(
                f"data.num_train={self.num_train} with data.scene_variations",
                "an even number: scenes come in pairs",
                "use one more",
            )

    def _check_pictures(self) -> None:
        if not 0 <= self.rand_augment_magnitude <= 10:
            raise ConfigError(
                f"data.rand_augment_magnitude={self.rand_augment_magnitude}",
                "0 to 10",
                "ALBEF's level is 7",
            )
        scale = self.crop_scale
        if scale and not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
            raise ConfigError(
                f"data.crop_scale={scale}",
                "two shares with 0 < smallest <= largest <= 1",
                "use () for a plain resize",
            )
        check_image_range(self.image_range, "data.image_range")
        if self.flip and "scenes" in self.train:
            raise ConfigError(
                "data.flip=True with scenes in data.train",
                "no mirroring: captions say left and right",
                "set flip=False",
            )

    def _check_captions(self) -> None:
        if self.accents not in ACCENTS:
            raise ConfigError(
                f"data.accents={self.accents!r}", f"one of {', '.join(ACCENTS)}", "auto is usual"
            )
        buckets = (*self.text_buckets, self.text_length)
        if list(buckets) != sorted(set(buckets)) or buckets[0] < 3:
            raise ConfigError(
                f"data.text_buckets={self.text_buckets} with data.text_length={self.text_length}",
                "rising lengths from 3 to below data.text_length",
                "drop those that are not",
            )

    def _check_shares(self) -> None:
        if not 0 <= self.holdout < 1:
            raise ConfigError(
                f"data.holdout={self.holdout}", "a share of at least 0 and below 1", "0.1 is usual"
            )
        for field in fields(self):
            share = getattr(self, field.name)
            if field.name.endswith("_share") and not 0 <= share <= 1:
                raise ConfigError(
                    f"data.{field.name}={share}", "a share in [0, 1]", f"{field.default} is usual"
                )

    def _check_evaluation(self) -> None:
        if self.holdout and all(entry == "scenes" for entry in self.train):
            raise ConfigError(
                f"data.holdout={self.holdout} with scenes alone",
                "0: scenes have validation sets",
                "set data.holdout=0",
            )
        if self.holdout and self.val:
            raise ConfigError(
                "both data.holdout and data.val", "one way to validate", "set data.holdout=0"
            )
        if (self.foils or self.quads) and not (self.holdout or self.val):
            raise ConfigError(
                "data.foils or data.quads without data.holdout or data.val",
                "pictures that are not trained on",
                "set data.holdout=0.1",
            )


def check_image_range(ends: tuple[float, ...], setting: str) -> None:
    """Raises ConfigError unless `ends` is () or two numbers, the first below the second."""
    if ends and not (len(ends) == 2 and ends[0] < ends[1]):
        raise ConfigError(
            f"{setting}={tuple(ends)}",
            "the values that are black and white, the first below the second",
            "name both, as in (0,4095) or (-1000,400)",
        )


def cache_for(path: str, folder: str) -> Cache:
    """The cache in data.cache (`folder`) for a `path` in a bucket.

    Raises ConfigError where it is not set.
    """
    if not folder:
        raise ConfigError(
            f"{path} without data.cache",
            "a local folder for its copy, as ArrayRecord files cannot be read in a bucket",
            "set data.cache to a folder with room for it, or mount the bucket (docs/launch.md)",
        )
    return Cache(folder, "data.cache")
