"""A loop of one's own: what is mixed into its batches, what it is told of them, and going on from a checkpoint."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from torch import nn

from replay_service.language.losses import token_losses
from replay_service.testing import ServiceUnderTest, replay_service
from replay_trainer.batches.added import IGNORED
from replay_trainer.batches.distilled import RehearsalLoss
from replay_trainer.batches.rows import MixedInputs
from replay_trainer.client import ReplayClient
from replay_trainer.errors import CorpusMismatch, InvalidTraining
from replay_trainer.methods.teacher import Teacher
from replay_trainer.plain import Rehearsal, RehearsalLoop
from replay_trainer.rehearsal import RehearsalStream
from replay_trainer.reporting import LossReporter
from replay_trainer.session import RehearsalSession

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "own-loop.md"
SEQ_LEN = 12
VOCAB = 300
SETTINGS = {"global_batch_size": 4, "injection_ratio": "0.4", "injection_mode": "add", "policy": "uniform"}


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceUnderTest]:
    with replay_service(seq_len=SEQ_LEN, vocab_size=VOCAB) as found:
        yield found


@pytest.fixture(scope="module")
def client(service: ServiceUnderTest) -> Iterator[ReplayClient]:
    with service.client() as found:
        yield found


def a_run(client: ReplayClient, run: str, **changes: Any) -> Rehearsal:
    client.ensure_run(run, "pretraining", {**SETTINGS, **changes})
    return Rehearsal(client, run)


def rows(num_rows: int = 4, width: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, VOCAB, (num_rows, width), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids.clone()}


def logits_for(batch: MixedInputs) -> torch.Tensor:
    return torch.randn(*batch.inputs["input_ids"].shape, VOCAB, generator=torch.Generator().manual_seed(1))


def ids_of(batches: list[MixedInputs]) -> list[int]:
    return [int(each) for batch in batches for each in batch.rehearsed.sample_id]


def test_every_step_holds_the_loaders_rows_and_what_its_plan_rehearses(client: ReplayClient) -> None:
    with a_run(client, "counts").open(num_steps=6) as loop:
        batches = [loop.mix(step, rows(seed=step)) for step in range(6)]
    assert [len(each.inputs["input_ids"]) - each.num_rehearsed for each in batches] == [4] * 6
    # 0.4 of the whole: 8 rows on 12 of the loader's.
    assert sum(each.num_rehearsed for each in batches) == 16
    assert all(each.num_rehearsed == each.rehearsed.only_step.num_rehearsed for each in batches)


@given(st.integers(1, 3 * SEQ_LEN), st.sampled_from([1, 2, 4]), st.booleans())
def test_the_loaders_rows_stay_as_they_are_and_padding_counts_nowhere(
    client: ReplayClient, width: int, num_parts: int, has_mask: bool
) -> None:
    num_rows = 4 // num_parts
    parts = [rows(num_rows, width, seed) for seed in range(num_parts)]
    if has_mask:
        parts = [{**part, "attention_mask": (part["input_ids"] % 2)} for part in parts]
    with a_run(client, "widths").open(num_steps=1, on_existing="rewind") as loop:
        mixed = loop.spread(0, parts)
    assert max(each.num_rehearsed for each in mixed) - min(each.num_rehearsed for each in mixed) <= 1
    for part, batch in zip(parts, mixed, strict=True):
        for name, ours in part.items():
            assert torch.equal(batch.inputs[name][:num_rows, :width], ours)
        if batch.num_rehearsed:
            assert (batch.inputs["labels"][:num_rows, width:] == IGNORED).all()
            assert not batch.inputs["attention_mask"][:num_rows, width:].any()
            assert batch.inputs["attention_mask"][num_rows:].sum() == batch.rehearsed.length.sum()
            assert np.array_equal(batch.inputs["input_ids"][num_rows:, :SEQ_LEN].numpy(), batch.rehearsed.input_ids)


def test_each_rehearsed_row_is_reported_once_however_the_step_is_divided(client: ReplayClient) -> None:
    whole, parts = a_run(client, "whole"), a_run(client, "parts")
    with whole.open(num_steps=5) as loop, parts.open(num_steps=5) as other:
        for step in range(5):
            together = [loop.mix(step, rows())]
            apart = other.spread(step, [rows(1, seed=part) for part in range(4)])
            assert ids_of(together) == ids_of(apart)
            for each, owner in [(together[0], loop), *((part, other) for part in apart)]:
                owner.report(each, each.losses(logits_for(each)))
    for opened in (loop, other):
        assert opened.reporter.num_accepted == 13 and not opened.reporter.num_duplicate
    for run in ("whole", "parts"):
        stats = client.stats(run)
        assert (stats["rows_rehearsed"], stats["num_reported"], stats["num_pending"]) == (13, 13, 0)


def test_the_service_shows_what_was_trained_on_and_not_what_was_planned(client: ReplayClient) -> None:
    """The last batch of an epoch may be short, which no plan can know."""
    with a_run(client, "last-is-short").open(num_steps=5) as loop:
        for step in range(5):
            batch = loop.mix(step, rows(3 if step == 2 else 4))
            loop.report(batch, batch.losses(logits_for(batch)))
    stats = client.stats("last-is-short")
    trained = stats["trained"]
    assert (trained["next_step"], trained["num_rows"], trained["num_rehearsed_rows"]) == (5, 19 + 13, 13)
    assert trained["num_rehearsed_tokens"] == loop.trained.num_rehearsed_tokens
    assert trained["num_tokens"] == loop.trained.num_target_tokens + loop.trained.num_rehearsed_tokens
    assert stats["achieved_ratio"] == pytest.approx(13 / 32)
    assert stats["planned_ratio"] == pytest.approx(13 / 33)


def test_a_loop_that_ends_says_so_and_one_that_fails_does_not(client: ReplayClient) -> None:
    rehearsal = a_run(client, "ended")
    with pytest.raises(ZeroDivisionError), rehearsal.open(num_steps=6) as loop:
        loop.mix(0, rows())
        raise ZeroDivisionError
    assert client.run("ended")["state"] == "running"
    with rehearsal.open(num_steps=6):
        pass
    assert client.run("ended")["state"] == "running"
    with rehearsal.open(0, 2, num_steps=3, on_existing="rewind") as loop:
        with rehearsal.open(1, 2, num_steps=3, on_existing="rewind") as other:
            for step in range(2):
                loop.mix(step, rows(2))
                other.mix(step, rows(2))
        assert client.run("ended")["state"] == "running"
    assert client.run("ended")["state"] == "finished"
    with rehearsal.open(num_steps=6, first_step=2) as loop:
        loop.rewind()
        loop.mix(2, rows())
        assert client.run("ended")["state"] == "running"
        loop.mix(3, rows())
    assert client.run("ended")["state"] == "finished"


def test_a_service_that_does_not_hear_of_the_end_fails_no_job(client: ReplayClient) -> None:
    reporter = LossReporter(client, "nobody")
    session = RehearsalSession(RehearsalStream(client, "nobody", 0, 1, next_step=7), reporter)
    with capture_logs() as logs:
        session.finish()
    session.close()
    assert [each["num_steps"] for each in logs if each["event"] == "end_not_told"] == [7]


def test_a_loop_that_goes_on_from_a_checkpoint_counts_no_step_twice(client: ReplayClient) -> None:
    rehearsal = a_run(client, "each-step-once")
    with rehearsal.open(num_steps=6) as loop:
        for step in range(5):
            loop.mix(step, rows())
            if step == 2:
                state = loop.state_dict()
    with rehearsal.open(num_steps=6) as loop:
        loop.load_state_dict(state)
        loop.rewind()
        for step in range(3, 6):
            loop.mix(step, rows())
    trained = client.stats("each-step-once")["trained"]
    assert (trained["next_step"], trained["num_rows"]) == (6, 24 + 16)


def test_the_loss_of_a_rehearsed_row_is_of_its_own_tokens(client: ReplayClient) -> None:
    with a_run(client, "losses").open(num_steps=1) as loop:
        batch = loop.mix(0, rows(width=20))
        logits = logits_for(batch)
        first, length = 4, torch.from_numpy(batch.rehearsed.length.astype(np.int64))
        ids = torch.from_numpy(batch.rehearsed.input_ids.astype(np.int64))
        expected = token_losses(logits[first:, :SEQ_LEN], ids, length)
        assert torch.equal(batch.losses(logits).nll_BS, expected.nll_BS)
        with pytest.raises(InvalidTraining, match="every token of the mixed batch"):
            batch.losses(logits[:, :-1])


@given(weight=st.floats(0, 4))
def test_weighing_gives_the_mean_with_rehearsed_predictions_at_their_weight(
    client: ReplayClient, weight: float
) -> None:
    a_run(client, "weights")
    with Rehearsal(client, "weights", rehearsal_weight=weight).open(num_steps=1, on_existing="rewind") as loop:
        batch = loop.mix(0, rows())
    logits = logits_for(batch)
    labels = batch.inputs["labels"][:, 1:]
    nll = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels, reduction="none")
    found = batch.weigh(nll.sum() / batch.num_predictions, batch.losses(logits))
    expected = (nll[:4].sum() + weight * nll[4:].sum()) / (4 * 7 + batch.num_rehearsed * (SEQ_LEN - 1))
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


class TableModel(nn.Module):
    """A causal language model that knows the last token alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCAB, VOCAB)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table(input_ids))


