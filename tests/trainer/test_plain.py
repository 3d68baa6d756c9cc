"""A loop of one's own: how it is opened, the runs and models that it refuses, and a script that is run again."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from replay_service.testing import replay_service
from replay_trainer.client import ReplayClient
from replay_trainer.errors import CorpusMismatch, InvalidTraining
from replay_trainer.plain import Rehearsal
from tests.trainer.plain_worlds import SEQ_LEN, a_run, ids_of, rows, train_on

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "own-loop.md"


def test_distilled_rows_need_a_teacher_that_is_there(client: ReplayClient) -> None:
    rehearsal = replace(a_run(client, "no-teacher"), rehearsal_loss="distill")
    with pytest.raises(InvalidTraining, match=r"no teacher; give teacher=Teacher.of\(model\)"):
        rehearsal.open()
    with pytest.raises(CorpusMismatch, match="does not store the base model's likeliest tokens"):
        replace(rehearsal, teacher="stored").open()


def test_a_run_or_tokenizer_that_does_not_fit_the_loop_is_refused(client: ReplayClient, tiny_model: Path) -> None:
    from replay_service.language.tokenizer import load_tokenizer

    with pytest.raises(InvalidTraining, match="injection_mode 'add'"):
        a_run(client, "replacing", injection_mode="replace").open()
    with pytest.raises(InvalidTraining, match="takes 6 fine-tuning rows"):
        a_run(client, "sizes").open(global_batch_size=6)
    with pytest.raises(CorpusMismatch, match="not the one that corpus 'pretraining'"):
        Rehearsal(client, "sizes", tokenizer=load_tokenizer(str(tiny_model))).open()


def test_a_script_that_is_run_again_is_refused_or_begins_its_run_anew(client: ReplayClient) -> None:
    rehearsal, executions = a_run(client, "rerun"), []
    with pytest.raises(InvalidTraining, match="on_existing must be"):
        rehearsal.open(on_existing="go-on")  # type: ignore[arg-type]
    for on_existing in ("refuse", "rewind"):
        with rehearsal.open(num_steps=4, on_existing=on_existing) as loop:  # type: ignore[arg-type]
            executions.append([ids_of([train_on(loop, step, rows())]) for step in range(4)])
        assert (loop.reporter.num_accepted, loop.reporter.num_duplicate, loop.reporter.num_rejected) == (10, 0, 0)
    assert executions[0] == executions[1] and client.stats("rerun")["num_reported"] == 10
    with rehearsal.open(num_steps=4) as loop, pytest.raises(InvalidTraining, match=r"at step 4 already.*on_existing"):
        loop.mix(0, rows())
    with rehearsal.open(first_step=2, num_steps=4) as loop, pytest.raises(InvalidTraining, match="begins at step 2"):
        loop.mix(2, rows())
    assert client.run("rerun")["next_step"] == 4


@pytest.mark.parametrize(("every_steps", "num_warnings"), [(9, 0), (10, 1), (0, 1)])
def test_an_auto_ratio_that_no_step_of_the_job_decides_is_told_of(
    client: ReplayClient, every_steps: int, num_warnings: int
) -> None:
    budget = {"nats": 0.05, "every_steps": every_steps}
    run = a_run(client, f"auto-{every_steps}", injection_ratio="auto", budget=budget)
    with capture_logs() as logs:
        run.open(num_steps=10).close()
        run.open().close()
    assert [each["event"] for each in logs].count("ratio_stays_as_it_begins") == num_warnings


def test_ranks_wait_until_the_first_has_rewound(client: ReplayClient) -> None:
    rehearsal = a_run(client, "rerun-ranks")
    client.batch("rerun-ranks", 0, num_steps=4)
    attempt = client.run("rerun-ranks")["attempt"]
    loops = [rehearsal.open(rank, 2, num_steps=4, on_existing="rewind") for rank in range(2)]
    with loops[0], loops[1], ThreadPoolExecutor(1) as threads:
        second = threads.submit(loops[1].mix, 0, rows(2))
        first = loops[0].mix(0, rows(2))
        assert first.rehearsed.header.attempt == second.result().rehearsed.header.attempt == attempt + 1


def test_the_documentation_shows_a_loop_of_ones_own(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    (example,) = re.findall(r"```python\n([^`]*\.open\(rank=[^`]*)```", PAGE.read_text(), re.DOTALL)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = [each.detach().clone() for each in model.parameters()]
    names: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-3),
        "loader": [rows(8, SEQ_LEN, seed) for seed in range(4)],
    }
    with replay_service(seq_len=SEQ_LEN, vocab_size=model.config.vocab_size, serve=True) as service:
        exec(compile(example.replace("http://127.0.0.1:8400", service.url), str(PAGE), "exec"), names)
        names["client"].close()
        with service.client() as client:
            stats = client.stats("my-run")
    assert stats["num_reported"] > 0
    assert any(not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
