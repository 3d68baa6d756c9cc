import os
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from replay_service.cli import app
from replay_service.names import is_name
from replay_service.tokens import (
    SCOPES,
    TOKEN_PREFIX,
    TokenEntry,
    UnusableTokens,
    add_token,
    find,
    hash_of,
    new_token,
    read_tokens,
    revoke_token,
)

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)

names = st.text("az09._-", min_size=1, max_size=64).filter(is_name)
secrets = st.binary(max_size=40).map(lambda part: part.decode("latin-1"))
times = st.datetimes(
    datetime(1971, 1, 1),
    datetime(9000, 1, 1),
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]),
).map(lambda time: time.replace(microsecond=0))


@st.composite
def entries(draw: st.DrawFn) -> TokenEntry:
    return TokenEntry(
        name=draw(names),
        sha256=hash_of(draw(secrets)),
        scope=draw(st.sampled_from(SCOPES)),
        runs=draw(st.none() | st.lists(names, min_size=1, max_size=3).map(tuple)),
        created_at=draw(times),
        expires_at=draw(st.none() | times),
    )


def entry(name: str, token: str = "", **fields: Any) -> TokenEntry:
    values = {"name": name, "sha256": hash_of(token or name), "scope": "read", "created_at": NOW}
    return TokenEntry.model_validate(values | fields)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.toml"


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("REPLAY_TOKENS_FILE", raising=False)
    monkeypatch.delenv("REPLAY_ROOT", raising=False)


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["token", *(str(each) for each in arguments)])


@given(st.lists(entries(), max_size=5, unique_by=(lambda each: each.name, lambda each: each.sha256)))
def test_what_is_added_is_read(tmp_path_factory: pytest.TempPathFactory, made: list[TokenEntry]) -> None:
    path = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    for each in made:
        add_token(path, each)
    assert not made or read_tokens(path) == tuple(made)
    for each in made[::2]:
        revoke_token(path, each.name)
    assert not made or read_tokens(path) == tuple(made[1::2])


@given(st.lists(secrets, max_size=5, unique=True), secrets)
def test_a_token_is_found_by_nothing_but_itself(tokens: list[str], other: str) -> None:
    made = [entry(f"t{i}", token or "x") for i, token in enumerate(tokens) if token]
    for each, token in zip(made, filter(None, tokens), strict=True):
        assert find(made, token) is each
    assert other in tokens or find(made, other) is None


def test_tokens_are_long_random_and_known_by_their_prefix() -> None:
    made = {new_token() for _ in range(100)}
    assert len(made) == 100
    assert all(each.startswith(TOKEN_PREFIX) and len(each) >= 47 for each in made)


def test_the_file_is_its_owners_alone_and_holds_no_token(path: Path) -> None:
    token = new_token()
    add_token(path, entry("somebody", token))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token.removeprefix(TOKEN_PREFIX) not in path.read_text()
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_the_file_stays_its_owners_when_the_superuser_changes_it(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only the superuser can give a file away")
    add_token(path, entry("somebody"))
    os.chown(path, 10001, 10001)
    add_token(path, entry("another"))
    assert (path.stat().st_uid, path.stat().st_gid) == (10001, 10001)


def test_a_representation_shows_no_hash() -> None:
    assert hash_of("somebody") not in repr(entry("somebody"))


def test_changes_at_once_are_all_kept(path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda i: add_token(path, entry(f"t{i}")), range(24)))
    assert {each.name for each in read_tokens(path)} == {f"t{i}" for i in range(24)}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "empty"),
        ("[[token]", "damaged"),
        ("tokens = []", "tokens"),
        ('[[token]]\nname = "a"', "sha256"),
        ('[[token]]\nname = "A b"', "name"),
        ("{whole}\nscope = 'all'", "Cannot overwrite"),
        ("{whole}\nruns = []", "runs"),
        ("{whole}\nruns = ['A b']", "runs"),
        ("{whole}\ntoken = 'rpl_plain'", "token"),
        ("{whole}\nexpires_at = 2026-01-01T00:00:00", "expires_at"),
        ("{whole}\n{whole}", "the same name"),
    ],
)
def test_a_damaged_file_is_refused_and_the_place_is_named(path: Path, content: str, named: str) -> None:
    whole = f"[[token]]\nname = 'a'\nsha256 = '{hash_of('a')}'\nscope = 'read'\ncreated_at = 2026-01-01T00:00:00Z"
    path.write_text(content.replace("{whole}", whole))
    with pytest.raises(UnusableTokens, match=named) as refusal:
        read_tokens(path)
    assert str(path) in str(refusal.value)
    assert "rpl_plain" not in str(refusal.value)


