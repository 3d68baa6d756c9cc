import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from replay_service.corpus.shards.archives import members_of
from replay_service.corpus.shards.documents import LINK
from replay_service.errors import UnusableSource
from tests.corpus.shard_files import archive, compressed, read, reasons, texts

ONE, TWO = archive([("0.txt", b"one")]), archive([("0.txt", b"two"), ("1.txt", b"three")])


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(compressed(path, content))
    return path


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.zst"])
def test_archives_end_to_end_are_read_to_the_last(tmp_path: Path, name: str) -> None:
    assert texts(written(tmp_path / name, ONE + TWO + ONE)) == ["one", "two", "three", "one"]


def test_an_archive_that_is_appended_to_a_compressed_one_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(compressed(path, ONE) + compressed(path, TWO))
    assert texts(path) == ["one", "two", "three"]


@pytest.mark.parametrize("num_zeros", [512, 1024, 1 << 20])
def test_any_number_of_blocks_of_zeros_ends_an_archive(tmp_path: Path, num_zeros: int) -> None:
    bare = ONE[:1024]
    assert texts(written(tmp_path / "a.tar", bare + b"\0" * num_zeros + TWO)) == ["one", "two", "three"]
    assert texts(written(tmp_path / "a.tar", bare + b"\0" * num_zeros)) == ["one"]


@pytest.mark.parametrize("after", [b"garbage", b"garbage" * 1000, TWO[:700], TWO[:1024], b"\0" * 100 + TWO])
def test_what_is_no_archive_after_one_is_refused(tmp_path: Path, after: bytes) -> None:
    with pytest.raises(UnusableSource, match=r"a\.tar cannot be read: .*(breaks off or is damaged|end of data)"):
        read(written(tmp_path / "a.tar", ONE + after))


def test_no_member_is_lost_to_another_one_of_its_name(tmp_path: Path) -> None:
    members = [("0.txt", b"first"), ("0.txt", b"second"), ("1.txt", b"third"), ("0.txt", b"fourth")]
    assert texts(written(tmp_path / "a.tar", archive(members))) == ["first", "second", "third", "fourth"]
    described = [("0.json", b'{"text": "a"}'), ("0.json", b'{"text": "b"}'), ("0.txt", b"c"), ("0.jpg", b"")]
    assert texts(written(tmp_path / "a.tar", archive(described))) == ["a", "c"]


def test_names_of_any_length_and_folders_are_read(tmp_path: Path) -> None:
    long = "f/" * 60 + "x" * 200
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w", format=form) as file:
            for name, text in ((f"./{long}.txt", b"long"), ("é/b.c.txt", b"no text"), ("é/d.txt", b"accented")):
                member = tarfile.TarInfo(name)
                member.size = len(text)
                file.addfile(member, io.BytesIO(text))
        found = {str(each.path): each.content() for each in members_of(io.BytesIO(content.getvalue())) if each.content}
        assert found == {f"{long}.txt": b"long", "é/b.c.txt": b"no text", "é/d.txt": b"accented"}


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_a_sparse_member_is_read_with_its_holes(tmp_path: Path, form: str) -> None:
    with (tmp_path / "a.txt").open("wb") as file:
        file.write(b"head")
        file.seek(1 << 20)
        file.write(b"tail")
    (tmp_path / "b.txt").write_text("next")
    command = ["tar", "--sparse", f"--format={form}", "-cf", "x.tar", "a.txt", "b.txt"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert (tmp_path / "x.tar").stat().st_size < 1 << 20
    first, second = texts(tmp_path / "x.tar")
    assert (first.strip("\0"), len(first), second) == ("head" + "\0" * ((1 << 20) - 4) + "tail", (1 << 20) + 4, "next")


def test_a_link_is_set_aside(tmp_path: Path) -> None:
    content = io.BytesIO(ONE)
    with tarfile.open(fileobj=content, mode="a") as file:
        for name, kind in (("1.txt", tarfile.LNKTYPE), ("2.json", tarfile.SYMTYPE), ("3.jpg", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "0.txt"
            file.addfile(member)
    path = written(tmp_path / "a.tar", content.getvalue())
    assert [reason for _, reason in reasons(path)][:2] == [LINK, LINK]
    assert len(read(path)) == 4
