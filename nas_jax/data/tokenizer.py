"""Captions to token ids: any Hugging Face fast tokenizer, or WordPiece learned from captions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import logging
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from nas_jax.data.text_ops import FUNCTION_WORDS, has_marks, is_unspaced, is_word
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
MAX_LETTERS = 100  # of a word; WordPiece makes [UNK] of longer ones (Devlin et al.'s code)
MARKED_SHARE = 0.01  # of the words with marks, above which "auto" keeps marks
# what byte-level BPE and SentencePiece put before the first piece of a word
_WORD_START = ("\u0120", "\u2581")


class TextTokenizer:
    """A `tokenizers.Tokenizer` of fixed shapes: [CLS], pieces, [SEP] if asked for, [PAD].

    Picklable. Attributes: vocab_size, pad_id, unk_id, cls_id, sep_id, mask_id, add_sep, cased.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        add_sep: bool = False,
        whole_words: frozenset[str] | None = None,
        cased: bool = False,
    ):
        """Args:
          whole_words: tokens that are words, not just beginnings; None = not known.
          cased: cleaning leaves capitals to it (`text_ops.prepare_caption`).

        Raises DataError where the vocabulary has no padding, unknown, first, last or mask token.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer, self.add_sep, self.whole_words = tokenizer, add_sep, whole_words
        self.cased = cased
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

    def encode(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """texts -> (token_ids_BxL int32, token_mask_BxL bool), cut to L = length."""
        token_ids_BxL = np.full((len(texts), length), self.pad_id, np.int32)
        token_mask_BxL = np.zeros((len(texts), length), bool)
        for row, text in enumerate(texts):
            pieces = self.pieces(text)[: length - 1 - self.add_sep]
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
        return len(self.pieces(text)) + 1 + self.add_sep

    def pieces(self, text: str) -> list[int]:
        """Ids of the whole text, without [CLS] and [SEP]."""
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
        the beginnings of words, has no such mark. Content words have letters or digits, with
        whatever marks on them, and are no FUNCTION_WORDS; those that may be filled in are whole
        words and no lone ASCII letter.

        Scripts without blanks between words (Thai, Japanese ...) do not show where a word begins:
        there each piece of two letters or more is a word, wherever it stands.
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
            word = name[1:] if marked and name.startswith(_WORD_START) else name.removeprefix("##")
            unspaced = len(word) > 1 and is_unspaced(word)
            glued = continuation_V[token_id]
            continuation_V[token_id] &= not unspaced
            content_V[token_id] = (
                not continuation_V[token_id]
                and is_word(word)
                and word.lower() not in FUNCTION_WORDS
            )
            whole = unspaced or self.whole_words is None or word in self.whole_words
            alone = len(word) > 1 or not word.isascii() or word.isdigit()
            fillable_V[token_id] = content_V[token_id] and whole and alone
            words[token_id] = "" if glued else word
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
        settings = {
            "add_sep": self.add_sep,
            "cased": self.cased,
            "vocab_size": self.vocab_size,
            "whole_words": words,
        }
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
            "cased": self.cased,
        }

    def __setstate__(self, state: dict) -> None:
        TextTokenizer.__init__(self, Tokenizer.from_str(state.pop("tokenizer")), **state)


def load_tokenizer(spec: str, add_sep: bool | None = None) -> TextTokenizer:
    """Opens a tokenizer.

    Args:
      spec: a folder with tokenizer.json or vocab.txt (one WordPiece a line; tokenizer_config.json
      beside it says `do_lower_case`, `strip_accents` and `tokenize_chinese_chars`, as for
      transformers' BertTokenizer), or a name on the Hugging Face hub.
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
        tokenizer = _download(spec)
        return TextTokenizer(tokenizer, bool(add_sep), cased=_keeps_capitals(tokenizer))
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
        named = settings.get("whole_words")
        whole_words = None if named is None else frozenset(named)
        tokenizer = (
            Tokenizer.from_buffer(whole.read_bytes())
            if whole.is_file()
            else _from_word_list(folder)
        )
        # Folders of runs from before the setting: their captions were lower-cased whatever the
        # tokenizer, and they must go on so.
        cased = settings.get("cased", False) if settings else _keeps_capitals(tokenizer)
    except Exception as error:  # the library raises bare Exception on a damaged file
        raise DataError(
            f"tokenizer in {spec!r}: {_one_line(error)}", "undamaged files", "copy them again"
        ) from error
    add_sep = bool(settings.get("add_sep") if add_sep is None else add_sep)
    return TextTokenizer(tokenizer, add_sep, whole_words, cased)


def _keeps_capitals(tokenizer: Tokenizer) -> bool:
    """Whether it tells capitals apart: they pass its normaliser, and are in its vocabulary."""
    kept = tokenizer.normalizer is None or "A" in tokenizer.normalizer.normalize_str("A")
    return kept and any(
        any(letter.isupper() for letter in name)
        for name in tokenizer.get_vocab(with_added_tokens=False)
        if not (name.startswith(("[", "<")) and name.endswith(("]", ">")))
    )


def _from_word_list(folder: Path) -> Tokenizer:
    words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),  # None: as lowercase
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    return _wordpiece({word.rstrip(): index for index, word in enumerate(words)}, normalizer)


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


