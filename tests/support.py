"""The smallest worlds that tests need: a corpus without a model, a tiny model, a running service."""

import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import httpx2
import numpy as np
from numpy.typing import NDArray

from replay_service.corpus.manifest import DomainSummary, Manifest, Segment, read_manifest, write_manifest
from replay_service.corpus.segment_file import write_segment
from replay_service.corpus.segments import SampleRows
from replay_service.corpus.sketch import QuantileSketch
from replay_service.corpus.strata import Group, assign_strata
from replay_service.sampling.partition import extents_of

SEPARATOR = 0


def make_corpus(
    folder: Path,
    name: str = "wiki",
    *,
    domains: tuple[str, ...] = ("en", "fr"),
    rows_per_domain: int = 40,
    num_quantiles: int = 2,
    seq_len: int = 12,
    vocab_size: int = 300,
    rows_per_segment: int = 30,
    tokenizer_fingerprint: str = "none",
    seed: int = 0,
) -> Manifest:
    """A corpus of random rows at folder/name, through the project's own writing code, without a model."""
    rng = np.random.default_rng(seed)
    num_rows = rows_per_domain * len(domains)
    domain = np.repeat(np.arange(len(domains)), rows_per_domain)
    base_loss = rng.gamma(4.0, 1.0, num_rows).astype(np.float32)
    shares = np.arange(1, num_quantiles) / num_quantiles
    edges = np.stack([np.quantile(base_loss[domain == each], shares) for each in range(len(domains))])
    rows = _rows_of(rng, base_loss, assign_strata(base_loss, domain, edges), seq_len, vocab_size)
    (folder / name / "segments").mkdir(parents=True)
    segments = []
    for number, first in enumerate(range(0, num_rows, rows_per_segment)):
        part = rows.take(np.arange(first, min(first + rows_per_segment, num_rows)))
        segments.append(_write_segment(folder / name, number, part, generation=1))
    manifest = Manifest(
        name=name,
        generation=1,
        model="none",
        tokenizer_fingerprint=tokenizer_fingerprint,
        vocab_size=vocab_size,
        separator_id=SEPARATOR,
        seq_len=seq_len,
        precision="float32",
        num_quantiles=num_quantiles,
        partition_by="domain",
        topk=0,
        recipe="none",
        num_shards=len(domains),
        num_rows_of_next_shard=0,
        num_documents=num_rows,
        set_aside={},
        domains=[
            _summary_of(each, base_loss[domain == i], rows_per_domain * seq_len) for i, each in enumerate(domains)
        ],
        groups=[Group(each, 1, edges[i].tolist()) for i, each in enumerate(domains)],
        segments=segments,
    )
    write_manifest(folder / name, manifest)
    return manifest


def grow_corpus(
    folder: Path, name: str = "wiki", num_rows: int = 20, *, new_domain: str | None = None, seed: int = 0
) -> Manifest:
    """The next generation of a corpus that `make_corpus` made: one more segment, of rows of a new domain or of all."""
    manifest = read_manifest(folder / name)
    generation = manifest.generation + 1
    rng = np.random.default_rng([seed, generation])
    base_loss = rng.gamma(4.0, 1.0, num_rows).astype(np.float32)
    groups = manifest.groups
    if new_domain is None:
        group = rng.integers(0, len(groups), num_rows)
    else:
        shares = np.arange(1, manifest.num_quantiles) / manifest.num_quantiles
        groups = [*groups, Group(new_domain, generation, np.quantile(base_loss, shares).tolist())]
        group = np.full(num_rows, len(groups) - 1)
    stratum = assign_strata(base_loss, group, np.array([each.edges_nats for each in groups]))
    rows = _rows_of(rng, base_loss, stratum, manifest.seq_len, manifest.vocab_size)
    domains = {each.name: each for each in manifest.domains}
    for i in np.unique(group).tolist():
        more = _summary_of(groups[i].name, base_loss[group == i], int((group == i).sum()) * manifest.seq_len)
        domains[more.name] = domains[more.name].merged(more) if more.name in domains else more
    grown = replace(
        manifest,
        generation=generation,
        num_shards=manifest.num_shards + 1,
        num_documents=manifest.num_documents + num_rows,
        domains=list(domains.values()),
        groups=groups,
        segments=[
            *manifest.segments,
            _write_segment(folder / name, len(manifest.segments), rows, generation=generation),
        ],
    )
    write_manifest(folder / name, grown)
    return grown


