"""Real text of many domains and languages, from packages that are fetched once or are installed; none of it is here."""

import importlib.metadata
import re
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from replay_service.demo.materials import Amounts, cache_folder, write_shards

_TRANSLATIONS = "django==5.2.8"
_TRANSLATIONS_HASH = "37e687f7bd73ddf043e2b6b97cfe02fcbb11f2dbb3adccc6a2b18c6daa054d7f"
_MESSAGE = re.compile(r'^msgstr(?:\[\d\])? ((?:"[^\n]*"\n)+)', re.MULTILINE)
_MESSAGES_A_DOCUMENT = 20
_LANGUAGES = {"de": "german", "el": "greek", "ja": "japanese", "ru": "russian"}


def domains(scratch: Path, characters: int) -> dict[str, list[str]]:
    """Documents of each domain, of about so many characters: English, French, Spanish, German, Greek, Japanese,
    Russian, and what is written in Python and C."""
    write_shards(scratch, Amounts(corpus=characters, heldout=1, target=characters), seed=0)
    found: dict[str, list[str]] = {}
    for path in sorted(scratch.glob("pretraining/*.parquet")) + sorted(scratch.glob("target/*.parquet")):
        table = pq.read_table(path)
        found.setdefault(table["domain"][0].as_py(), []).extend(table["text"].to_pylist())
    distributions = sorted(importlib.metadata.distributions(), key=lambda each: each.name)
    site = Path(sysconfig.get_path("purelib"))
    installed: dict[str, Iterable[str]] = {
        "readmes": (str(each.metadata.get_payload()) for each in distributions),
        "licences": (_read(path) for path in sorted(site.glob("*.dist-info/**/LICENSE*")) if path.is_file()),
        "c_headers": (_read(path) for path in sorted(Path(np.get_include()).rglob("*.h"))),
        "type_stubs": (_read(path) for path in sorted(site.glob("numpy/**/*.pyi"))),
        **{name: _messages(code) for code, name in _LANGUAGES.items()},
    }
    return found | {name: list(_taken(texts, characters)) for name, texts in installed.items()}


def _taken(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        if characters > 0 and text.strip():
            characters -= len(text)
            yield text


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="ignore")


def _messages(language: str) -> Iterator[str]:
    """What Django says in a language."""
    with zipfile.ZipFile(_translations()) as archive:
        names = sorted(
            each for each in archive.namelist() if each.endswith(f"/locale/{language}/LC_MESSAGES/django.po")
        )
        messages = (
            "".join(each[1:-1] for each in match[1].splitlines()).replace(r"\n", "\n").replace(r"\"", '"')
            for name in names
            for match in _MESSAGE.finditer(archive.read(name).decode())
        )
        while some := list(islice(messages, _MESSAGES_A_DOCUMENT)):
            yield "\n".join(some)


def _translations() -> Path:
    folder = cache_folder() / "packages"
    if not list(folder.glob("django-*.whl")):
        wanted = folder / "django.txt"
        wanted.write_text(f"{_TRANSLATIONS} --hash=sha256:{_TRANSLATIONS_HASH}\n")
        command = [sys.executable, "-m", "pip", "--quiet", "download", "--no-deps", "--require-hashes"]
        subprocess.run([*command, "--dest", str(folder), "--requirement", str(wanted)], check=True)
    (wheel,) = folder.glob("django-*.whl")
    return wheel
