import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.corpus.ingest.shard_list import (
    SHARD_LIST_NAME,
    ListedShard,
    Pending,
    in_order,
    read_shard_list,
    write_shard_list,
)
from replay_service.corpus.shards.sources import Shard, find_shards
from replay_service.errors import CorpusError, UnusableSource

names = st.lists(st.from_regex(r"[a-z]{1,3}/[0-9]{1,3}\.jsonl", fullmatch=True), unique=True, max_size=12)


def write(folder: Path, *names: str, text: str = "") -> Path:
    """Shards whose content is their name, or `text`."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"text": text or name}))
    return folder


def numbered(folder: Path, num: int) -> list[Shard]:
    return find_shards(write(folder, *(f"{number}.jsonl" for number in range(num))))


def names_of(pending: Sequence[Pending]) -> list[str]:
    return [each.listed.name for each in pending]


def done_of(pending: Sequence[Pending]) -> list[ListedShard]:
    return [each.listed for each in pending]


def test_a_list_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    assert read_shard_list(tmp_path) == []
    shards = [ListedShard("web/één\n.jsonl", "12-3"), ListedShard("a\u2028b", ""), ListedShard("\udcff", "etag-7")]
    write_shard_list(tmp_path, shards)
    assert read_shard_list(tmp_path) == shards
    write_shard_list(tmp_path, shards[:1])
    assert read_shard_list(tmp_path) == shards[:1]
    assert [path.name for path in tmp_path.iterdir()] == [SHARD_LIST_NAME]


def test_the_list_of_an_early_release_is_read_and_written_as_it_was(tmp_path: Path) -> None:
    line = '{"name": "a.jsonl", "version": "100-1"}\n'
    (tmp_path / SHARD_LIST_NAME).write_text(line)
    shards = read_shard_list(tmp_path)
    assert shards == [ListedShard("a.jsonl", "100-1")]
    write_shard_list(tmp_path, shards)
    assert (tmp_path / SHARD_LIST_NAME).read_text() == line


def test_a_list_holds_no_secret_of_a_url(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe(f"/{tmp_path.name}/a.jsonl", b"{}")
    url = f"memory://me:swordfish@{tmp_path.name}/a.jsonl"
    shard = replace(find_shards(f"memory://{tmp_path.name}/a.jsonl")[0], url=url)
    entry = ListedShard(shard.name, shard.version, shard.place, "2-0")
    write_shard_list(tmp_path, [entry])
    text = (tmp_path / SHARD_LIST_NAME).read_text()
    assert "swordfish" not in text
    assert json.loads(text) == {**entry._asdict(), "place": f"memory://{tmp_path.name}/a.jsonl"}


@given(names.flatmap(lambda found: st.tuples(st.just(found), st.permutations(found))))
@settings(max_examples=20, deadline=None)
def test_the_order_of_new_shards_is_stable_and_does_not_depend_on_the_order_they_were_found_in(
    tmp_path_factory: pytest.TempPathFactory, names: tuple[list[str], list[str]]
) -> None:
    folder = write(tmp_path_factory.mktemp("source"), *names[0], "z.jsonl")
    shard = {each.name: each for each in find_shards(folder)}
    first, second = (names_of(in_order([], False, [shard[name] for name in each])) for each in names)
    assert first == second
    assert sorted(first) == sorted(names[0])


def test_the_order_has_nothing_to_do_with_the_names(tmp_path: Path) -> None:
    names = [f"{domain}/{number:03d}.jsonl" for domain in ("code", "news", "web") for number in range(100)]
    order = names_of(in_order([], False, find_shards(write(tmp_path, *names))))
    for part in range(5):
        domains = [name.split("/")[0] for name in order[60 * part : 60 * part + 60]]
        assert all(8 <= domains.count(domain) <= 34 for domain in ("code", "news", "web"))


def test_more_shards_leave_the_others_in_their_order(tmp_path: Path) -> None:
    some = numbered(tmp_path, 30)
    order = names_of(in_order([], False, some[:20]))
    assert [name for name in names_of(in_order([], False, some)) if name in order] == order


def test_shards_that_are_done_are_not_read_again_and_may_be_gone(tmp_path: Path) -> None:
    some = numbered(tmp_path, 6)
    order = in_order([], False, some)
    done = done_of(order[:4])
    assert in_order(done, False, some) == order[4:]
    assert in_order(done, False, [each.shard for each in order[3:]]) == order[4:]
    assert in_order(done, False, []) == []


def test_a_shard_that_is_half_done_comes_first(tmp_path: Path) -> None:
    some = numbered(tmp_path, 8)
    order = in_order([], False, some)
    done = done_of(order[:4])
    assert in_order(done, True, some) == order[3:]
    assert in_order(done, True, [order[3].shard]) == [order[3]]


def test_a_shard_that_is_half_done_and_gone_is_asked_for(tmp_path: Path) -> None:
    order = in_order([], False, numbered(tmp_path, 4))
    with pytest.raises(CorpusError, match=f"{order[1].listed.name} is ingested by half"):
        in_order(done_of(order[:2]), True, [each.shard for each in (order[0], *order[2:])])


@pytest.mark.parametrize("is_half_done", [False, True])
def test_a_shard_that_has_changed_is_refused_with_what_it_was_and_is(tmp_path: Path, is_half_done: bool) -> None:
    order = in_order([], False, numbered(tmp_path, 4))
    done = done_of(order[:2])
    write(tmp_path, done[1].name, text="another")
    with pytest.raises(CorpusError, match=f"{done[1].name} has changed since it was ingested: .*{done[1].fingerprint}"):
        in_order(done, is_half_done, find_shards(tmp_path))


def test_a_change_that_leaves_the_size_is_noticed(tmp_path: Path) -> None:
    done = done_of(in_order([], False, find_shards(write(tmp_path, "a.jsonl", text="one"))))
    with pytest.raises(CorpusError, match=r"a\.jsonl has changed"):
        in_order(done, False, find_shards(write(tmp_path, "a.jsonl", text="two")))


@pytest.mark.parametrize("is_half_done", [False, True])
def test_a_shard_that_was_only_touched_is_the_same(tmp_path: Path, is_half_done: bool) -> None:
    order = in_order([], False, numbered(tmp_path, 4))
    for path in tmp_path.iterdir():
        os.utime(path, ns=(1, 1))
    pending = in_order(done_of(order[:2]), is_half_done, find_shards(tmp_path))
    assert names_of(pending) == names_of(order[2 - is_half_done :])
    assert pending[0].listed == order[1].listed or not is_half_done


def test_a_shard_is_known_by_whatever_way_it_is_found(tmp_path: Path) -> None:
    write(tmp_path / "shards", "python/a.jsonl", "c/a.jsonl")
    (tmp_path / "link").symlink_to(tmp_path / "shards/python")
    done = done_of(in_order([], False, find_shards(tmp_path / "shards")))
    for way in ("shards/python", "shards/python/a.jsonl", "shards/*/a.jsonl", "link", "link/a.jsonl"):
        assert in_order(done, False, find_shards(tmp_path / way)) == []


def test_a_folder_that_was_moved_holds_the_same_shards(tmp_path: Path) -> None:
    write(tmp_path / "here", "a.jsonl", "b.jsonl")
    done = done_of(in_order([], False, find_shards(tmp_path / "here")))
    (tmp_path / "here").rename(tmp_path / "there")
    assert in_order(done, False, find_shards(tmp_path / "there")) == []


def test_a_shard_of_another_folder_is_another_one_whatever_its_name(tmp_path: Path) -> None:
    done = done_of(in_order([], False, find_shards(write(tmp_path / "one", "docs.jsonl", text="one"))))
    pending = in_order(done, False, find_shards(write(tmp_path / "two", "docs.jsonl", text="two")))
    assert names_of(pending) == ["docs.jsonl"]
    assert pending[0].listed.key != done[0].key


@pytest.mark.parametrize("is_half_done", [False, True])
def test_the_shards_of_an_early_release_are_known_by_name_and_size(tmp_path: Path, is_half_done: bool) -> None:
    order = in_order([], False, numbered(tmp_path, 4))
    done = [ListedShard(each.name, each.version) for each in done_of(order[:2])]
    for touched in (False, True):
        if touched:
            os.utime(tmp_path / done[1].name, ns=(1, 1))
        pending = in_order(done, is_half_done, find_shards(tmp_path))
        assert names_of(pending) == names_of(order[2 - is_half_done :])
        assert not is_half_done or pending[0].listed == done[1]
    write(tmp_path, done[1].name, text="of another size")
    with pytest.raises(CorpusError, match=r"has changed since it was ingested: one of this name had 1. bytes then"):
        in_order(done, is_half_done, find_shards(tmp_path))


def test_a_shard_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UnusableSource, match=r"shard .*gone\.jsonl cannot be read"):
        in_order([], False, find_shards(tmp_path))


def test_a_key_tells_shards_apart_and_does_not_depend_on_their_place(tmp_path: Path) -> None:
    keys = {ListedShard(name, version).key for name in ("a", "b", "") for version in ("1", "2", "")}
    keys |= {ListedShard(name, "1", "/x", fingerprint).key for name in ("a", "b") for fingerprint in ("3-0", "4-0")}
    assert len(keys) == 13
    assert ListedShard("a", "1", "/x", "3-0").key == ListedShard("a", "2", "/y", "3-0").key
