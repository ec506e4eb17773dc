"""What streams to the screen is what `decode` gives, and `tokenizer.bin` merges as the plain algorithm, but fast."""

from __future__ import annotations

import json
import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.io.word_tokenizer import SPECIAL
from tasks.generate.task import CONTEXT, WINDOW, TextStream
from tests.test_tokenizer import write_bin
from tests.tiny import TOKENIZER, stories
from tokenizer import AnyTokenizer, BinTokenizer, Tokenizer, load_tokenizer, train_tokenizer

CHARACTERS = "é🐉漢 \ufffd▁"


def write_pieces(path, pieces: list[bytes], scores: list[float]) -> BinTokenizer:
    """A `tokenizer.bin` of the special ids, the 256 bytes, and these pieces."""
    everything = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256)), *pieces]
    ranked = zip([0.0] * 259 + scores, everything, strict=True)
    path.write_bytes(struct.pack("<i", 9) + b"".join(struct.pack("<fi", s, len(raw)) + raw for s, raw in ranked))
    return BinTokenizer(None, str(path))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> list[AnyTokenizer]:
    """One of each kind, and vocabularies with a lone space, several spaces, and words that are marks."""
    folder = tmp_path_factory.mktemp("vocabularies")
    shipped = Tokenizer(tokenizer_model=str(TOKENIZER))
    assert shipped.sp_model.piece_to_id("▁") != shipped.sp_model.unk_id()  # a lone space is a piece of its own
    (folder / "small.model").write_bytes(train_tokenizer([*stories(), "a  b   c", CHARACTERS], 330))
    (folder / "words.json").write_text(json.dumps({
        "format": "min-llama-words", "lower": False,
        "words": [*SPECIAL, "a", "“", "”", ".", "(", ")", " ", "", "\ufffd", "don't", "-", "$", "two words"],
    }), encoding="utf-8")  # fmt: skip
    pieces = [b" ", b"  ", b"a", b" a", "é".encode(), b"\xe6\xbc", b"\xa2", "\ufffd".encode(), b"b \n"]
    return [
        shipped, Tokenizer(tokenizer_model=str(folder / "small.model")), load_tokenizer(folder / "words.json"),
        load_tokenizer(write_bin(folder / "shipped.bin", shipped)),
        write_pieces(folder / "spaces.bin", pieces, [0.0] * len(pieces)),
    ]  # fmt: skip


@settings(max_examples=100)
@given(st.integers(0, 4), st.randoms(use_true_random=True))
def test_pieces_of_a_stream_make_the_decoded_text(tokenizers, index, random):
    tokenizer = tokenizers[index]
    last = tokenizer.n_words - 1
    ids: list[int] = []
    for _ in range(random.randrange(4)):
        low, high = random.choice([(0, last), (0, min(last, 263)), (max(0, last - 20), last)])  # bytes; rare pieces
        drawn = [random.randint(low, high) for _ in range(random.choice([1, 2, 5, 40]))]
        ids += drawn if random.random() < 0.6 else random.choices(drawn[:3], k=2 * WINDOW)
    cut = random.randint(0, len(ids))
    stream = TextStream(tokenizer)
    assert stream.add(*ids[:cut]) + "".join(map(stream.add, ids[cut:])) + stream.finish() == tokenizer.decode(ids)


def test_text_appears_as_soon_as_its_characters_are_complete(tokenizers):
    text = "Zoë 🐉 ate   two  naïve cafés…\nand “more” 漢字. " * 9
    for tokenizer in (tokenizers[0], tokenizers[3]):
        ids, stream, shown = tokenizer.encode(text, bos=True, eos=False), TextStream(tokenizer), ""
        for count, token in enumerate(ids, start=1):
            shown += stream.add(token)
            assert shown == tokenizer.decode(ids[:count]).rstrip("\ufffd")
            assert len(stream.ids) - stream.start <= WINDOW + CONTEXT  # a long text costs no more per token
        assert shown == text and stream.finish() == ""


def plain_merges(tokenizer: BinTokenizer, text: str) -> list[int]:
    """llama2.c's `encode`: the best pair of all is merged, until there is none."""
    ids: list[int] = []
    for character in f" {text}" if text else "":
        raw = character.encode("utf-8")
        ids += [tokenizer.ids[raw]] if raw in tokenizer.ids else [byte + 3 for byte in raw]
    while True:
        best, place, piece = -1e10, -1, -1
        for index in range(len(ids) - 1):
            merged = tokenizer.ids.get(tokenizer.pieces[ids[index]] + tokenizer.pieces[ids[index + 1]])
            if merged is not None and tokenizer.scores[merged] > best:
                best, place, piece = tokenizer.scores[merged], index, merged
        if place < 0:
            return ids
        ids[place : place + 2] = [piece]


@settings(max_examples=50)
@given(st.randoms(use_true_random=True))
def test_merges_are_those_of_the_plain_algorithm(tmp_path_factory, random):
    def text(length: int) -> str:
        return "".join(random.choices("ab é", k=random.randint(1, length)))

    pieces = [text(5).encode() for _ in range(random.randrange(25))]
    scores = random.choices([0.0, -1.0, -2.0, 5.0, float("nan")], k=len(pieces))  # many equal ones
    tokenizer = write_pieces(tmp_path_factory.mktemp("bin") / "t.bin", pieces, scores)
    for sentence in ["", *(text(30) for _ in range(5))]:
        assert tokenizer.encode(sentence, bos=False, eos=False) == plain_merges(tokenizer, sentence)


def test_time_grows_with_the_text_and_not_with_its_square(tokenizers):
    """A sentence of 28 kB took more than a minute."""
    text = " ".join(stories(60)) * 9
    started = time.process_time()
    ids = tokenizers[3].encode(text[:28_000], bos=False, eos=False)
    assert time.process_time() - started < 5.0  # 0.2 s on an idle machine
    assert ids == tokenizers[0].encode(text[:28_000], bos=False, eos=False)
