import json
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from replay_service.errors import CorpusError
from replay_service.language.packing import Bos, Ends
from replay_service.language.tokenizer import (
    bos_id,
    encode,
    ends_of,
    fingerprint,
    ids_of,
    is_known_as,
    largest_id,
    load_tokenizer,
    separator_id,
    vocab_size,
)
from tests.support import make_tiny_model


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(str(tiny_model))


def word_tokenizer(*words: str, **special: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def test_equal_tokenizers_have_equal_fingerprints(tokenizer: Any, tiny_model: Path) -> None:
    assert fingerprint(load_tokenizer(str(tiny_model))) == fingerprint(tokenizer)
    assert len(fingerprint(tokenizer)) == 16


def test_how_a_tokenizer_was_used_does_not_change_its_fingerprint(tiny_model: Path) -> None:
    used = load_tokenizer(str(tiny_model))
    before = fingerprint(used)
    used.pad_token = used.eos_token
    used(["one text", "another, longer text"], padding="longest", truncation=True, max_length=4)
    used.backend_tokenizer.enable_padding(length=32)
    used.backend_tokenizer.enable_truncation(max_length=8)
    assert fingerprint(used) == before


def test_a_tokenizer_stays_known_when_special_tokens_are_added_at_its_end(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    known = fingerprint(tokenizer)
    assert is_known_as(tokenizer, known) and not is_known_as(tokenizer, "another")
    tokenizer.add_special_tokens({"pad_token": "<pad>", "additional_special_tokens": ["<a>", "<b>"]})
    assert fingerprint(tokenizer) != known and is_known_as(tokenizer, known)
    tokenizer.add_tokens(["<think>"])
    assert not is_known_as(tokenizer, known)


def test_another_vocabulary_has_another_fingerprint(tokenizer: Any, tmp_path: Path) -> None:
    other = load_tokenizer(str(make_tiny_model(tmp_path, vocab_size=280)))
    assert fingerprint(other) != fingerprint(tokenizer)


def test_the_same_words_with_other_ids_have_another_fingerprint() -> None:
    assert fingerprint(word_tokenizer("?", "cat", "dog")) != fingerprint(word_tokenizer("?", "dog", "cat"))


@pytest.mark.parametrize("other", ["cat", "</s>", "<|endoftext|>", "<|end_of_text|>"])
def test_the_separator_is_the_eos_token_that_the_tokenizer_declares(other: str) -> None:
    assert separator_id(word_tokenizer("?", other, "<end>", eos_token="<end>")) == 2


@pytest.mark.parametrize("between", ["<|endoftext|>", "<|end_of_text|>"])
def test_a_chat_model_ends_documents_as_its_pretraining_did_and_not_with_the_end_of_a_turn(between: str) -> None:
    chat = word_tokenizer("?", "cat", "<|im_end|>", between, eos_token="<|im_end|>")
    assert separator_id(chat) == 2, "a word like any other"
    chat.add_special_tokens({"additional_special_tokens": [between]})
    assert separator_id(chat) == 3


def test_else_the_separator_is_the_usual_end_of_text_token(tokenizer: Any) -> None:
    assert separator_id(word_tokenizer("?", "cat", "</s>")) == 2
    assert separator_id(word_tokenizer("?", "</s>", "<|endoftext|>")) == 2


def adds_bos(tokenizer: PreTrainedTokenizerFast, token: str) -> PreTrainedTokenizerFast:
    id_ = tokenizer.convert_tokens_to_ids(token)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, id_)]
    )
    return tokenizer


def test_documents_begin_with_a_bos_token_as_the_tokenizer_says_or_as_it_is_asked_for() -> None:
    words = ("?", "<bos>", "cat", "<end>")
    silent = word_tokenizer(*words, bos_token="<bos>", eos_token="<end>")
    adding = adds_bos(word_tokenizer(*words, bos_token="<bos>", eos_token="<end>"), "<bos>")
    assert [bos_id(silent, bos) for bos in get_args(Bos)] == [None, None, 1]
    assert [bos_id(adding, bos) for bos in get_args(Bos)] == [1, None, 1]
    assert ends_of(adding) == Ends(3, 1)


