from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from replay_service.corpus.format.manifest import Manifest
from replay_service.corpus.ingest.base_model import base_model_of
from replay_service.corpus.ingest.settings import IngestSettings
from replay_service.errors import CorpusError
from replay_service.language.packing import Ends
from tests.corpus.ingest.staged_shards import NOTHING
from tests.support import make_tiny_model


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> IngestSettings:
    """Of a model whose tokenizer puts a bos token, 1, before a text; documents end with 0."""
    model = make_tiny_model(tmp_path_factory.mktemp("with-bos"), bos=True)
    return IngestSettings("/data", Path("/corpora"), "wiki", str(model), seq_len=32)


def ends_of(settings: IngestSettings, standing: Manifest | None = None) -> Ends:
    return base_model_of(settings, standing, []).ends


def test_a_new_corpus_has_the_tokens_around_documents_that_the_tokenizer_has(settings: IngestSettings) -> None:
    assert ends_of(settings) == ends_of(replace(settings, bos="always")) == Ends(0, 1)
    assert ends_of(replace(settings, bos="never")) == Ends(0)


def test_a_corpus_keeps_those_that_it_has_unless_another_bos_is_asked_for(settings: IngestSettings) -> None:
    earlier = replace(NOTHING, separator_id=7, bos_id=None)
    assert ends_of(settings, earlier) == Ends(7)
    assert ends_of(replace(settings, bos="always"), earlier) == Ends(7, 1)
    begun = replace(NOTHING, separator_id=7, bos_id=1)
    assert ends_of(settings, begun) == Ends(7, 1)
    assert ends_of(replace(settings, bos="never"), begun) == Ends(7)


def test_rows_with_another_bos_token_are_of_another_identity(settings: IngestSettings) -> None:
    begun = base_model_of(settings, None, [])
    plain = base_model_of(replace(settings, bos="never"), None, [])
    assert plain.identity == plain.tokenizer_fingerprint != begun.identity


def test_more_likeliest_tokens_than_the_model_predicts_are_refused(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"?": 0, "end": 1}, unk_token="?"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="end").save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=2, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(CorpusError, match="topk 4 is more than the 2 tokens that the model predicts"):
        base_model_of(IngestSettings("/data", Path("/corpora"), "wiki", str(tmp_path), seq_len=8, topk=4), None, [])
