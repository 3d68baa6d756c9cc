import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.corpus.ingest.shard_list import (
    SHARD_LIST_NAME,
    ListedShard,
    in_order,
    listed,
    read_shard_list,
    write_shard_list,
)
from replay_service.corpus.shards.sources import Shard
from replay_service.errors import CorpusError

names = st.lists(st.from_regex(r"[a-z]{1,3}/[0-9]{1,3}\.jsonl", fullmatch=True), unique=True, max_size=12)


def shard(name: str, version: str = "100-1") -> Shard:
    return Shard(f"/data/{name}", "jsonl", "web", name, version)


def names_of(shards: list[Shard]) -> list[str]:
    return [each.name for each in shards]


def test_a_list_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    assert read_shard_list(tmp_path) == []
    shards = [ListedShard("web/één\n.jsonl", "12-3"), ListedShard("a\u2028b", ""), ListedShard("\udcff", "etag-7")]
    write_shard_list(tmp_path, shards)
    assert read_shard_list(tmp_path) == shards
    write_shard_list(tmp_path, shards[:1])
    assert read_shard_list(tmp_path) == shards[:1]
    assert [path.name for path in tmp_path.iterdir()] == [SHARD_LIST_NAME]


def test_a_list_holds_no_secret_of_a_url(tmp_path: Path) -> None:
    secret = replace(shard("a.jsonl"), url="https://me:swordfish@host/a.jsonl?token=swordfish")
    write_shard_list(tmp_path, [listed(secret)])
    text = (tmp_path / SHARD_LIST_NAME).read_text()
    assert "swordfish" not in text
    assert json.loads(text) == {"name": "a.jsonl", "version": "100-1"}


@given(names.flatmap(lambda found: st.tuples(st.just(found), st.permutations(found))))
@settings(max_examples=50, deadline=None)
def test_the_order_of_new_shards_is_stable_and_does_not_depend_on_the_order_they_were_found_in(
    names: tuple[list[str], list[str]],
) -> None:
    first, second = (names_of(in_order([], False, [shard(name) for name in each])) for each in names)
    assert first == second
    assert sorted(first) == sorted(names[0])


def test_the_order_has_nothing_to_do_with_the_names() -> None:
    names = [f"{domain}/{number:03d}.jsonl" for domain in ("code", "news", "web") for number in range(100)]
    order = names_of(in_order([], False, [shard(name) for name in names]))
    for part in range(5):
        domains = [name.split("/")[0] for name in order[60 * part : 60 * part + 60]]
        assert all(8 <= domains.count(domain) <= 34 for domain in ("code", "news", "web"))


def test_more_shards_leave_the_others_in_their_order() -> None:
    some = [shard(f"{number}.jsonl") for number in range(30)]
    order = names_of(in_order([], False, some[:20]))
    assert [name for name in names_of(in_order([], False, some)) if name in order] == order


def test_shards_that_are_done_are_not_read_again_and_may_be_gone() -> None:
    some = [shard(f"{number}.jsonl") for number in range(6)]
    order = in_order([], False, some)
    done = [listed(each) for each in order[:4]]
    assert in_order(done, False, some) == order[4:]
    assert in_order(done, False, order[3:]) == order[4:]
    assert in_order(done, False, []) == []


def test_a_shard_that_is_half_done_comes_first() -> None:
    some = [shard(f"{number}.jsonl") for number in range(8)]
    order = in_order([], False, some)
    done = [listed(each) for each in order[:4]]
    assert in_order(done, True, some) == order[3:]
    assert in_order(done, True, [order[3]]) == [order[3]]


@pytest.mark.parametrize("is_half_done", [False, True])
def test_a_shard_that_has_changed_is_refused(is_half_done: bool) -> None:
    some = [shard(f"{number}.jsonl") for number in range(4)]
    order = in_order([], False, some)
    done = [listed(each) for each in order[:2]]
    for changed in order[:2]:
        found = [replace(each, version="101-2") if each == changed else each for each in some]
        with pytest.raises(CorpusError, match=f"{changed.name} has changed"):
            in_order(done, is_half_done, found)


def test_a_shard_that_is_half_done_and_gone_is_asked_for() -> None:
    some = [shard(f"{number}.jsonl") for number in range(4)]
    order = in_order([], False, some)
    done = [listed(each) for each in order[:2]]
    with pytest.raises(CorpusError, match=f"{order[1].name} is ingested by half"):
        in_order(done, True, [order[0], *order[2:]])


def test_a_key_tells_files_of_one_name_apart() -> None:
    keys = {listed(shard(name, version)).key for name in ("a", "b", "") for version in ("1", "2", "")}
    assert len(keys) == 9
    assert listed(shard("a")).key == listed(replace(shard("a"), url="s3://elsewhere/a")).key
