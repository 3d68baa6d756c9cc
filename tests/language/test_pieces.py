"""Texts in pieces have the token ids of whole ones, with the tokenizers of every usual family."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from replay_service.language import pieces
from replay_service.language.pieces import cut_place, encode_in_pieces, pieces_of

TEXT = [
    "The cat of number 12345 sat on the mat. It's here,\n\nand it isn't; \"so\" what?\n  - a list\n\tx = y + 1\n",
    "Le chat était là-bas, n'est-ce pas?  Oui!\r\nПривет, мир. Как дела?\n日本語の文章です。次の行\nlast line 42\n",  # noqa: RUF001
] * 20
SPECIAL = ["<unk>", "<s>", "</s>"]
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(splits: str | None, prefix_space: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=splits is None)
    split = [] if splits is None else [pre_tokenizers.Split(Regex(splits), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet))
    return tokenizer


def llama_2() -> Tokenizer:
    """BPE over whole texts, spaces as U+2581, one of them before the text; what is unknown falls back to bytes."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trained.train_from_iterator(
        [line for text in TEXT for line in text.split("\n")],
        trainers.BpeTrainer(vocab_size=900, special_tokens=[*SPECIAL, *fallback], limit_alphabet=60),
    )
    model = trained.model
    model.unk_token, model.fuse_unk, model.byte_fallback = "<unk>", True, True
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.ByteFallback()
    return tokenizer


def unigram(scheme: str) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>")
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def bert() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL))
    return tokenizer


FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": lambda: byte_level(None),
    "gpt4": lambda: byte_level(GPT4),
    "prefix space": lambda: byte_level(None, prefix_space=True),
    "llama 2": llama_2,
    "unigram, always": lambda: unigram("always"),
    "unigram, first": lambda: unigram("first"),
    "bert": bert,
}


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return FAMILIES[request.param]()


def encoded(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [each.ids for each in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


words = st.sampled_from([*"".join(TEXT[:2]).split(), "12", "don't", "a.b", "—", "héé", "日本", "\u0301x", "e\u0301"])
gaps = st.sampled_from([" ", " ", " ", "  ", "\n", "\n\n", " \n", "\n  ", "\r\n", "\t", ", ", ".\n", "。\n"])
long_texts = st.lists(st.tuples(words, gaps), min_size=1, max_size=60).map(lambda of: "".join(w + g for w, g in of))


@given(text=long_texts, most=st.integers(20, 60))
@settings(max_examples=150, deadline=None)
def test_pieces_that_are_cut_before_a_space_or_a_line_end_have_the_ids_of_the_whole(
    tokenizer: Tokenizer, text: str, most: int
) -> None:
    parts = list(pieces_of(text, most))
    assert "".join(parts) == text
    later = [index > 0 for index in range(len(parts))]
    ids = encode_in_pieces(lambda some: encoded(tokenizer, some), parts, later)
    if all(before[-1].isalnum() and after[0] in " \n" for before, after in pairwise(parts)):
        assert [each for piece in ids for each in piece] == encoded(tokenizer, [text])[0]


def test_texts_of_any_length_have_their_own_ids(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encoded(tokenizer, ["", "".join(TEXT), "short", "".join(TEXT[:2])])
    monkeypatch.setattr(pieces.pieces_of, "__defaults__", (200,))
    sizes: list[int] = []

    def encode_batch(some: list[str]) -> list[list[int]]:
        sizes.extend(map(len, some))
        return encoded(tokenizer, some)

    assert encode_in_pieces(encode_batch, ["", "".join(TEXT), "short", "".join(TEXT[:2])]) == whole
    assert max(sizes) <= 201


def test_no_more_is_encoded_than_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces.pieces_of, "__defaults__", (10,))
    monkeypatch.setattr(pieces, "_CHARACTERS_AT_ONCE", 10)
    asked: list[str] = []

    def encode_batch(some: list[str]) -> list[list[int]]:
        asked.extend(some)
        return [[ord(each) for each in text] for text in some]

    first, second = encode_in_pieces(encode_batch, ["word " * 1000, "short"], most=15)
    assert len(first) >= 15 and len(second) == 5
    assert sum(map(len, asked)) < 50


@pytest.mark.parametrize(
    ("text", "most", "place"),
    [
        ("", 5, 0),
        ("short", 5, 5),
        ("one two three", 8, 7),
        ("one two three", 7, 7),
        ("one two.\nthree", 10, 3),
        ("one\n\ntwo", 5, 3),
        ("no_place_here", 5, 5),
        ("- - - - x y", 8, 8),
    ],
)
def test_a_text_is_cut_after_the_last_letter_or_digit_before_a_space(text: str, most: int, place: int) -> None:
    assert cut_place(text, 0, most) == place


@given(text=st.text(), most=st.integers(1, 5))
def test_the_pieces_of_a_text_are_the_text(text: str, most: int) -> None:
    parts = list(pieces_of(text, most))
    assert "".join(parts) == text
    assert all(0 < len(part) <= most for part in parts) or not text