@pytest.mark.parametrize(("rehearsal_loss", "share"), [("distill", 1.0), ("mixed", 0.5)])
@pytest.mark.parametrize("is_flat", [False, True])
def test_distilled_rows_learn_the_whole_distribution_of_the_base_model(
    client: ReplayClient, rehearsal_loss: RehearsalLoss, share: float, is_flat: bool
) -> None:
    model, batch = TableModel(), rows()
    teacher = Teacher.of(model)
    nn.init.normal_(model.table.weight)
    if is_flat:
        batch = {name: each.view(1, -1) for name, each in batch.items()}
        batch["position_ids"] = torch.arange(8).repeat(4)[None]
    rehearsal = replace(
        a_run(client, f"{rehearsal_loss}-{int(is_flat)}", injection_ratio="0.6", global_batch_size=1 if is_flat else 4),
        rehearsal_loss=rehearsal_loss,
        teacher=teacher,
        rehearsal_weight=3.0,
    )
    with rehearsal.open(num_steps=1) as loop:
        loop._keeps_apart = is_flat
        mixed = loop.mix(0, batch)
        logits = model(mixed.inputs["input_ids"]).logits
        losses = mixed.losses(logits)
        labels = mixed.inputs["labels"][:, 1:]
        mean = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        loss = mixed.weigh(mean, losses)
        loop.report(mixed, losses)
    assert mixed.num_rehearsed > 0
    ids, length = torch.from_numpy(mixed.rehearsed.input_ids.astype("int64")), mixed.rehearsed.length
    nats, learned = 0.0, 0.0
    for row in (each[:num] for each, num in zip(ids, length, strict=True)):
        log_q = model(row[:-1]).logits.double().log_softmax(1)
        with teacher.speaking() as base, torch.no_grad():
            log_p = base(row[:-1]).logits.double().log_softmax(1)
        nll = -log_q.gather(1, row[1:, None]).sum()
        kl = (log_p.exp() * (log_p - log_q)).sum()
        nats, learned = nats + nll, learned + (1 - share) * nll + share * kl
    expected = mean.double() + (3.0 * learned - nats) / int(mixed.num_predictions)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (found,), (wanted,) = (
        torch.autograd.grad(each, [model.table.weight], retain_graph=True) for each in (loss, expected)
    )
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