def rescored_by(corpus: Path, model: Path | str) -> None:
    """Let the manifest of the corpus at `corpus` name a model, as if it had scored it."""
    write_manifest(corpus, replace(read_manifest(corpus), model=str(model)))


def _rows_of(
    rng: np.random.Generator,
    base_loss: NDArray[np.float32],
    stratum: NDArray[np.int64],
    seq_len: int,
    vocab_size: int,
) -> SampleRows:
    """Full rows of random tokens in the given strata, sorted by them."""
    shape = (len(base_loss), seq_len)
    correct = rng.random(shape) < 0.5
    correct[:, 0] = False
    return SampleRows(
        input_ids=rng.integers(1, vocab_size, shape).astype(np.uint16),
        length=np.full(len(base_loss), seq_len, dtype=np.int32),
        base_loss=base_loss,
        base_correct=np.packbits(correct, axis=1, bitorder="little"),
        stratum=stratum.astype(np.int32),
    ).take(np.argsort(stratum, kind="stable"))


def _write_segment(corpus: Path, number: int, rows: SampleRows, generation: int) -> Segment:
    file = f"segments/{number:08d}.arrow"
    written = write_segment(corpus / file, rows)
    extents = [(e.stratum, e.first_row, e.num_rows) for e in extents_of(number, rows.stratum.astype(np.int64))]
    return Segment(file, len(rows), extents, **asdict(written), generation=generation)


def _summary_of(domain: str, base_loss: NDArray[np.float32], num_tokens: int) -> DomainSummary:
    return DomainSummary(domain, len(base_loss), num_tokens, float(base_loss.mean()), sketch_of(base_loss).to_json())


def sketch_of(values: NDArray[np.floating]) -> QuantileSketch:
    sketch = QuantileSketch()
    sketch.add(values)
    return sketch


TINY_TEXTS = tuple(f"the cat of number {i} sat on the mat. le chat est ici." for i in range(50))


def make_tiny_model(
    folder: Path,
    *,
    vocab_size: int = 300,
    seed: int = 0,
    hidden_size: int = 32,
    positions: int = 64,
    texts: Sequence[str] = TINY_TEXTS,
) -> Path:
    """A randomly initialised Llama of about 30,000 parameters with a byte-level tokenizer, saved in `folder`.

    The tokenizer is trained on `texts`, and has as many tokens as they give, at most `vocab_size`.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=positions,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def running_service(
    root: Path,
    *,
    port: int | None = None,
    database_url: str | None = None,
    options: Sequence[str | Path] = (),
    trusted: ssl.SSLContext | None = None,
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A real server process on loopback: its base URL and the process. Without a URL its journal is in `root`.

    `options` are further ones of `serve`; with `trusted`, it is to serve HTTPS by a certificate that this trusts.
    """
    port = port or free_port()
    command = [sys.executable, "-m", "replay_service", "serve", "--root", str(root), "--port", str(port)]
    if database_url is not None:
        command += ["--database-url", database_url]
    command += map(str, options)
    with (root / "serve.log").open("ab") as log, subprocess.Popen(command, stderr=log) as process:
        base_url = f"{'http' if trusted is None else 'https'}://127.0.0.1:{port}"
        try:
            _await_ready(base_url, process, trusted or True)
            yield base_url, process
        finally:
            process.terminate()
            process.wait(timeout=20)


def _await_ready(base_url: str, process: "subprocess.Popen[bytes]", trusted: ssl.SSLContext | bool) -> None:
    for _ in range(400):
        assert process.poll() is None, "the service stopped; see serve.log"
        with suppress(httpx2.TransportError):
            if httpx2.get(f"{base_url}/readyz", verify=trusted).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError("the service did not become ready")
