"""How much memory an ingest takes, and how little of that depends on the text: `python -m tests.benchmarks.memory`.

README.md in this folder says what is counted.
"""

import argparse
import json
import multiprocessing
import re
import resource
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

import psutil

from tests.benchmarks.ratios import as_table
from tests.support import make_tiny_model

DOCUMENT_CHARACTERS = 4000
SHARD_MEGABYTES = 2
SECONDS_BETWEEN = 0.25
_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=8, help="of text, at first")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10], help="how many times as much to ingest")
    parser.add_argument("--document", type=int, nargs="+", help="pack one plain text of so many MiB instead")
    wanted = parser.parse_args()
    print(memory(wanted.megabytes, wanted.times) if wanted.document is None else packing(wanted.document))


def memory(megabytes: int, times: Sequence[int]) -> str:
    """The peaks of ingests of more and more text, each in processes of its own."""
    texts = source_texts()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = make_tiny_model(
            Path(folder) / "model", vocab_size=1000, hidden_size=16, positions=128, texts=texts[:200]
        )
        first: int | None = None
        for each in times:
            home = Path(folder) / str(each)
            write_shards(home / "source", texts, each * megabytes)
            seconds, peak = watched(home, model)
            first = first or peak.total
            rows.append(
                [
                    f"{each * megabytes} MB",
                    f"{seconds:.0f} s",
                    *(f"{peak.of_role.get(role, 0) >> 20} MiB" for role in ("driver", "scorer", "others")),
                    f"{peak.total >> 20} MiB",
                    f"{peak.total / first:.2f}",
                ]
            )
    return as_table(["text", "time", "driver", "scorer", "packer and Ray", "together", "ratio"], rows)


def packing(mebibytes: Sequence[int]) -> str:
    """The peaks of packing plain texts, each of which is one document, in a process of its own."""
    whole = "".join(source_texts()).encode()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = make_tiny_model(
            Path(folder) / "model", vocab_size=1000, hidden_size=16, positions=128, texts=source_texts()[:200]
        )
        for each in mebibytes:
            path = Path(folder) / f"{each}.txt"
            with path.open("wb") as file:
                for _ in range(0, each << 20, len(whole)):
                    file.write(whole[: (each << 20) - file.tell()])
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                num_rows, before, peak = process.submit(run_packing, path, model).result()
            rows.append([f"{each} MiB", f"{num_rows:,}", f"{before >> 20} MiB", f"{peak >> 20} MiB"])
    return as_table(["document", "rows", "before packing", "peak"], rows)


def source_texts() -> list[str]:
    """Pieces of the source of Python's standard library."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    whole = "".join(each.read_text(encoding="utf-8", errors="ignore") for each in modules)
    return [whole[first : first + DOCUMENT_CHARACTERS] for first in range(0, len(whole), DOCUMENT_CHARACTERS)]


def write_shards(folder: Path, texts: Sequence[str], megabytes: int) -> None:
    """JSON lines of the texts, over and over."""
    folder.mkdir(parents=True)
    endless = cycle(texts)
    for number in range(-(-megabytes // SHARD_MEGABYTES)):
        some = islice(endless, SHARD_MEGABYTES * 1_000_000 // DOCUMENT_CHARACTERS)
        lines = (json.dumps({"text": text}) + "\n" for text in some)
        (folder / f"python-{number:05d}.jsonl").write_text("".join(lines))


# In a process of its own


def run_ingest(home: Path, model: Path) -> None:
    from replay_service.corpus.ingest.driver import ingest
    from replay_service.corpus.ingest.settings import IngestSettings
    from replay_service.ray_session import start_ray

    start_ray()
    ingest(
        IngestSettings(
            str(home / "source"),
            home / "corpora",
            "python",
            str(model),
            seq_len=128,
            precision="float32",
            rows_per_segment=8192,
        )
    )


def run_packing(path: Path, model: Path) -> tuple[int, int, int]:
    """How many rows a plain text gives, and the most resident memory before and while it is packed, bytes."""
    from replay_service.corpus.ingest.pack_shard import pack_shard
    from replay_service.corpus.ingest.pipeline_settings import PipelineSettings
    from replay_service.corpus.shards.sources import Columns, find_shards
    from replay_service.language.tokenizer import ends_of, load_tokenizer, vocab_size

    (shard,), tokenizer = find_shards(path), load_tokenizer(str(model))
    settings = PipelineSettings(
        model=str(model),
        ends=ends_of(tokenizer),
        vocab_size=vocab_size(tokenizer),
        seq_len=128,
        columns=Columns(),
        precision="float32",
        batch_size=8,
        num_scorers=1,
        gpus_per_scorer=0,
        threads_per_scorer=1,
        topk=0,
        features=False,
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    num_rows = sum(len(part.rows or ()) for part in pack_shard(shard, settings))
    return num_rows, before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


# Watching it


@dataclass
class Peak:
    """The most memory at a time, bytes: the sum of what every process has to itself and its share of what it shares."""

    total: int = 0
    of_role: dict[str, int] = field(default_factory=dict)


def watched(home: Path, model: Path) -> tuple[float, Peak]:
    """The seconds that an ingest takes, and its peak."""
    process = multiprocessing.get_context("spawn").Process(target=run_ingest, args=(home, model))
    began, peak = time.perf_counter(), Peak()
    process.start()
    while process.is_alive():
        of_role: dict[str, int] = {}
        for role, num_bytes in shares(process.pid or 0):
            of_role[role] = of_role.get(role, 0) + num_bytes
        if sum(of_role.values()) > peak.total:
            peak = Peak(sum(of_role.values()), of_role)
        process.join(SECONDS_BETWEEN)
    if process.exitcode:
        raise SystemExit("the ingest failed")
    return time.perf_counter() - began, peak


def shares(pid: int) -> Iterator[tuple[str, int]]:
    """The role of the driver and of every process that it has started, and its proportional set size, bytes."""
    driver = psutil.Process(pid)
    for process in [driver, *driver.children(recursive=True)]:
        try:
            name = " ".join(process.cmdline())
            found = _PSS.search(Path(f"/proc/{process.pid}/smaps_rollup").read_text())
        except (psutil.NoSuchProcess, OSError):
            continue  # it has ended
        role = "driver" if process == driver else "scorer" if "ScoreParts" in name else "others"
        yield role, int(found[1]) << 10 if found else 0


if __name__ == "__main__":
    main()