def _wordpiece(vocabulary: dict[str, int], normalizer: normalizers.Normalizer) -> Tokenizer:
    """A normaliser, BERT's pre-tokeniser and greedy longest match (Devlin et al.

    2019, appendix A.2).
    """
    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=MAX_LETTERS)
    )
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([token for token in SPECIAL_TOKENS if token in vocabulary])
    return tokenizer


def _uncased(keep_marks: bool) -> normalizers.Normalizer:
    """BERT's uncased normaliser; or the same with marks, each letter and its marks in one form."""
    if not keep_marks:
        return normalizers.BertNormalizer(lowercase=True)
    kept = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    return normalizers.Sequence([normalizers.NFC(), kept])


def learn_wordpiece(
    captions: Iterable[str], vocab_size: int, add_sep: bool = False, accents: str = "auto"
) -> TextTokenizer:
    """Learns WordPiece; SPECIAL_TOKENS get ids 0 to 4. Equal captions give equal vocabularies.

    Words of more than MAX_LETTERS letters are left out, with a warning that counts them; another
    says where "auto" takes marks off.

    Args:
      accents: "keep" the marks of letters (accents, Japanese voicing, vowel signs of Hindi or
        Thai), or "strip" them, as BERT's uncased vocabulary does; "auto": kept where more than
        MARKED_SHARE of the words have one, which is so in the languages that need them and not
        in English.

    Raises:
      ConfigError: `vocab_size` does not hold the special tokens and the alphabet.
      DataError: no caption has a word.
    """
    # Words first, normalised once each. A blank is no part of any rule of the normalisers, so this
    # gives what whole captions give.
    written: Counter[str] = Counter()
    for caption in captions:
        written.update(caption.split(" "))
    marked = marked_share(written)
    keep_marks = accents == "keep" or (accents == "auto" and marked > MARKED_SHARE)
    if accents == "auto" and 0 < marked <= MARKED_SHARE:
        logging.warning(
            "%.2g%% of the words have marks (accents, vowel signs), which the learned vocabulary "
            "takes off; data.accents=keep keeps them",
            100 * marked,
        )
    normalizer = _uncased(keep_marks)
    counts = _normalised(written, normalizer)
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
    whole_words = frozenset(vocabulary.keys() & counts.keys())
    return TextTokenizer(_wordpiece(vocabulary, normalizer), add_sep, whole_words)


def marked_share(words: Mapping[str, int]) -> float:
    """The share of words, each so often, that have marks."""
    marked = sum(count for word, count in words.items() if has_marks(word))
    return marked / max(1, sum(count for word, count in words.items() if word))


def _normalised(
    written: Mapping[str, int], normalizer: normalizers.Normalizer
) -> Mapping[str, int]:
    """Words as the tokenizer splits them, each so often, without those of too many letters."""
    split = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    long: Counter[str] = Counter()
    for text, count in written.items():
        for word, _ in split.pre_tokenize_str(normalizer.normalize_str(text)):
            (counts if len(word) <= MAX_LETTERS else long)[word] += count
    if long:
        logging.warning(
            "%d words of more than %d letters (%d different ones) are left out of the vocabulary "
            "and become [UNK], like %r, which has %d; take them out of the captions if they are "
            "no words",
            *(long.total(), MAX_LETTERS, len(long), f"{min(long)[:40]}...", len(min(long))),
        )
    return counts


def _lines(counts: Mapping[str, int], words_a_line: int = 256) -> Iterable[str]:
    """Each word as often as counted, in few long lines."""
    for word, count in sorted(counts.items()):
        for start in range(0, count, words_a_line):
            yield " ".join([word] * min(words_a_line, count - start))
