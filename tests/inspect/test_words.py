"""Word maps: against attention that is averaged by hand, and words against the caption."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import own_method
import pytest
import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nas_jax.data.tokenizer import TextTokenizer, learn_wordpiece
from nas_jax.inspect.words_measure import (
    WHOLE,
    Asked,
    Word,
    all_words,
    check_fusion,
    content_words,
    gradient_reaches_words,
    look_at,
    word_map,
)
from nas_jax.inspect.words_picture import heat
from nas_jax.methods.albef import Albef, AlbefConfig
from nas_jax.methods.config import ItcConfig
from nas_jax.methods.method import Setting
from nas_jax.utils.errors import ConfigError

CAPTIONS = ["a red star and two blue circles", "The crosses are left of a big red square"]
LENGTH = 48


@pytest.fixture(scope="module")
def given():
    """A method whose tokenizer cuts long words, its arrays, and pictures with captions."""
    tokenizer = learn_wordpiece(CAPTIONS, 60)
    sizes = {"vocab_size": tokenizer.vocab_size, "max_text_length": LENGTH}
    model = tiny.model(fusion_layers=3, init_std=0.3, **sizes)
    config = AlbefConfig(itc=ItcConfig(queue_size=24))
    method = Albef.build(config, model, Setting(tokenizer.vocabulary()))
    arrays = jax.jit(method.init)(jax.random.key(0))
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    asked = [Asked(f"{k}", image, CAPTIONS[k]) for k, image in enumerate(images)]
    return method, arrays, tokenizer, asked


def test_a_map_is_the_attention_and_the_grad_cam_averaged_by_hand(given):
    method, (params, state), tokenizer, asked = given
    found = look_at(method, (params, state), tokenizer, asked, LENGTH)
    images = np.stack([one.image_HxWx3 for one in asked])
    ids_BxL, mask_BxL = tokenizer.encode(CAPTIONS, LENGTH)
    net = method.apply(params)
    image_BxTxD, _ = method.encode_image(params, state, images)
    text_BxLxD, _ = method.encode_text(params, ids_BxL, mask_BxL)

    def logit(offset_BxHxLxT):
        inputs = text_BxLxD, mask_BxL, image_BxTxD, 1, offset_BxHxLxT  # of three, the second
        fused_BxLxD, probabilities_BxHxLxT = net.fusion_encoder.with_map(*inputs)
        return method.match_logits(params, fused_BxLxD[:, 0])[:, 1].sum(), probabilities_BxHxLxT

    gradient, probabilities = jax.grad(logit, has_aux=True)(jnp.zeros((2, 2, LENGTH, 17)))
    gradient, probabilities = np.asarray(gradient), np.asarray(probabilities)
    score = method.score(params, image_BxTxD, text_BxLxD[:, None], mask_BxL[:, None])["itm"]
    for row, one in enumerate(found):
        assert one.match == pytest.approx(1 / (1 + np.exp(-float(score[row, 0]))), rel=1e-5)
        names = [word.word for word in one.words]
        wanted = [
            word
            for word in CAPTIONS[row].split()
            if word.lower() not in ("a", "the", "and", "are", "of")
        ]
        assert names == [WHOLE, *wanted]
        position, total = 1, 0.0
        pieces = {}  # word -> its positions, counted piece by piece
        for number, word in enumerate(CAPTIONS[row].split()):
            count = tokenizer.token_count(word) - 1
            pieces[number, word] = range(position, position + count)
            position += count
        assert max(map(len, pieces.values())) > 2
        kept = [(0,), *(place for (_, word), place in pieces.items() if word in wanted)]
        for word, positions in zip(one.words, kept, strict=True):
            attention = sum(
                probabilities[row, head, place] for head in range(2) for place in positions
            ) / (2 * len(positions))
            cam = sum(
                np.maximum(gradient[row, head, place], 0) * probabilities[row, head, place]
                for head in range(2)
                for place in positions
            ) / (2 * len(positions))
            np.testing.assert_allclose(word.attention_SxS.ravel(), attention[1:], rtol=1e-4)
            np.testing.assert_allclose(word.grad_cam_SxS.ravel(), cam[1:], rtol=1e-3, atol=1e-9)
            assert word.times_even == pytest.approx(attention[1:].max() * 17, rel=1e-4)
            total += cam[1:].sum()
        assert one.words[1].weight == pytest.approx(one.words[1].grad_cam_SxS.sum() / total, 1e-3)
        assert sum(word.weight for word in one.words) == pytest.approx(1)
    assert np.ptp(found[0].words[1].attention_SxS) > 1e-3  # of a network that attends


def test_words_of_the_last_layer_have_no_grad_cam(given):
    method, _, tokenizer, asked = given
    assert gradient_reaches_words(method)
    short = Albef.build(method.config, tiny.model(**{
        "fusion_layers": 1, "vocab_size": tokenizer.vocab_size, "max_text_length": LENGTH,
    }), method.setting)  # fmt: skip
    assert not gradient_reaches_words(short)
    arrays = jax.jit(short.init)(jax.random.key(0))
    whole, *words = look_at(short, arrays, tokenizer, asked, LENGTH)[0].words
    assert all(word.grad_cam_SxS.max() == 0 and word.weight == 0 for word in words)
    assert whole.grad_cam_SxS.max() > 0 and whole.weight == 1


def byte_level() -> TextTokenizer:
    """Byte-level BPE, which marks the beginnings of words."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["a red star"] * 9, trainer)
    return TextTokenizer(tokenizer, add_sep=True)