def test_distilled_rows_need_a_teacher_that_is_there(client: ReplayClient) -> None:
    rehearsal = replace(a_run(client, "no-teacher"), rehearsal_loss="distill")
    with pytest.raises(InvalidTraining, match=r"no teacher; give teacher=Teacher.of\(model\)"):
        rehearsal.open()
    with pytest.raises(CorpusMismatch, match="does not store the base model's likeliest tokens"):
        replace(rehearsal, teacher="stored").open()


def test_ranks_share_a_step_and_report_all_of_it_once(client: ReplayClient) -> None:
    with a_run(client, "alone").open(num_steps=5) as alone:
        whole = [ids_of([alone.mix(step, rows())]) for step in range(5)]
    rehearsal, shared = a_run(client, "shared"), []
    with rehearsal.open(0, 2, num_steps=5) as first, rehearsal.open(1, 2, num_steps=5) as second:
        for step in range(5):
            batches = [loop.mix(step, rows(2)) for loop in (first, second)]
            shared.append(ids_of(batches))
            for loop, batch in zip((first, second), batches, strict=True):
                loop.report(batch, batch.losses(logits_for(batch)))
    assert [sorted(each) for each in shared] == [sorted(each) for each in whole]
    stats = client.stats("shared")
    assert (stats["num_reported"], stats["num_pending"]) == (13, 0)


