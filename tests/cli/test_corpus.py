"""`replay-service corpus describe`, `sample` and `upload`."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from replay_service.corpus.format.manifest import read_manifest, write_manifest
from replay_service.corpus.format.texts import write_tokenizer
from replay_service.corpus.reading.reader import CorpusStore
from replay_service.language.tokenizer import load_tokenizer, rules_of
from tests.cli.worlds import assert_message, run
from tests.support import grow_corpus, make_corpus


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a corpus, `wiki`, of two generations."""
    make_corpus(tmp_path / "corpora")
    grow_corpus(tmp_path / "corpora", num_rows=1200, new_domain="it")
    return tmp_path


@pytest.fixture
def readable(tmp_path: Path, tiny_model: Path) -> Path:
    """A root with a corpus whose tokens are those of the tiny model's tokenizer."""
    make_corpus(tmp_path / "corpora", vocab_size=250)
    write_tokenizer(tmp_path / "corpora/wiki", rules_of(load_tokenizer(str(tiny_model))))
    return tmp_path


def test_a_corpus_is_described_in_numbers(root: Path) -> None:
    manifest = read_manifest(root / "corpora/wiki")
    write_manifest(root / "corpora/wiki", replace(manifest, set_aside={"it is blank": 3, "it is no text": 1200}))
    result = run("corpus", "describe", "wiki", "--root", root)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("corpus wiki, generation 2: 1,280 samples, 15,360 tokens of 1,280 documents, 3 shards;")
    assert "seq_len 12" in lines[0]
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert [row[:3] for row in cells if row[0] == "it"] == [["it", "1,200", "14,400"], ["it", "2", "600"]]
    assert ["domain", "since", "q0", "q1"] in cells
    assert ["en", "1", "20", "20"] in cells
    assert lines[-2:] == ["3 rows set aside: it is blank", "1,200 rows set aside: it is no text"]


def test_in_a_file_nothing_is_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("an encyclopedia in the language of a small country", "web")
    make_corpus(tmp_path / "corpora", domains=names, rows_per_domain=300, num_quantiles=8)
    monkeypatch.setenv("COLUMNS", "40")
    result = run("corpus", "describe", "wiki", "--root", tmp_path)
    assert result.stdout.count(names[0]) == 2
    assert "…" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) < 150


def test_names_are_printed_as_they_are_whatever_they_look_like(root: Path) -> None:
    manifest = read_manifest(root / "corpora/wiki")
    odd = ["[/bold]", ":cat: [red]", "a\x1b[31mb"]
    domains = [replace(each, name=name) for each, name in zip(manifest.domains, odd, strict=True)]
    groups = [replace(each, name=name) for each, name in zip(manifest.groups, odd, strict=True)]
    strange = replace(manifest, domains=domains, groups=groups, model="[m]", partition_by="column [c]")
    write_manifest(root / "corpora/wiki", strange)
    result = run("corpus", "describe", "wiki", "--root", root)
    assert result.exit_code == 0, result.output
    for each in ("[/bold]", ":cat: [red]", r"a\x1b[31mb", "model [m]", "column [c]"):
        assert each in result.stdout
    assert "\x1b" not in result.stdout


def test_a_picture_is_drawn_when_asked_for(root: Path) -> None:
    path = root / "losses [1].png"
    result = run("corpus", "describe", "wiki", "--root", root, "--picture", path)
    assert result.exit_code == 0, result.output
    assert path.read_bytes().startswith(b"\x89PNG")
    assert str(path) in result.stderr


@pytest.mark.parametrize("name", ["losses.xyz", "nowhere/losses.png"])
def test_a_picture_that_cannot_be_drawn_is_named(root: Path, name: str) -> None:
    result = run("corpus", "describe", "wiki", "--root", root, "--picture", root / name)
    assert_message(result, str(root / name))


@pytest.mark.parametrize("name", ["nothing", "../wiki", "Wiki", "", "[/red]"])
@pytest.mark.parametrize("command", [("describe",), ("sample", "--stratum", "en/q0")])
def test_a_corpus_that_is_not_there_is_named(root: Path, command: tuple[str, ...], name: str) -> None:
    assert_message(run("corpus", *command, name, "--root", root), "no corpus", repr(name))


def test_a_damaged_manifest_is_named(root: Path) -> None:
    (root / "corpora/wiki/manifest.json").write_text("{}")
    assert_message(run("corpus", "describe", "wiki", "--root", root), "manifest.json", "damaged")


