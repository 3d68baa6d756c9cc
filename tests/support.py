"""The smallest worlds that tests need: a corpus without a model, a tiny model, a running service."""

import os
import secrets
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import httpx2
import numpy as np
from numpy.typing import NDArray

from replay_service.corpus.format.manifest import Manifest, read_manifest, write_manifest
from replay_service.corpus.format.sketch import QuantileSketch
from replay_service.corpus.format.strata import Group, assign_strata
from replay_service.language.packing import PackedRows
from replay_service.testing.corpus import MadeUpCorpus, sample_rows, summary_of, write_rows


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
    topk: int = 0,
    seed: int = 0,
) -> Manifest:
    """A corpus of random rows at folder/name, through the project's own writing code, without a model."""
    made = MadeUpCorpus.random(domains, rows_per_domain, seq_len, vocab_size, seed)
    return made.write(
        folder / name,
        num_quantiles=num_quantiles,
        vocab_size=vocab_size,
        rows_per_segment=rows_per_segment,
        tokenizer_fingerprint=tokenizer_fingerprint,
        topk=topk,
    )


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
    shape = (num_rows, manifest.seq_len)
    is_right = rng.random(shape) < 0.5
    input_ids = rng.integers(1, manifest.vocab_size, shape).astype(np.uint16)
    packed = PackedRows(input_ids, np.full(num_rows, manifest.seq_len, dtype=np.int32))
    rows = sample_rows(packed, base_loss, is_right, stratum)
    domains = {each.name: each for each in manifest.domains}
    for i in np.unique(group).tolist():
        more = summary_of(groups[i].name, base_loss[group == i], int((group == i).sum()) * manifest.seq_len)
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
            write_rows(folder / name, len(manifest.segments), rows, generation),
        ],
    )
    write_manifest(folder / name, grown)
    return grown


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
    bos: bool = False,
) -> Path:
    """A randomly initialised Llama of about 30,000 parameters with a byte-level tokenizer, saved in `folder`.

    The tokenizer is trained on `texts`, and has as many tokens as they give, at most `vocab_size`. With `bos` it puts a
    token `<bos>` before a text.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", *(["<bos>"] if bos else [])],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    special = {"eos_token": "<|endoftext|>"}
    if bos:
        special["bos_token"] = "<bos>"
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
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
    """A port that nobody listens on, from below those that the system gives to clients.

    Of those, a client would take one as its own while the server behind it restarts; it may even reach itself.
    """
    while True:
        port = secrets.choice(range(20_000, 32_000))
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def processes_of(service: "subprocess.Popen[bytes]", kind: str) -> list[int]:
    """The process ids of the gateways of a service with several, or of its owner."""
    children = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()
    return [int(pid) for pid in children if kind in Path(f"/proc/{pid}/cmdline").read_text().split("\0")]


@contextmanager
def running_service(
    root: Path,
    *,
    port: int | None = None,
    database_url: str | None = None,
    options: Sequence[str | Path] = (),
    environment: Mapping[str, str] | None = None,
    trusted: ssl.SSLContext | None = None,
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A real server process on loopback: its base URL and the process. Without a URL its journal is in `root`.

    `options` are further ones of `serve`, and `environment` holds further variables. With `trusted`, it is to serve
    HTTPS by a certificate that this trusts.
    """
    port = port or free_port()
    command = [sys.executable, "-m", "replay_service", "serve", "--root", str(root), "--port", str(port)]
    if database_url is not None:
        command += ["--database-url", database_url]
    command += map(str, options)
    with (
        (root / "serve.log").open("ab") as log,
        subprocess.Popen(
            command, stderr=log, start_new_session=True, env={**os.environ, **(environment or {})}
        ) as process,
    ):
        base_url = f"{'http' if trusted is None else 'https'}://127.0.0.1:{port}"
        try:
            _await_ready(base_url, process, trusted or True)
            yield base_url, process
        finally:
            process.terminate()
            process.wait(timeout=60)


def _await_ready(base_url: str, process: "subprocess.Popen[bytes]", trusted: ssl.SSLContext | bool) -> None:
    for _ in range(400):
        assert process.poll() is None, "the service stopped; see serve.log"
        with suppress(httpx2.TransportError):
            if httpx2.get(f"{base_url}/readyz", verify=trusted).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError("the service did not become ready")
