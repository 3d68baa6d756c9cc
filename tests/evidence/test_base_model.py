from pathlib import Path

import pytest

from replay_service.language.model import load_model
from replay_service.language.tokenizer import encode, load_tokenizer, separator_id, vocab_size
from tests.evidence.base_model import SIZES, make_model, make_tokenizer


def test_a_token_is_a_byte(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    texts = ["Größe\n\t été <|endoftext|> 日本", "".join(map(chr, range(256)))]
    assert encode(tokenizer, texts) == [[*text.encode()] for text in texts]
    assert (separator_id(tokenizer), vocab_size(tokenizer)) == (256, 257)
    assert tokenizer.decode([*texts[0].encode()]) == texts[0]


@pytest.mark.parametrize(("name", "millions"), [("small", 0.36), ("medium", 1.82), ("large", 7.18)])
def test_sizes_are_as_they_are_said_to_be(tmp_path: Path, name: str, millions: float) -> None:
    make_model(tmp_path, SIZES[name], seed=0)  # type: ignore[index]
    model = load_model(str(tmp_path))
    assert sum(each.numel() for each in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