def test_a_loop_does_the_same_with_the_promise_that_the_injection_is_fixed(client: ReplayClient) -> None:
    mixed = []
    for promised in (False, True):
        run = a_run(client, f"promise-{int(promised)}", injection_ratio="0.05", injection_fixed=promised)
        with run.open(num_steps=20) as loop:
            batches = [loop.mix(step, rows()) for step in range(20)]
            for batch in batches:
                loop.report(batch, batch.losses(logits_for(batch)))
        mixed.append(batches)
        assert loop.reporter.num_accepted == 4
    for one, other in zip(*mixed, strict=True):
        assert ids_of([one]) == ids_of([other])
        assert all(torch.equal(other.inputs[name], each) for name, each in one.inputs.items())


def test_a_weight_that_no_gradient_would_feel_is_refused(client: ReplayClient) -> None:
    a_run(client, "frozen")
    with Rehearsal(client, "frozen", rehearsal_weight=0.5).open(num_steps=1) as loop:
        batch = loop.mix(0, rows())
    loss = torch.zeros((), requires_grad=True)
    with pytest.raises(InvalidTraining, match="their logits have no gradient"):
        batch.weigh(loss, batch.losses(logits_for(batch)))


def test_a_loop_that_goes_on_from_a_checkpoint_rehearses_the_same_samples(client: ReplayClient) -> None:
    def steps(loop: RehearsalLoop, first: int, end: int) -> list[list[int]]:
        found = []
        for step in range(first, end):
            batch = loop.mix(step, rows())
            loop.report(batch, batch.losses(logits_for(batch)))
            found.append(ids_of([batch]))
        return found

    rehearsal = a_run(client, "resumed", policy="mix_cd", feedback={"mode": "fenced", "lag": 2})
    with rehearsal.open(num_steps=8) as loop:
        steps(loop, 0, 4)
        state = loop.state_dict()
        after = steps(loop, 4, 8)
    with rehearsal.open(num_steps=8) as loop:
        loop.load_state_dict(state)
        loop.rewind()
        assert steps(loop, 4, 8) == after
    assert loop.reporter.num_rejected == 0


