"""Ingests of shards that come late, that are far away, that are damaged, empty, or many and of every kind."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from replay_service.corpus.describe import domain_rows, draw_losses, group_rows, sample_texts
from replay_service.corpus.format.manifest import MANIFEST_NAME, read_manifest
from replay_service.corpus.ingest.driver import follow, ingest
from replay_service.corpus.ingest.status import read_status
from replay_service.corpus.reading.reader import Corpus
from replay_service.corpus.shards.documents import BLANK
from replay_service.corpus.shards.places import AllowedPlaces
from replay_service.corpus.shards.sources import Columns
from replay_service.errors import CorpusError, EmptyCorpus, SourceForbidden, UnusableSource
from tests.corpus.ingested import NAME, all_rows, cut_by_hand, settings_of
from tests.corpus.real_text import domains
from tests.corpus.shard_files import write
from tests.corpus.worlds import sentences, write_jsonl
from tests.object_storage import s3_server, upload, url_query

pytestmark = pytest.mark.usefixtures("ray_session")


def test_shards_that_come_late_are_taken_when_two_looks_find_them_the_same(tiny_model: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    settings = settings_of(source, tmp_path, tiny_model, columns=Columns(group="topic"), gpus_per_scorer=0.25)

    def write_shard(name: str, topics: list[str], lines: int) -> None:
        rows = [{"text": text, "topic": topics[i % len(topics)]} for i, text in enumerate(sentences(name, lines))]
        write(source / name, rows)

    write_shard("early.jsonl", ["law", "art"], 60)
    num_shards: list[int] = []

    def between_looks() -> Iterator[bool]:
        for lines_of_late in (5, 40, 40):
            if len(num_shards) < 2:
                write_shard("late.parquet", ["art", "war"], lines_of_late)
            num_shards.append(read_manifest(settings.corpus_folder).num_shards)
            yield True
        num_shards.append(read_manifest(settings.corpus_folder).num_shards)
        yield False

    looks = between_looks()
    manifest = follow(settings, lambda: next(looks))
    assert num_shards == [1, 1, 1, 2]
    assert manifest == read_manifest(settings.corpus_folder)
    assert manifest.num_documents == 100
    assert manifest.partition_by == "column topic"
    generation = {group.name: group.generation for group in manifest.groups}
    assert generation.keys() == {"art", "law", "war"}
    assert generation["war"] > max(generation["art"], generation["law"])
    assert [domain.name for domain in manifest.domains] == ["early", "late"]


def test_the_shards_of_an_object_store_are_ingested_with_the_credentials_of_their_url(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By moto, which proves no signatures, throttling, retries or consistency: see tests/object_storage.py."""
    for number, name in enumerate(("web/a.parquet", "web/b.jsonl.gz", "wiki/c.arrow", "wiki/d.tar")):
        write(tmp_path / "data" / name, [{"text": text} for text in sentences(f"shard {number}", 25)])
    with s3_server() as endpoint:
        upload(endpoint, "shards", tmp_path)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
            monkeypatch.delenv(name, raising=False)
        source = f"s3://testing:testing@shards/data{url_query(endpoint)}"
        manifest = ingest(settings_of(source, tmp_path, tiny_model))
    assert manifest.num_documents == 100
    assert [domain.name for domain in manifest.domains] == ["web", "wiki"]
    assert "testing" not in (tmp_path / NAME / "manifest.json").read_text()
    assert "testing" not in (tmp_path / NAME / "shards.jsonl").read_text()
    rows = all_rows(Corpus(tmp_path / NAME))
    assert (rows.base_loss > 0).all()


def test_a_shard_that_breaks_off_is_named_and_what_is_scored_is_kept_until_it_is_mended(
    tiny_model: Path, tmp_path: Path
) -> None:
    source, texts = tmp_path / "source", sentences("english", 60)
    write_jsonl(source / "whole.jsonl", texts)
    broken = source / "broken.jsonl.gz"
    lines = [*texts, *([" " * 10_000] * 2000)]  # so long that its head is sound
    content = gzip.compress("".join(json.dumps({"text": line}) + "\n" for line in lines).encode())
    broken.write_bytes(content[:-10])
    settings = settings_of(source, tmp_path, tiny_model)
    with pytest.raises(UnusableSource, match=r"broken\.jsonl\.gz cannot be read"):
        ingest(settings)
    status = read_status(settings.corpus_folder)
    assert status is not None
    assert status.state == "failed"
    assert status.problem is not None and "broken.jsonl.gz" in status.problem

    broken.write_bytes(content)
    manifest = ingest(settings)
    assert manifest.num_documents == 2 * len(texts)
    assert manifest.set_aside == {BLANK: 2000}


