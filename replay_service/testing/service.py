"""A whole service on a temporary corpus, until a block ends."""

import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2
import uvicorn
from fastapi import FastAPI
from numpy.typing import ArrayLike

from replay_service.gateway.app import create_app
from replay_service.settings import ServiceSettings
from replay_service.testing.corpus import Documents, MadeUpCorpus
from replay_service.testing.samples import LabelledSamples
from replay_service.testing.transport import in_process
from replay_trainer.client import ReplayClient

_URL: Final = "http://127.0.0.1"
_START_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class ServiceUnderTest:
    """A running service.

    Attributes:
        corpus: name of its corpus.
        url: where it is; only with `serve=True` can others reach it there.
        root: its folder, which is gone afterwards.
    """

    corpus: str
    url: str
    root: Path
    _transport: httpx2.BaseTransport | None

    def client(self, **options: Any) -> ReplayClient:
        """A client of it, as many as are wanted; `options` are those of ReplayClient."""
        return ReplayClient(self.url, **{"transport": self._transport, **options})


@contextmanager
def replay_service(
    documents: Documents | None = None,
    *,
    samples: LabelledSamples | None = None,
    seq_len: int = 16,
    vocab_size: int = 300,
    base_losses: ArrayLike | None = None,
    domains: Sequence[str] = ("en", "fr"),
    rows_per_domain: int = 40,
    num_quantiles: int = 2,
    seed: int = 0,
    corpus: str = "pretraining",
    tokenizer_fingerprint: str = "",
    topk: int = 0,
    serve: bool = False,
    settings: dict[str, Any] | None = None,
) -> Iterator[ServiceUnderTest]:
    """Serve a temporary corpus until the block ends. No model is needed, and the same call gives the same samples.

    Args:
        documents: token ids of the documents of each domain; they are packed into rows as an ingest packs them. By
            default the rows are random.
        samples: samples to classify instead, such as `LabelledSamples.random()`; of what follows up to `topk`, only
            `num_quantiles` and `corpus` concern them.
        seq_len: tokens in a row.
        vocab_size: token ids lie below it; 0 is the separator.
        base_losses: [number of rows] what the base model is said to lose on each row of the documents, nats per token;
            by default drawn from the seed, as is which tokens it got right.
        domains: those of random rows.
        rows_per_domain: how many random rows each has.
        num_quantiles: strata of each domain.
        seed: of all that is random.
        corpus: name of the corpus.
        tokenizer_fingerprint: of the corpus's tokenizer; `replay-trainer` compares it with its model's. Empty: not
            known, so that `replay_trainer.hf` compares nothing.
        topk: how many of the base model's likeliest tokens the corpus stores of each prediction.
        serve: listen on loopback, so that other processes such as Ray's workers can reach it. By default requests of
            `ServiceUnderTest.client` take no socket.
        settings: further settings of the service, by name. The environment's are left out.

    Raises:
        ValueError: when the documents do not make a corpus.
    """
    if documents is None:
        made = MadeUpCorpus.random(domains, rows_per_domain, seq_len, vocab_size, seed)
    else:
        made = MadeUpCorpus.of_documents(documents, seq_len, vocab_size, base_losses, seed)
    with tempfile.TemporaryDirectory(prefix="replay-test-") as folder, ExitStack() as stack:
        root = Path(folder)
        place = root / "corpora" / corpus
        if samples is None:
            made.write(
                place,
                num_quantiles=num_quantiles,
                topk=topk,
                vocab_size=vocab_size,
                tokenizer_fingerprint=tokenizer_fingerprint,
            )
        else:
            samples.write(place, num_quantiles=num_quantiles)
        app = create_app(_settings(root, settings or {}))
        if serve:
            yield ServiceUnderTest(corpus, stack.enter_context(_served(app)), root, None)
        else:
            yield ServiceUnderTest(corpus, _URL, root, stack.enter_context(in_process(app)))


def _settings(root: Path, settings: dict[str, Any]) -> ServiceSettings:
    """None comes from the environment: a test must not write the journal of another service."""
    return ServiceSettings(**{"root": root, "durability": "relaxed", **settings})


@contextmanager
def _served(app: FastAPI) -> Iterator[str]:
    """Serve an application on a free port of loopback, on a thread; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="replay-service")
        thread.start()
        try:
            _await_started(server, thread)
            yield f"{_URL}:{listener.getsockname()[1]}"
        finally:
            app.state.is_stopping = True  # those who follow events leave
            server.should_exit = True
            thread.join()


def _await_started(server: uvicorn.Server, thread: threading.Thread) -> None:
    ends_at = time.monotonic() + _START_S
    while not server.started and thread.is_alive() and time.monotonic() < ends_at:
        time.sleep(0.01)
    if not server.started:
        raise RuntimeError("the service did not start; its log says why")