def test_the_last_step_may_be_asked_again_and_no_other(client: ReplayClient) -> None:
    with a_run(client, "again").open(num_steps=2) as loop:
        assert ids_of([loop.mix(0, rows())]) == ids_of([loop.mix(0, rows())])
        loop.mix(1, rows())
        with pytest.raises(InvalidTraining, match="steps come in order"):
            loop.mix(0, rows())
        with pytest.raises(InvalidTraining, match="opened for 2 steps"):
            loop.mix(2, rows())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "no labels"),
        ({"token_type_ids": torch.zeros(4, 8)}, "token_type_ids, of which"),
        ({"attention_mask": torch.ones(4, 1, 8, 8)}, "of one shape"),
    ],
)
def test_a_batch_that_cannot_be_mixed_is_refused(client: ReplayClient, changes: dict[str, Any], message: str) -> None:
    inputs = {name: each for name, each in {**rows(), **changes}.items() if each is not None}
    loop = a_run(client, "refused").open(num_steps=1, on_existing="rewind")
    with loop, pytest.raises(InvalidTraining, match=message):
        loop.mix(0, inputs)


def test_a_run_or_tokenizer_that_does_not_fit_the_loop_is_refused(client: ReplayClient, tiny_model: Path) -> None:
    from replay_service.language.tokenizer import load_tokenizer

    with pytest.raises(InvalidTraining, match="injection_mode 'add'"):
        a_run(client, "replacing", injection_mode="replace").open()
    with pytest.raises(InvalidTraining, match="takes 6 fine-tuning rows"):
        a_run(client, "sizes").open(global_batch_size=6)
    with pytest.raises(CorpusMismatch, match="not the one that corpus 'pretraining'"):
        Rehearsal(client, "sizes", tokenizer=load_tokenizer(str(tiny_model))).open()


def train_on(loop: RehearsalLoop, step: int, inputs: dict[str, torch.Tensor], **part: int) -> MixedInputs:
    batch = loop.mix(step, inputs, **part)
    assert isinstance(batch, MixedInputs)
    loop.report(batch, batch.losses(logits_for(batch)))
    return batch