def test_shards_without_text_make_no_corpus(tiny_model: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "source/a.jsonl", ["", None, "  \n"])
    (tmp_path / "source/b").mkdir()
    (tmp_path / "source/b/b.txt").touch()
    settings = settings_of(tmp_path / "source", tmp_path, tiny_model, precision="auto")
    with pytest.raises(EmptyCorpus, match=r"2 shards .*1 rows set aside: the text is not a string"):
        ingest(settings)
    assert not (settings.corpus_folder / MANIFEST_NAME).exists()


@pytest.fixture(scope="module")
def real_text(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return domains(tmp_path_factory.mktemp("materials") / "text", characters=50_000)


NAMES = ("a.parquet", "a.jsonl.gz", "a.ndjson.zst", "a.arrow", "a.tar", "a.tgz", "a.stream.ipc", "a.jsonl")


@pytest.mark.slow
def test_real_text_of_many_domains_and_languages_in_shards_of_every_kind(
    real_text: dict[str, list[str]], tiny_model: Path, tmp_path: Path
) -> None:
    plain = {"licences": ".txt", "readmes": ".md"}
    for number, (domain, texts) in enumerate(real_text.items()):
        if domain in plain:
            for i, text in enumerate(texts):
                (tmp_path / "source" / domain).mkdir(parents=True, exist_ok=True)
                (tmp_path / "source" / domain / f"{i}{plain[domain]}").write_text(text)
        else:
            write(tmp_path / "source" / domain / NAMES[number % len(NAMES)], [{"text": text} for text in texts])
    settings = settings_of(tmp_path / "source", tmp_path, tiny_model, seq_len=64, batch_size=8, rows_per_segment=4096)
    manifest = ingest(settings)

    assert len(real_text) >= 10
    assert manifest.num_documents == sum(map(len, real_text.values()))
    assert manifest.set_aside == {}
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for domain in manifest.domains:
        texts = real_text[domain.name]
        shards = [[text] for text in texts] if domain.name in plain else [texts]
        rows = [row for shard in shards for row in cut_by_hand(shard, tokenizer, 64)]
        assert (domain.num_samples, domain.num_tokens) == (len(rows), sum(map(len, rows)))

    corpus = Corpus(settings.corpus_folder)
    sizes = corpus.partition.sizes.reshape(-1, 3)
    assert {group.name for group in manifest.groups} == real_text.keys()
    assert (sizes > 0).all()
    assert sizes.sum() == manifest.num_samples == len(all_rows(corpus))
    assert len(domain_rows(manifest)) == len(group_rows(manifest)) == len(real_text)
    draw_losses(manifest, tmp_path / "losses.png")
    (sample,) = sample_texts(corpus, "russian/q1", 1, seed=0)
    whole = "<|endoftext|>".join(real_text["russian"])
    assert sample.text.strip("\N{REPLACEMENT CHARACTER}") in whole


def test_an_ingest_that_a_service_starts_reads_no_link_out_of_its_places(tmp_path: Path, tiny_model: Path) -> None:
    write_jsonl(tmp_path / "shards/a.jsonl", sentences("en", 5))
    (tmp_path / "shards/b.jsonl").symlink_to(write_jsonl(tmp_path / "secrets.jsonl", ["secret"]))
    allowed = AllowedPlaces((str(tmp_path / "shards"),))
    settings = settings_of(tmp_path / "shards", tmp_path / "corpora", tiny_model, allowed=allowed)
    with pytest.raises(SourceForbidden, match=r"b\.jsonl"):
        ingest(settings)
    assert not settings.corpus_folder.exists()


def test_an_ingest_that_a_service_starts_loads_no_pickle(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "shards/a.jsonl", sentences("en", 5))
    for name in ("config.json", "pytorch_model.bin"):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / name).write_text("{}")
    allowed = AllowedPlaces((str(tmp_path / "shards"),))
    settings = settings_of(tmp_path / "shards", tmp_path / "corpora", tmp_path / "model", allowed=allowed)
    with pytest.raises(CorpusError, match="loads no pickle"):
        ingest(settings)
    assert not settings.corpus_folder.exists()
