"""Captions to token ids: any Hugging Face fast tokenizer, or WordPiece learned from captions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from nas_jax.storage.files import make_folder, write_whole
from nas_jax.storage.paths import as_path, check_bucket
from nas_jax.typing import Vocabulary
from nas_jax.utils.errors import ConfigError, DataError, UserError

# at ids 0 to 4 of a learned vocabulary
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROLES = {  # role -> its names in the families of tokenizers
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>", "<cls>"),
    "sep": ("[SEP]", "</s>", "<sep>"),
    "mask": ("[MASK]", "<mask>"),
}
_SETTINGS = "text_tokenizer.json"
# what byte-level BPE and SentencePiece put before the first piece of a word
_WORD_START = ("\u0120", "\u2581")

# Words that carry no content of a picture. Words of place (left, on, behind), of number and of
# denial are not here: they are what a fine-grained caption is about.
FUNCTION_WORDS = frozenset(
    """
    a an the this that these those some any each every such
    i me my mine you your yours he him his she her hers it its we us our ours they them their theirs
    who whom whose which what where when why how there here
    am is are was were be been being do does did done doing has have had having
    can could may might must shall should will would
    and or but nor so yet if because since while as than then though although until unless whether
    of with for to from by at into about via per
    also too very just only even still ever again
    """.split()  # noqa: SIM905 - a table of words reads better as text
)


class TextTokenizer:
    """A `tokenizers.Tokenizer` of fixed shapes: [CLS], pieces, [SEP] if asked for, [PAD].

    Picklable. Attributes: vocab_size, pad_id, unk_id, cls_id, sep_id, mask_id, add_sep.
    """

    def __init__(
        self, tokenizer: Tokenizer, add_sep: bool = False, whole_words: frozenset[str] | None = None
    ):
        """whole_words: tokens that are words, not just beginnings; None = not known.

        Raises DataError where the vocabulary has no padding, unknown, first, last or mask token.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer, self.add_sep, self.whole_words = tokenizer, add_sep, whole_words
        # Ids may have gaps; an embedding needs a row for each up to the last.
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        ids = {role: self._special(role, names) for role, names in _ROLES.items()}
        self.pad_id, self.unk_id = ids["pad"], ids["unk"]
        self.cls_id, self.sep_id, self.mask_id = ids["cls"], ids["sep"], ids["mask"]

    def _special(self, role: str, names: tuple[str, ...]) -> int:
        for name in names:
            if (token_id := self._tokenizer.token_to_id(name)) is not None:
                return token_id
        raise DataError(
            f"a tokenizer without a {role} token",
            " or ".join(names),
            "use a BERT-like tokenizer, as MLM needs [MASK]",
        )

    def encode(self, texts: list[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """texts -> (token_ids_BxL int32, token_mask_BxL bool), cut to L = length."""
        token_ids_BxL = np.full((len(texts), length), self.pad_id, np.int32)
        token_mask_BxL = np.zeros((len(texts), length), bool)
        for row, text in enumerate(texts):
            pieces = self._pieces(text)[: length - 1 - self.add_sep]
            ids = [self.cls_id, *pieces, *([self.sep_id] if self.add_sep else [])]
            token_ids_BxL[row, : len(ids)] = ids
            token_mask_BxL[row, : len(ids)] = True
        return token_ids_BxL, token_mask_BxL

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where each piece stands in the text: characters [start, end).

        In the order of `encode`, which puts [CLS] before the first of them.
        """
        return self._tokenizer.encode(text, add_special_tokens=False).offsets

    def token_count(self, text: str) -> int:
        """Tokens of the whole text, [CLS] and [SEP] included, before `encode` cuts it."""
        return len(self._pieces(text)) + 1 + self.add_sep

    def _pieces(self, text: str) -> list[int]:
        # One at a time: encode_batch starts threads, which compete with those that prepare batches.
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def tokens(self) -> list[str]:
        """The vocabulary by id; "" where an id is not used."""
        names = [""] * self.vocab_size
        for name, token_id in self._tokenizer.get_vocab(with_added_tokens=True).items():
            names[token_id] = name
        return names

    def special_ids(self) -> frozenset[int]:
        """Ids that stand for no text."""
        added = {
            i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special
        }
        return frozenset(added | {self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id})

    def vocabulary(self) -> Vocabulary:
        """What each entry is.

        A piece continues a word if it begins with "##" (WordPiece) or, in a vocabulary that marks
        the beginnings of words, has no such mark. Content words have letters or digits and are no
        FUNCTION_WORDS; those that may be filled in are whole words and no lone ASCII letter.
        """
        names, special = self.tokens(), self.special_ids()
        marked = any(name.startswith(_WORD_START) for name in names)
        content_V, fillable_V, continuation_V = (np.zeros(len(names), bool) for _ in range(3))
        words = [""] * len(names)
        for token_id, name in enumerate(names):
            if token_id in special or not name:
                continue
            continuation_V[token_id] = (
                not name.startswith(_WORD_START) if marked else name.startswith("##")
            )
            word = name[1:] if marked else name
            content_V[token_id] = (
                not continuation_V[token_id]
                and word.isalnum()
                and word.lower() not in FUNCTION_WORDS
            )
            whole = self.whole_words is None or word in self.whole_words
            alone = len(word) > 1 or not word.isascii() or word.isdigit()
            fillable_V[token_id] = content_V[token_id] and whole and alone
            words[token_id] = "" if continuation_V[token_id] else word
        return Vocabulary(
            self.vocab_size,
            self.pad_id,
            self.cls_id,
            self.sep_id,
            self.mask_id,
            content_V,
            fillable_V,
            continuation_V,
            tuple(words),
        )

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.json, which any Hugging Face tool reads, and text_tokenizer.json;
        `load_tokenizer` reads both back."""
        folder = as_path(folder)
        make_folder(folder)
        # Whole or not at all: a run that is killed here must not leave half a file to resume from.
        words = None if self.whole_words is None else sorted(self.whole_words)
        settings = {"add_sep": self.add_sep, "vocab_size": self.vocab_size, "whole_words": words}
        for name, text in (
            ("tokenizer.json", self._tokenizer.to_str(pretty=True)),
            (_SETTINGS, json.dumps(settings, ensure_ascii=False)),
        ):
            write_whole(folder / name, text)

    def __getstate__(self) -> dict:
        return {
            "tokenizer": self._tokenizer.to_str(),
            "add_sep": self.add_sep,
            "whole_words": self.whole_words,
        }

    def __setstate__(self, state: dict) -> None:
        self.__init__(
            Tokenizer.from_str(state["tokenizer"]), state["add_sep"], state["whole_words"]
        )


def load_tokenizer(spec: str, add_sep: bool | None = None) -> TextTokenizer:
    """Opens a tokenizer.

    Args:
      spec: a folder with tokenizer.json or vocab.txt (one WordPiece a line), or a name on the
      Hugging Face hub.
      add_sep: whether captions end with [SEP]; None = as the folder says, or not.

    Raises:
      DataError: the folder has neither file, a file is damaged, or a special token is missing.
      UserError: the hub does not give the tokenizer.
    """
    folder = as_path(spec)
    check_bucket(folder, DataError)
    if not folder.is_dir():
        if spec.startswith((".", "/", "~")) or spec.count("/") > 1 or folder.exists():
            raise DataError(
                f"tokenizer {spec!r}, which is no folder",
                "tokenizer.json or vocab.txt in it",
                "check data.tokenizer",
            )
        return TextTokenizer(_download(spec), bool(add_sep))
    whole, words = folder / "tokenizer.json", folder / "vocab.txt"
    if not whole.is_file() and not words.is_file():
        raise DataError(
            f"tokenizer folder {spec!r} without files",
            "tokenizer.json or vocab.txt",
            "copy one there, or name another",
        )
    settings: dict = {}
    try:
        if (folder / _SETTINGS).is_file():
            settings = json.loads((folder / _SETTINGS).read_bytes())
        words = None if settings.get("whole_words") is None else frozenset(settings["whole_words"])
        tokenizer = (
            Tokenizer.from_buffer(whole.read_bytes())
            if whole.is_file()
            else _from_word_list(folder)
        )
    except Exception as error:  # the library raises bare Exception on a damaged file
        raise DataError(
            f"tokenizer in {spec!r}: {_one_line(error)}", "undamaged files", "copy them again"
        ) from error
    return TextTokenizer(
        tokenizer, bool(settings.get("add_sep") if add_sep is None else add_sep), words
    )


def _from_word_list(folder: Path) -> Tokenizer:
    words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    settings = folder / "tokenizer_config.json"
    lowercase = (
        json.loads(settings.read_text(encoding="utf-8")).get("do_lower_case", True)
        if settings.is_file()
        else True
    )
    return _wordpiece({word.rstrip(): index for index, word in enumerate(words)}, lowercase)


def _download(name: str) -> Tokenizer:
    try:
        return Tokenizer.from_pretrained(name)  # imports huggingface_hub, which need not be there
    except Exception as error:
        # No such name, no network, no library, a file of another kind: all end the same way.
        raise UserError(
            f"tokenizer {name!r}, which the Hugging Face hub did not give ({_one_line(error)})",
            "the name of a fast tokenizer, and network access",
            "download it, and set data.tokenizer to its folder",
        ) from error


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200].rstrip('.') if lines else ''}"