def test_a_token_before_a_text_that_is_no_bos_token_begins_no_document() -> None:
    without = adds_bos(word_tokenizer("?", "<cls>", "cat"), "<cls>")
    assert (bos_id(without, "auto"), bos_id(without, "never")) == (None, None)
    with pytest.raises(CorpusError, match="no bos token to begin documents with"):
        bos_id(without, "always")


def test_ids_may_have_gaps() -> None:
    vocabulary = {"?": 0, "cat": 1, "dog": 300}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert (len(fast), vocab_size(fast), largest_id(fast)) == (3, 301, 300)
    (ids,) = ids_of(fast, [np.array([300])])
    assert list(ids) == [300]


def test_a_special_token_never_stands_for_text_and_other_added_ones_do() -> None:
    tokenizer = word_tokenizer("?", "cat", "<end>", eos_token="<end>")
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert (largest_id(tokenizer), vocab_size(tokenizer)) == (2, 4)
    tokenizer.add_tokens(["<think>"])
    assert largest_id(tokenizer) == 4
    tokenizer.add_special_tokens({"eos_token": "<over>"})
    assert largest_id(tokenizer) == 5


def test_a_tokenizer_file_of_a_newer_library_is_named_in_one_sentence(tiny_model: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    rules = json.loads((copied / "tokenizer.json").read_text())
    (copied / "tokenizer.json").write_text(json.dumps({**rules, "model": {**rules["model"], "type": "Newer"}}))
    with pytest.raises(CorpusError, match="damaged or of a newer version of the library tokenizers") as refused:
        load_tokenizer(str(copied))
    assert "\n" not in str(refused.value)


def test_a_tokenizer_that_cannot_end_a_document_is_refused() -> None:
    with pytest.raises(CorpusError, match="end-of-text"):
        separator_id(word_tokenizer("?", "cat"))


@given(texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=30), max_size=5))
@settings(max_examples=50, deadline=None)
def test_encoded_text_is_decoded_to_itself(tokenizer: Any, texts: list[str]) -> None:
    assert [tokenizer.decode(ids) for ids in encode(tokenizer, texts)] == texts


@given(texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=30) | st.just("a <|endoftext|> b"), min_size=1))
@settings(max_examples=50, deadline=None)
def test_encoding_gives_what_the_tokenizers_own_call_gives(tokenizer: Any, texts: list[str]) -> None:
    whole = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)
    assert encode(tokenizer, texts) == whole["input_ids"]


def test_how_a_tokenizer_was_used_before_changes_no_encoding(tiny_model: Path) -> None:
    used = load_tokenizer(str(tiny_model))
    texts = ["the cat of number 1 sat on the mat", "le chat"]
    before = encode(used, texts)
    used.pad_token = used.eos_token
    used(texts, padding="longest", truncation=True, max_length=4, split_special_tokens=False)
    assert encode(used, texts) == before


def test_text_that_spells_a_special_token_stays_text(tokenizer: Any) -> None:
    (ids,) = encode(tokenizer, ["end <|endoftext|> start"])
    assert separator_id(tokenizer) not in ids
    assert tokenizer.decode(ids) == "end <|endoftext|> start"


def test_nothing_is_added_to_a_text_or_cut_from_it(tokenizer: Any) -> None:
    texts = ["the cat", "sat", "the cat" * 500]
    together = encode(tokenizer, texts)
    assert together == [encode(tokenizer, [text])[0] for text in texts]
    assert len(together[2]) > 500
    assert encode(tokenizer, [""]) == [[]]
    assert encode(tokenizer, []) == []


def test_a_folder_without_a_tokenizer_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=str(tmp_path)):
        load_tokenizer(str(tmp_path))


def test_texts_are_encoded_and_ready_made_ids_taken_as_they_are(tokenizer: Any) -> None:
    ready = np.array([3, 0, len(tokenizer) - 1])
    one, other = encode(tokenizer, ["one text", "another"])
    assert [list(ids) for ids in ids_of(tokenizer, ["one text", ready, "another"])] == [one, ready.tolist(), other]
    assert ids_of(tokenizer, []) == []


def test_a_ready_made_id_beyond_the_vocabulary_is_refused(tokenizer: Any) -> None:
    with pytest.raises(CorpusError, match=f"token id {len(tokenizer)}, but"):
        ids_of(tokenizer, [np.array([1]), np.array([len(tokenizer)])])