def shown(root: Path, *options: str | int) -> str:
    result = run("corpus", "sample", "wiki", "--root", root, "--stratum", "fr/q1", *options)
    assert result.exit_code == 0, result.output
    text: str = result.stdout
    return text


def test_samples_are_shown_as_text_with_their_base_losses(readable: Path, tiny_model: Path) -> None:
    text = shown(readable, "--count", 4)
    heads = re.findall(r"sample (\d+), 12 tokens, ([0-9.]+) nats", text)
    assert len(heads) == 4
    corpus, tokenizer = CorpusStore(readable / "corpora").get("wiki"), load_tokenizer(str(tiny_model))
    ids = np.array([int(sample_id) for sample_id, _ in heads])
    rows = corpus.rows(ids)
    assert (rows.stratum == 3).all()
    assert [float(nats) for _, nats in heads] == pytest.approx(rows.base_loss.tolist(), abs=6e-4)
    for tokens in rows.input_ids:
        words = re.findall(r"\w+", tokenizer.decode(tokens.tolist()))
        assert all(word in text for word in words)


def test_the_seed_says_which_samples_are_shown(readable: Path) -> None:
    assert shown(readable, "--seed", 5) == shown(readable, "--seed", 5)
    assert len({shown(readable, "--seed", seed) for seed in range(3)}) > 1


def test_text_cannot_command_the_terminal(tmp_path: Path, tiny_model: Path) -> None:
    """Random tokens of a byte-level tokenizer hold every control character."""
    make_corpus(tmp_path / "corpora", vocab_size=250, rows_per_domain=400)
    write_tokenizer(tmp_path / "corpora/wiki", rules_of(load_tokenizer(str(tiny_model))))
    text = shown(tmp_path, "--count", 200)
    assert r"\x1b" in text
    assert all(each.isprintable() or each in "\n\t" for each in text)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--stratum", "en/q9"], "it has en/q0, en/q1, fr/q0, fr/q1"),
        (["--stratum", "[/red]"], "no stratum '[/red]'"),
        (["--stratum", "en/q0", "--count", "0"], "--count"),
        (["--stratum", "en/q0", "--count", "1001"], "--count"),
        (["--stratum", "en/q0", "--seed", "-1"], "--seed"),
        (["--stratum", "en/q0", "--seed", str(2**63)], "--seed"),
        ([], "--stratum"),
    ],
)
def test_a_wrong_option_of_sample_ends_with_a_message(readable: Path, options: list[str], named: str) -> None:
    assert_message(run("corpus", "sample", "wiki", "--root", readable, *options), named)


def test_samples_of_a_corpus_without_a_tokenizer_are_not_shown(readable: Path) -> None:
    (readable / "corpora/wiki/tokenizer.json").unlink()
    result = run("corpus", "sample", "wiki", "--root", readable, "--stratum", "en/q0")
    assert_message(result, "no tokenizer.json", "cannot be shown as text")


def test_a_corpus_is_uploaded_and_described_where_it_is(root: Path) -> None:
    url = f"file://{root}/far"
    result = run("corpus", "upload", "wiki", url, "--root", root)
    assert result.exit_code == 0, result.output
    assert "4 segments copied" in result.stderr
    assert "0 segments copied" in run("corpus", "upload", "wiki", url, "--root", root).stderr
    (root / "replay.toml").write_text(f'corpora_url = "{url}"\nroot = "/nowhere"')
    there = run("corpus", "describe", "wiki", "--config", root / "replay.toml")
    assert there.exit_code == 0, there.output
    assert there.stdout == run("corpus", "describe", "wiki", "--root", root).stdout


@pytest.mark.parametrize("name", ["nothing", "[red]", "[bold"])
def test_a_corpus_that_is_not_there_is_not_uploaded(root: Path, name: str) -> None:
    assert_message(run("corpus", "upload", name, f"file://{root}/far", "--root", root), f"no corpus '{name}'")
    assert not (root / "far").exists()


def test_a_url_that_cannot_be_used_ends_with_a_message_without_its_secrets(root: Path) -> None:
    result = run("corpus", "upload", "wiki", "nosuch://me:swordfish@host/corpora", "--root", root)
    assert_message(result, "nosuch://")
    assert "swordfish" not in result.output


def test_a_place_that_cannot_be_written_ends_with_a_message(root: Path) -> None:
    (root / "far").touch()
    assert_message(run("corpus", "upload", "wiki", f"file://{root}/far", "--root", root), "cannot be copied")


def test_an_unknown_command_is_refused() -> None:
    assert_message(run("corpus", "burn", "wiki"), "burn")