def _wordpiece(vocabulary: dict[str, int], lowercase: bool = True) -> Tokenizer:
    """BERT's normaliser, pre-tokeniser and greedy longest match (Devlin et al.

    2019, appendix A.2).
    """
    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([token for token in SPECIAL_TOKENS if token in vocabulary])
    return tokenizer


def learn_wordpiece(
    captions: Iterable[str], vocab_size: int, add_sep: bool = False
) -> TextTokenizer:
    """Learns WordPiece; SPECIAL_TOKENS get ids 0 to 4. Equal captions give equal vocabularies.

    Raises:
      ConfigError: `vocab_size` does not hold the special tokens and the alphabet.
      DataError: no caption has a word.
    """
    counts: dict[str, int] = {}
    pipeline = _wordpiece({"[UNK]": 0})
    for caption in captions:
        for word, _ in pipeline.pre_tokenizer.pre_tokenize_str(
            pipeline.normalizer.normalize_str(caption)
        ):
            counts[word] = counts.get(word, 0) + 1
    if not counts:
        raise DataError(
            "no words in the training captions",
            "captions to learn a vocabulary from",
            "check data.train",
        )
    inner = sorted({f"##{letter}" for word in counts for letter in word[1:]})
    alphabet = sorted({letter for word in counts for letter in word})
    least = len(SPECIAL_TOKENS) + len(inner) + len(alphabet)
    if vocab_size < least:
        raise ConfigError(
            f"data.vocab_size={vocab_size}",
            f"at least {least} (the alphabet)",
            "raise data.vocab_size",
        )
    # The library numbers inner letters in the order of a hash table and breaks ties between merges
    # by number, so its result changes from run to run. Passed as special tokens they are numbered
    # first, in the order given here.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *inner],
        initial_alphabet=alphabet,
        min_frequency=1,
        show_progress=False,
    )
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    learner.train_from_iterator(_lines(counts), trainer=trainer)
    vocabulary = learner.get_vocab()
    return TextTokenizer(
        _wordpiece(vocabulary), add_sep, frozenset(vocabulary.keys() & counts.keys())
    )


def _lines(counts: dict[str, int], words_a_line: int = 256) -> Iterable[str]:
    """Each word as often as counted, in few long lines."""
    for word, count in sorted(counts.items()):
        for start in range(0, count, words_a_line):
            yield " ".join([word] * min(words_a_line, count - start))