def test_a_damaged_file_is_not_written_over(path: Path) -> None:
    path.write_text("[[token]")
    with pytest.raises(UnusableTokens):
        add_token(path, entry("somebody"))
    assert path.read_text() == "[[token]"


def test_a_token_is_made_listed_and_revoked(tmp_path: Path, path: Path) -> None:
    made = run(
        "create", "laptop", "--scope", "train", "--run", "a", "--run", "b", "--expires-days", "7", "--root", tmp_path
    )
    assert made.exit_code == 0, made.output
    token = made.stdout.strip()
    (stored,) = read_tokens(path)
    assert find([stored], token) is stored
    assert (stored.name, stored.scope, stored.runs) == ("laptop", "train", ("a", "b"))
    assert stored.expires_at is not None
    assert stored.expires_at - stored.created_at == timedelta(days=7)
    listed = run("list", "--root", tmp_path).stdout
    assert all(each in listed for each in ("laptop", "train", "a, b"))
    assert token not in listed
    assert run("revoke", "laptop", "--tokens-file", path).exit_code == 0
    assert read_tokens(path) == ()


def test_a_token_is_good_for_all_runs_and_for_ever_unless_told_otherwise(tmp_path: Path, path: Path) -> None:
    assert run("create", "laptop", "--scope", "read", "--root", tmp_path).exit_code == 0
    (stored,) = read_tokens(path)
    assert (stored.runs, stored.expires_at) == (None, None)
    assert "never" in run("list", "--root", tmp_path).stdout


def test_what_is_expired_is_shown_as_such(tmp_path: Path, path: Path) -> None:
    add_token(path, entry("old", expires_at=NOW - timedelta(days=400)))
    assert "(expired)" in run("list", "--root", tmp_path).stdout


def test_the_file_is_the_one_that_the_settings_name(tmp_path: Path) -> None:
    (tmp_path / "replay.toml").write_text(f"tokens_file = '{tmp_path / 'etc' / 'mine.toml'}'")
    assert run("create", "laptop", "--scope", "read", "--config", tmp_path / "replay.toml").exit_code == 0
    assert len(read_tokens(tmp_path / "etc" / "mine.toml")) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["create", "laptop", "--scope", "read"], "laptop"),
        (["create", "A b", "--scope", "read"], "A b"),
        (["create", "new", "--scope", "read", "--run", "../x"], "../x"),
        (["create", "new", "--scope", "all"], "--scope"),
        (["create", "new"], "--scope"),
        (["create", "new", "--scope", "read", "--expires-days", "0"], "--expires-days"),
        (["revoke", "nobody"], "nobody"),
    ],
)
def test_a_mistake_ends_with_a_message_and_changes_nothing(
    tmp_path: Path, path: Path, arguments: list[str], named: str
) -> None:
    add_token(path, entry("laptop"))
    before = path.read_text()
    result = run(*arguments, "--root", tmp_path)
    assert result.exit_code == 2
    assert named in result.output
    assert "Traceback" not in result.output
    assert path.read_text() == before


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    result = run("list", "--root", tmp_path)
    assert result.exit_code == 2
    assert "tokens.toml" in result.output
