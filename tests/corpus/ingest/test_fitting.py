"""Which ingests may bring rows into a corpus that is there, and what is said of the others."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from replay_service.corpus.format.manifest import Manifest
from replay_service.corpus.ingest.base_model import BaseModel
from replay_service.corpus.ingest.fitting import check_fits
from replay_service.corpus.ingest.settings import IngestSettings
from replay_service.corpus.shards.documents import Columns
from replay_service.errors import CorpusError, ModelMismatch
from replay_service.language.checkpoint import checkpoint_fingerprint
from replay_service.language.packing import Ends
from tests.corpus.worlds import random_rows, write_corpus

SETTINGS = IngestSettings("/data", Path("/corpora"), "wiki", "tiny")
BASE = BaseModel("rules", Ends(0), 300, 512, checkpoint="weights")


def made_with(settings: IngestSettings, base: BaseModel = BASE, precision: str = "bf16") -> Manifest:
    return Manifest.of_nothing(
        name=settings.name,
        model=settings.model,
        tokenizer_fingerprint=base.tokenizer_fingerprint,
        vocab_size=base.vocab_size,
        separator_id=base.ends.separator_id,
        seq_len=settings.seq_len,
        precision=precision,
        num_quantiles=settings.num_quantiles,
        partition_by=settings.partition_by,
        topk=settings.topk,
        recipe=settings.recipe(base.identity),
        bos_id=base.ends.bos_id,
        checkpoint_fingerprint=base.checkpoint,
        settings=settings.parts(),
    )


def by_an_earlier_release(manifest: Manifest) -> Manifest:
    return replace(manifest, settings={}, checkpoint_fingerprint="", bos_id=None)


def refusal(manifest: Manifest, settings: IngestSettings, base: BaseModel = BASE) -> str:
    with pytest.raises(CorpusError) as refused:
        check_fits(manifest, settings, base)
    return str(refused.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seq_len": 256}, "seq_len 512 and not 256"),
        ({"num_quantiles": 4}, "num_quantiles 8 and not 4"),
        ({"num_clusters": 3}, "num_clusters 0 and not 3"),
        ({"topk": 4}, "topk 0 and not 4"),
        ({"rows_per_segment": 100}, "rows_per_segment 65536 and not 100"),
        ({"precision": "float32"}, "precision 'auto' and not 'float32'"),
        ({"columns": Columns(text="body")}, "text_column 'text' and not 'body'"),
        ({"columns": Columns(domain="site")}, "domain_column none and not 'site'"),
        ({"topk": 4, "seq_len": 2}, "seq_len 512 and not 2, topk 0 and not 4"),
    ],
)
def test_only_what_differs_is_named_with_both_values(change: dict[str, Any], named: str) -> None:
    said = refusal(made_with(SETTINGS), replace(SETTINGS, **change))
    assert f"made with other settings: {named}; repeat them" in said


def test_what_an_earlier_release_wrote_down_is_named_too() -> None:
    earlier = by_an_earlier_release(made_with(SETTINGS))
    check_fits(earlier, SETTINGS, BASE)
    assert "other settings: seq_len 512 and not 2;" in refusal(earlier, replace(SETTINGS, seq_len=2))
    clustered = refusal(earlier, replace(SETTINGS, num_clusters=2))
    assert "other settings: partition_by 'domain' and not 'cluster';" in clustered
    assert "columns, clusters, precision or" in refusal(earlier, replace(SETTINGS, rows_per_segment=2))


def test_the_precision_that_a_corpus_has_may_be_named_or_left_to_the_corpus() -> None:
    for made, asked in (("auto", "bf16"), ("bf16", "auto"), ("bf16", "bf16"), ("auto", "auto")):
        check_fits(made_with(replace(SETTINGS, precision=made)), replace(SETTINGS, precision=asked), BASE)


def test_a_model_by_another_path_fits_if_its_weights_are_the_same() -> None:
    elsewhere = replace(SETTINGS, model="/mnt/tiny")
    check_fits(made_with(SETTINGS), elsewhere, BASE)
    unknown = replace(BASE, checkpoint="")
    assert "model 'tiny' and not '/mnt/tiny'" in refusal(made_with(SETTINGS), elsewhere, unknown)


def test_a_model_by_another_path_fits_a_corpus_of_an_earlier_release_while_its_own_is_there(tiny_model: Path) -> None:
    base = replace(BASE, checkpoint=checkpoint_fingerprint(str(tiny_model)))
    settings = replace(SETTINGS, model=str(tiny_model))
    earlier = by_an_earlier_release(made_with(settings))
    check_fits(earlier, replace(settings, model="/mnt/tiny"), base)


def test_other_weights_do_not_fit_whatever_their_path() -> None:
    other = replace(BASE, checkpoint="others")
    for settings in (SETTINGS, replace(SETTINGS, model="/mnt/tiny")):
        with pytest.raises(ModelMismatch, match="with other weights"):
            check_fits(made_with(SETTINGS), settings, other)


def test_another_bos_token_is_named() -> None:
    begun = replace(BASE, ends=Ends(0, 2))
    assert "other settings: bos token none and not 2;" in refusal(made_with(SETTINGS), SETTINGS, begun)
    assert "other settings: bos token 2 and not none;" in refusal(made_with(SETTINGS, begun), SETTINGS, BASE)
    check_fits(made_with(SETTINGS, begun), SETTINGS, begun)


@pytest.mark.parametrize(("num_logits", "is_right"), [(300, True), (65_536, True), (256, False), (65_537, False)])
def test_stored_ids_that_an_earlier_release_cut_are_found(tmp_path: Path, num_logits: int, is_right: bool) -> None:
    manifest = write_corpus(tmp_path / "wiki", [random_rows(8, topk=2)])
    settings = replace(SETTINGS, topk=2)
    base = replace(BASE, num_logits=num_logits)
    manifest = replace(made_with(settings, base), segments=manifest.segments)
    if is_right:
        check_fits(manifest, settings, base)
    else:
        assert f"as uint16, but the model predicts {num_logits} tokens" in refusal(manifest, settings, base)
