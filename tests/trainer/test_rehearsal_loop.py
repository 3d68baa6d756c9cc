"""The steps of a loop: the rows mixed into its batches, the reports of their losses, and going on from a checkpoint."""

from dataclasses import replace
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
from replay_trainer.batches.added import IGNORED
from replay_trainer.batches.distilled import RehearsalLoss
from replay_trainer.client import ReplayClient
from replay_trainer.errors import InvalidTraining
from replay_trainer.methods.teacher import Teacher
from replay_trainer.plain import Rehearsal
from replay_trainer.rehearsal import RehearsalStream
from replay_trainer.rehearsal_loop import RehearsalLoop
from replay_trainer.reporting import LossReporter
from replay_trainer.session import RehearsalSession
from tests.trainer.plain_worlds import SEQ_LEN, VOCAB, a_run, ids_of, logits_for, rows, train_on


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


@pytest.mark.parametrize("batch", [tuple(rows().values()), list(rows().values()), rows()["input_ids"]])
def test_a_batch_without_names_is_refused_with_what_is_taken(client: ReplayClient, batch: Any) -> None:
    loop = a_run(client, "nameless").open(num_steps=1)
    with loop, pytest.raises(InvalidTraining, match=r'not a mapping of names to tensors; .*\{"input_ids": ids'):
        loop.mix(0, batch)


def test_a_batch_that_is_mixed_already_is_refused(client: ReplayClient) -> None:
    loop = a_run(client, "mixed-twice").open(num_steps=2)
    with loop:
        mixed = loop.mix(0, rows())
        for batch in (mixed, [mixed], {**rows(), "mixed_with_rehearsal": mixed}):
            with pytest.raises(InvalidTraining, match="is mixed already; mix each of the loader's batches once"):
                loop.mix(1, batch)  # type: ignore[arg-type]
        assert loop.mix(1, rows()).rehearsed.only_step.step == 1


def test_labels_that_are_no_tensor_are_refused(client: ReplayClient) -> None:
    loop = a_run(client, "label-lists").open(num_steps=1)
    with loop, pytest.raises(InvalidTraining, match="labels are a list, not a tensor; let the loader's collate_fn"):
        loop.mix(0, {**rows(), "labels": rows()["labels"].tolist()})


@pytest.mark.parametrize("evaluating", [torch.no_grad, torch.inference_mode])
def test_a_batch_of_an_evaluation_is_not_mixed(client: ReplayClient, evaluating: Any) -> None:
    loop = a_run(client, f"evaluated-{evaluating.__name__}").open(num_steps=1)
    with loop:
        with evaluating(), pytest.raises(InvalidTraining, match="without gradients, as in an evaluation"):
            loop.mix(0, rows())
        assert client.stats(loop.stream.run)["next_step"] == 0
        loop.mix(0, rows())
