from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from replay_service.corpus.describe import domain_rows, draw_losses, group_rows, sample_texts
from replay_service.corpus.format.manifest import Manifest
from replay_service.corpus.format.texts import write_tokenizer
from replay_service.corpus.reading.reader import Corpus
from replay_service.errors import CorpusError
from replay_service.language.tokenizer import load_tokenizer, rules_of
from tests.support import grow_corpus, make_corpus


@pytest.fixture
def grown(tmp_path: Path) -> Manifest:
    make_corpus(tmp_path)
    return grow_corpus(tmp_path, num_rows=1200, new_domain="it")


def test_every_domain_has_a_line_of_numbers(grown: Manifest) -> None:
    rows = domain_rows(grown)
    assert [row[0] for row in rows] == ["en", "fr", "it"]
    assert [row[1:3] for row in rows] == [["40", "480"], ["40", "480"], ["1,200", "14,400"]]
    for row, domain in zip(rows, grown.domains, strict=True):
        mean, low, median, high = map(float, row[3:7])
        assert mean == pytest.approx(domain.mean_base_loss_nats, abs=0.006)
        assert low < median < high
        assert len(row[7]) == 20
        assert "█" in row[7]


def test_quantiles_are_those_of_the_samples(tmp_path: Path) -> None:
    make_corpus(tmp_path, domains=("en",), rows_per_domain=500)
    corpus = Corpus(tmp_path / "wiki")
    ids = np.concatenate([(n << 32) + np.arange(each.num_rows) for n, each in enumerate(corpus.manifest.segments)])
    ((*_, low, median, high, _),) = domain_rows(corpus.manifest)
    expected = np.quantile(corpus.base_results(ids).loss_nats, [0.1, 0.5, 0.9], method="lower")
    assert [float(low), float(median), float(high)] == pytest.approx(expected, rel=2e-3, abs=0.006)


def test_every_group_has_a_line_with_the_sizes_of_its_strata(grown: Manifest) -> None:
    assert group_rows(grown) == [
        ["en", "1", "20", "20"],
        ["fr", "1", "20", "20"],
        ["it", "2", "600", "600"],
    ]


def test_losses_beyond_the_histogram_leave_it_empty(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path, domains=("en",))
    manifest.domains[0].base_losses.clear()
    manifest.domains[0].base_losses["9000"] = 40
    ((*_, bars),) = domain_rows(manifest)
    assert bars == " " * 20


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_picture_is_drawn_in_the_format_of_its_ending(grown: Manifest, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"losses.{ending}"
    draw_losses(grown, path)
    beginnings = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert path.read_bytes().startswith(beginnings[ending])


def test_the_picture_shows_something(grown: Manifest, tmp_path: Path) -> None:
    draw_losses(grown, tmp_path / "losses.png")
    pixels = image.imread(tmp_path / "losses.png")
    assert pixels.shape[:2] == (675, 1200)
    colours = np.unique(pixels.reshape(-1, pixels.shape[2]).round(1), axis=0)
    assert len(colours) > 10
    assert 0.01 < (pixels[..., :3].min(axis=2) < 0.9).mean() < 0.5


def test_a_picture_of_an_unknown_format_is_refused(grown: Manifest, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"losses\.xyz cannot be drawn.*\.png"):
        draw_losses(grown, tmp_path / "losses.xyz")


@pytest.fixture
def readable(tmp_path: Path, tiny_model: Path) -> Corpus:
    """A corpus whose tokens are those of the tiny model's tokenizer."""
    make_corpus(tmp_path, vocab_size=250)
    write_tokenizer(tmp_path / "wiki", rules_of(load_tokenizer(str(tiny_model))))
    return Corpus(tmp_path / "wiki")


def test_samples_of_a_stratum_are_shown_as_text(readable: Corpus, tiny_model: Path) -> None:
    texts = list(sample_texts(readable, "fr/q1", 5, seed=3))
    ids = np.array([each.sample_id for each in texts])
    assert len(set(ids.tolist())) == 5
    assert (readable.partition.stratum_of(ids) == 3).all()
    rows, tokenizer = readable.rows(ids), load_tokenizer(str(tiny_model))
    for index, each in enumerate(texts):
        assert each.text == tokenizer.decode(rows.input_ids[index].tolist())
        assert (each.num_tokens, each.base_loss_nats) == (12, pytest.approx(float(rows.base_loss[index])))


def test_the_seed_says_which_samples(readable: Corpus) -> None:
    def chosen(seed: int, count: int = 4) -> list[int]:
        return [each.sample_id for each in sample_texts(readable, "en/q0", count, seed)]

    assert chosen(1) == chosen(1)
    assert chosen(1) == chosen(1, 9)[:4]
    assert len({tuple(chosen(seed)) for seed in range(10)}) > 5


def test_no_more_samples_are_shown_than_there_are(readable: Corpus) -> None:
    texts = list(sample_texts(readable, "en/q0", 1000, seed=0))
    assert len({each.sample_id for each in texts}) == len(texts) == 20


def test_an_empty_stratum_has_no_samples_to_show(tmp_path: Path, tiny_model: Path) -> None:
    make_corpus(tmp_path, rows_per_domain=1)
    write_tokenizer(tmp_path / "wiki", rules_of(load_tokenizer(str(tiny_model))))
    corpus = Corpus(tmp_path / "wiki")
    empty = int(np.flatnonzero(corpus.partition.sizes == 0)[0])
    assert list(sample_texts(corpus, f"{'en' if empty < 2 else 'fr'}/q{empty % 2}", 3, seed=0)) == []


@pytest.mark.parametrize("stratum", ["en/q2", "de/q0", "en", "", "en/q-1"])
def test_an_unknown_stratum_is_refused_and_the_known_ones_named(readable: Corpus, stratum: str) -> None:
    with pytest.raises(CorpusError, match="en/q0, en/q1, fr/q0, fr/q1") as refusal:
        next(sample_texts(readable, stratum, 1, seed=0))
    assert repr(stratum) in refusal.value.detail


def test_texts_of_a_corpus_without_a_tokenizer_or_with_a_damaged_one_are_refused(tmp_path: Path) -> None:
    make_corpus(tmp_path)
    with pytest.raises(CorpusError, match=r"no tokenizer\.json"):
        next(sample_texts(Corpus(tmp_path / "wiki"), "en/q0", 1, seed=0))
    write_tokenizer(tmp_path / "wiki", "{}")
    with pytest.raises(CorpusError, match="damaged"):
        next(sample_texts(Corpus(tmp_path / "wiki"), "en/q0", 1, seed=0))