@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_micro_batches_that_are_mixed_one_by_one_rehearse_each_row_of_the_step_once(
    client: ReplayClient, num_parts: int
) -> None:
    run = f"accumulated-{num_parts}"
    with a_run(client, run).open() as loop:
        for step in range(5):
            parts = [train_on(loop, step, rows(4 // num_parts), part=i, num_parts=num_parts) for i in range(num_parts)]
            assert sum(each.num_rehearsed for each in parts) == parts[0].rehearsed.only_step.num_rehearsed
            assert len(set(ids_of(parts))) == len(ids_of(parts))
    assert (loop.reporter.num_accepted, loop.reporter.num_duplicate) == (13, 0)
    assert (loop.trained.num_target_rows, loop.trained.num_rehearsed_rows) == (20, 13)


def test_a_step_that_was_reported_is_not_mixed_or_reported_again(client: ReplayClient) -> None:
    with a_run(client, "twice").open(num_steps=3) as loop:
        batch = train_on(loop, 0, rows())
        with pytest.raises(InvalidTraining, match=r"mixed and reported already; .* num_parts=n"):
            loop.mix(0, rows())
        with pytest.raises(InvalidTraining, match="reported already"):
            loop.report(batch, batch.losses(logits_for(batch)))
        with pytest.raises(InvalidTraining, match="reported in 1 parts, not in 2"):
            loop.mix(0, rows(2), part=1, num_parts=2)
        train_on(loop, 1, rows(2), part=0, num_parts=2)
        with pytest.raises(InvalidTraining, match="already for part 0"):
            loop.mix(1, rows(2), part=0, num_parts=2)
        with pytest.raises(InvalidTraining, match="part 2 of 2"):
            loop.mix(1, rows(2), part=2, num_parts=2)
        train_on(loop, 1, rows(2), part=1, num_parts=2)
        train_on(loop, 2, rows())
    assert loop.reporter.num_duplicate == 0 and loop.trained.num_target_rows == 12


@pytest.mark.parametrize(("num_rows", "world_size"), [(1, 1), (3, 1), (5, 1), (4, 2), (3, 3)])
def test_batches_that_are_not_as_large_as_the_run_expects_are_refused_at_the_first(
    client: ReplayClient, num_rows: int, world_size: int
) -> None:
    with a_run(client, f"size-{num_rows}-{world_size}").open(0, world_size, num_steps=3) as loop:
        with pytest.raises(InvalidTraining, match=f"step 0 has {num_rows} .*global_batch_size 4.*part= and num_parts="):
            loop.mix(0, rows(num_rows))
        assert loop.trained.num_target_rows == 0
        loop.mix(0, rows(4 // world_size))


@pytest.mark.parametrize("num_rows", [1, 2])
def test_ranks_may_share_a_batch_that_they_do_not_divide(client: ReplayClient, num_rows: int) -> None:
    with a_run(client, f"uneven-{num_rows}").open(1, 3, num_steps=2) as loop, capture_logs() as logs:
        assert loop.mix(0, rows(num_rows)).rehearsed.only_step.num_rehearsed == 2
        loop.mix(1, rows(num_rows))
    # Ranks that are not those of torch.distributed cannot add up their rows.
    assert [each["event"] for each in logs if each["log_level"] == "warning"] == ["rows_of_ranks_unchecked"]


def test_the_last_batch_of_an_epoch_may_be_smaller_and_is_counted(client: ReplayClient) -> None:
    with a_run(client, "epochs").open(num_steps=6) as loop:
        for step, num_rows in enumerate([4, 3, 4, 3]):
            train_on(loop, step, rows(num_rows))
        assert loop.trained.num_target_rows == 14
        assert loop.trained.num_rehearsed_rows == loop.metrics()["num_rehearsed_rows"] == 10
        assert loop.trained.rehearsed_share == loop.metrics()["rehearsed_share"] == pytest.approx(10 / 24)
        assert loop.trained.num_target_tokens == 14 * 7
        assert loop.trained.num_rehearsed_tokens == 10 * (SEQ_LEN - 1)
        with pytest.raises(InvalidTraining, match="step 4 has 3 fine-tuning rows"):
            loop.mix(4, rows(3))


def test_parts_that_were_never_mixed_are_noticed(client: ReplayClient) -> None:
    with a_run(client, "left-out").open(num_steps=5) as loop:
        loop.mix(0, rows(2), part=0, num_parts=2)
        with pytest.raises(InvalidTraining, match="step 0 has 2 fine-tuning rows on this rank in 2 parts"):
            loop.mix(1, rows(2), part=0, num_parts=2)
        loop.mix(0, rows(2), part=1, num_parts=2)
        loop.mix(1, rows(2), part=0, num_parts=2)
        with capture_logs() as logs:
            loop.mix(2, rows())
    assert [each["event"] for each in logs if each["log_level"] == "warning"] == ["rehearsed_rows_left_out"]


def test_a_loop_that_tells_its_batch_size_may_have_smaller_batches(client: ReplayClient) -> None:
    with a_run(client, "told").open(num_steps=3, global_batch_size=4) as loop:
        for step in range(3):
            loop.mix(step, rows(2))
        assert loop.trained.num_target_rows == 6


def test_the_counts_go_on_from_a_checkpoint(client: ReplayClient) -> None:
    rehearsal = a_run(client, "counted")
    with rehearsal.open(num_steps=4) as loop:
        for step in range(2):
            train_on(loop, step, rows())
        state, before = loop.state_dict(), loop.trained
        train_on(loop, 2, rows())
    with rehearsal.open(num_steps=4, on_existing="rewind") as loop:
        loop.load_state_dict(state)
        assert loop.trained == before
        train_on(loop, 2, rows(3))
        assert loop.trained.num_target_rows == 11


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


@pytest.mark.parametrize("batch", [tuple(rows().values()), list(rows().values()), rows()["input_ids"]])
def test_a_batch_without_names_is_refused_with_what_is_taken(client: ReplayClient, batch: Any) -> None:
    loop = a_run(client, "nameless").open(num_steps=1)
    with loop, pytest.raises(InvalidTraining, match=r'not a mapping of names to tensors; .*\{"input_ids": ids'):
        loop.mix(0, batch)


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