@pytest.mark.parametrize("kind", ["wordpiece", "bytes"])
def test_words_are_those_of_the_caption(kind):
    tokenizer = byte_level() if kind == "bytes" else learn_wordpiece([*CAPTIONS, "ab"], 60, True)
    for text in CAPTIONS:
        ids_BxL, _ = tokenizer.encode([text], 40)
        words = all_words(text, ids_BxL[0], tokenizer.spans(text), tokenizer.vocabulary())
        assert [word.text for word in words] == text.split()
        positions = [place for word in words for place in word.positions]
        assert positions == list(range(1, tokenizer.token_count(text) - 1))
        cut = all_words(text, ids_BxL[0, :4], tokenizer.spans(text), tokenizer.vocabulary())
        assert max(place for word in cut for place in word.positions) == 3
    ids_BxL, _ = tokenizer.encode(["the of a"], 12)
    words = all_words("the of a", ids_BxL[0], tokenizer.spans("the of a"), tokenizer.vocabulary())
    assert len(content_words(words)) == 3  # none of them has content: all


def test_what_cannot_be_looked_at_is_refused(given):
    method, arrays, tokenizer, asked = given
    for caption, said in (("", "give some words"), ("red star " * 30, "shorten the caption")):
        with pytest.raises(ConfigError, match=said):
            look_at(method, arrays, tokenizer, [Asked("", asked[0].image_HxWx3, caption)], LENGTH)
    own = own_method.Own.build(own_method.OwnConfig(), tiny.model(), tiny.setting())
    with pytest.raises(ConfigError, match="method own without a fusion encoder"):
        check_fusion(own)


def test_an_even_map_is_bright_everywhere_and_an_empty_one_dark():
    image = np.full((16, 16, 3), 128, np.uint8)
    even, none = heat(image, np.full((4, 4), 0.02), 32), heat(image, np.zeros((4, 4)), 32)
    assert even.shape == (32, 32, 3) and (even == even[0, 0]).all()
    assert even.mean() > 2 * none.mean()
    one = np.zeros((4, 4))
    one[1, 2] = 0.3
    bright = heat(image, one, 32).sum(-1) > none.sum(-1)
    assert bright[8:16, 16:24].all() and bright.sum() == 64


def test_cls_is_no_place():
    attention_LxT = np.array([[0.2] * 5, [0.6, 0.1, 0.2, 0.05, 0.05], [0.8, 0.05, 0.0, 0.1, 0.05]])
    found = word_map(Word("word", (1, 2)), attention_LxT, 10 * attention_LxT)
    np.testing.assert_allclose(found.attention_SxS, [[0.075, 0.1], [0.075, 0.05]])
    np.testing.assert_allclose(found.grad_cam_SxS, 10 * found.attention_SxS)
    assert found.times_even == pytest.approx(0.1 * 5)
