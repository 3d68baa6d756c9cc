"""Runs and texts for pages: what a job would plan and report, without a model, and what nobody would write."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

import numpy as np
from fastapi.testclient import TestClient

from replay_service.wire.batches import Batch
from replay_service.wire.losses import LOSS_ROW
from replay_trainer.client import ReplayClient
from tests.gateway.worlds import batch_of, losses_of, report

DOMAINS: Final = ("books", "code", "encyclopedia", "forum", "law", "news", "recipes", "science")
NUM_QUANTILES: Final = 6
OWN: Final = {"origin": "http://127.0.0.1"}
NUM_TOKENS: Final = 100
RUN: Final = {"global_batch_size": 64, "injection_ratio": "0.2", "half_life_steps": 100.0, "report_window_steps": 256}


HOSTILE_TEXTS: Final = (
    "<script>document.title='run'</script>",
    '"><img src=x onerror=alert(1)>',
    "<svg onload=alert(2)></svg>",
    "</div></main></body><h1>another page</h1>",
    "{{ 7 * 7 }}{% raw %}",
    "\u202eright to left\u2066",
    "\x00\x07\x08\x9b31m",
    "\x1b[31mred\x1b[2J\x1b]0;title\x07\x1b]8;;http://127.0.0.1/\x07link",
    "\r\n\n  [bold]markup[/bold]",
    "x" * (1 << 20),
)
"""What a sample may say; the last one is a word of 1 MiB."""


def write_hostile_texts(corpus: Path, vocab_size: int = 300) -> None:
    """Give a corpus a tokenizer by whose words samples say hostile things."""
    words = [f"{HOSTILE_TEXTS[i % len(HOSTILE_TEXTS)]} {i}" for i in range(vocab_size)]
    model = {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": words[0]}
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"), None)
    (corpus / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model} | parts))


@dataclass
class Job:
    """A training job: it asks for each step's samples, and reports losses that rise with the steps.

    Attributes:
        rises: by how many nats each domain is forgotten in 100 steps.
        reports: whether it reports its losses.
    """

    client: ReplayClient
    run: str
    rises: Sequence[float] = (0.02, 0.03, 0.02, 0.3, 0.02, 0.03, 0.02, 0.02)
    num_quantiles: int = NUM_QUANTILES
    next_step: int = 0
    reports: bool = True
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def begin(self, corpus: str, **settings: Any) -> "Job":
        self.client.ensure_run(self.run, corpus, RUN | settings)
        return self

    def train(self, num_steps: int, window: int = 1) -> "Job":
        """Make further steps, of which `window` are asked for and reported at a time."""
        ends_at = self.next_step + num_steps
        while self.next_step < ends_at:
            window = min(window, ends_at - self.next_step)
            batch = self.client.batch(self.run, self.next_step, num_steps=window)
            if len(batch) and self.reports:
                self.client.report(self.run, self._losses(batch))
            self.next_step += window
        return self

    def _losses(self, batch: Batch) -> np.ndarray:
        """LOSS_ROW [n]."""
        domain = batch.stratum // self.num_quantiles
        rise = np.asarray(self.rises)[domain % len(self.rises)] * np.minimum(1.0, batch.step / 100)
        rows = np.zeros(len(batch), dtype=LOSS_ROW)
        rows["step"], rows["sample_id"], rows["rank"] = batch.step, batch.sample_id, 0
        rows["loss_nats"] = batch.base_loss + rise + self.rng.normal(0.0, 0.02, len(batch))
        rows["num_tokens"] = NUM_TOKENS
        rows["num_flips"] = self.rng.binomial(NUM_TOKENS, np.clip(rise, 0.0, 1.0))
        return rows


def train(client: TestClient, num_steps: int, first: int = 0) -> None:
    """Steps of the run `tune`, planned and reported."""
    for step in range(first, first + num_steps):
        batch = batch_of(client, step)
        report(client, losses_of(batch, 2.5 + step, 1)).raise_for_status()


def a_sample(client: TestClient) -> int:
    """One that the run `tune` has rehearsed."""
    (sample,) = client.get("/v1/runs/tune/samples?limit=1").json()["samples"]
    return int(sample["sample_id"])


def runs_in(html: str) -> list[str]:
    """The runs that a list shows, in its order."""
    return re.findall(r'<tr id="row-([^"]+)"', html)


def text_of(html: str) -> str:
    """The text of a page, as somebody reads it."""
    texts: list[str] = []
    parser = HTMLParser(convert_charrefs=True)
    parser.handle_data = texts.append  # type: ignore[method-assign]
    parser.feed(html)
    return re.sub(r"\s+", " ", " ".join(texts))
