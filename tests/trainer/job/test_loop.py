from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from replay_service.language.model import load_model
from replay_service.language.tokenizer import load_tokenizer
from replay_trainer.batches.mixing import MixedBatch
from replay_trainer.client import ReplayClient
from replay_trainer.config import TrainConfig
from replay_trainer.errors import InvalidTraining
from replay_trainer.job.feed import open_feed
from replay_trainer.job.loop import fine_tune
from replay_trainer.job.metrics import MetricsFile
from replay_trainer.job.objective import Counts, Objective
from replay_trainer.job.ray_train import preflight
from replay_trainer.job.stopwatch import Stopwatch
from tests.trainer.worlds import AloneWorker, a_job, train_together, write_text


def losses_of(output: Path) -> list[float]:
    return [line["target_loss"] for line in MetricsFile(output / "metrics.jsonl").lines() if line["kind"] == "step"]


def test_training_lowers_the_target_loss(tmp_path: Path, tiny_model: Path) -> None:
    job = a_job(tmp_path, tiny_model, None, num_steps=60, learning_rate=3e-3)
    fine_tune(job, "float32", AloneWorker())
    losses = losses_of(tmp_path)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_it_is_the_plain_loop_when_nothing_is_rehearsed(tmp_path: Path, tiny_model: Path) -> None:
    job = a_job(tmp_path, tiny_model, None, num_steps=3, schedule="constant")
    fine_tune(job, "float32", AloneWorker())
    got = losses_of(tmp_path)

    from replay_trainer.batches.target import TargetRows, load_target

    rows = TargetRows(load_target(job.data, None, load_tokenizer(job.model)), job.seed)
    model = load_model(job.model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    for step in range(3):
        batch = rows.take(range(4 * step, 4 * step + 4))
        assert (batch.length == job.data.seq_len).all()
        ids = torch.from_numpy(batch.input_ids.astype("int64"))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert got[step] == pytest.approx(loss.item(), abs=1e-5)


def gradients(model: Any, ids_BT: torch.Tensor, length_B: torch.Tensor) -> list[torch.Tensor]:
    """The gradients of the objective of one rank that is alone, with every method off."""
    model.zero_grad()
    batch = MixedBatch(ids_BT, length_B, None)
    objective = Objective("float32", "cross_entropy", None, Stopwatch(torch.device("cpu")))
    loss = objective.measure(model, batch, Counts(*Counts.of(batch).tolist()), 1).loss
    assert torch.isfinite(loss)
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_row_that_could_not_be_read_changes_no_gradient(tiny_model: Path, place: int) -> None:
    model = load_model(str(tiny_model)).train()
    rows, lengths = torch.randint(1, 300, (3, 12)), torch.tensor([12, 5, 9])
    with_unread = torch.cat([rows[:place], torch.zeros(1, 12, dtype=torch.int64), rows[place:]])
    lengths_with = torch.cat([lengths[:place], torch.zeros(1, dtype=torch.int64), lengths[place:]])
    expected, got = gradients(model, rows, lengths), gradients(model, with_unread, lengths_with)
    for one, other in zip(expected, got, strict=True):
        torch.testing.assert_close(one, other)


def test_a_batch_of_which_nothing_could_be_read_trains_nothing(tiny_model: Path) -> None:
    model = load_model(str(tiny_model)).train()
    unread = gradients(model, torch.zeros(2, 12, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    assert not any(gradient.any() for gradient in unread)


def test_reports_add_up_to_what_was_rehearsed(tmp_path: Path, tiny_model: Path, service_url: str) -> None:
    job = a_job(tmp_path, tiny_model, service_url, run="sums", policy="mix_cd", num_steps=20)
    fine_tune(job, preflight(job), AloneWorker())
    with ReplayClient(service_url) as client:
        stats, strata = client.stats("sums"), client.strata("sums")
    steps = [line for line in MetricsFile(tmp_path / "metrics.jsonl").lines() if line["kind"] == "step"]
    assert stats["rows_rehearsed"] == stats["num_reported"] == sum(step["num_rehearsed"] for step in steps) == 24
    assert (stats["state"], stats["rows_due"]) == ("finished", 24.0)
    assert stats["num_tokens"] == sum(step["num_rehearsed_tokens"] for step in steps)
    assert stats["achieved_ratio"] == stats["planned_ratio"] == 24 / 80 == 0.3
    for name in ("num_rows", "num_tokens", "num_rehearsed_tokens"):
        assert stats["trained"][name] == sum(step[name] for step in steps)
    for name in ("num_reported", "num_tokens", "num_flips"):
        assert sum(each[name] for each in strata) == stats[name]


class ChecksReports(AloneWorker):
    """Looks at every checkpoint whether all that was rehearsed until then was reported."""

    def __init__(self, url: str, run: str) -> None:
        super().__init__()
        self._url, self._run = url, run
        self.seen: list[tuple[int, int]] = []

    def save(self, state: dict[str, Any], step: int) -> None:
        super().save(state, step)
        with ReplayClient(self._url) as client:
            stats = client.stats(self._run)
        self.seen.append((stats["num_reported"], stats["trained"]["next_step"] - step))


def test_reports_are_durable_before_a_checkpoint(tmp_path: Path, tiny_model: Path, service_url: str) -> None:
    job = a_job(tmp_path, tiny_model, service_url, run="flushed", num_steps=12)
    job = job.model_copy(update={"checkpoint_every": 1})
    worker = ChecksReports(service_url, "flushed")
    fine_tune(job, preflight(job), worker)
    lines = MetricsFile(tmp_path / "metrics.jsonl").lines()
    steps = [line["num_rehearsed"] for line in lines if line["kind"] == "step"]
    assert worker.seen == [(sum(steps[: step + 1]), 0) for step in range(12)]
    lines = [line for line in MetricsFile(tmp_path / "metrics.jsonl").lines() if "forgetting" in line]
    assert ["predicted_gain" in line for line in lines] == [False] * 11 + [True]
    assert "a prediction takes 60" in lines[-1]["predicted_gain"]["reason"]


def test_forgetting_is_measured_at_the_first_and_the_last_step(tmp_path: Path, tiny_model: Path) -> None:
    job = a_job(tmp_path, tiny_model, None)
    heldout = write_text(tmp_path / "held" / "news.parquet", 5)
    job = job.model_copy(update={"data": job.data.model_copy(update={"heldout_pretraining": str(heldout)})})
    fine_tune(job, "float32", AloneWorker())
    evaluations = MetricsFile(tmp_path / "metrics.jsonl").evaluations()
    assert list(evaluations) == [0, 10]
    assert list(evaluations[0]) == ["news"]


def test_a_resumed_loop_is_bitwise_the_same(tmp_path: Path, tiny_model: Path, service_url: str) -> None:
    whole = a_job(tmp_path / "whole", tiny_model, service_url, run="whole", num_steps=12, checkpoint_every=5)
    worker = AloneWorker()
    fine_tune(whole, preflight(whole), worker)
    again = a_job(tmp_path / "again", tiny_model, service_url, run="whole", num_steps=12, checkpoint_every=5)
    assert worker.state is not None
    assert worker.state["step"] == 10
    fine_tune(again, preflight(again), AloneWorker(worker.state))
    assert losses_of(tmp_path / "again") == losses_of(tmp_path / "whole")[10:]


def test_a_job_of_fewer_steps_than_its_checkpoint_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    job = a_job(tmp_path, tiny_model, None, num_steps=3)
    MetricsFile(tmp_path / "metrics.jsonl").append("step", 3)
    with pytest.raises(InvalidTraining, match="is of step 4, but the job has num_steps 3"):
        fine_tune(job, "float32", AloneWorker({"step": 4}))
    assert len(list(MetricsFile(tmp_path / "metrics.jsonl").lines())) == 1


def test_a_fenced_job_is_bitwise_the_same_however_its_requests_were_timed(
    tmp_path: Path, tiny_model: Path, service_url: str
) -> None:
    fenced = {"feedback": "fenced", "feedback_lag": 5}
    losses = []
    for name, window_steps in (("one", 1), ("two", 5)):
        rehearsal = {**fenced, "window_steps": window_steps}
        job = a_job(
            tmp_path / name, tiny_model, service_url, run=f"fenced-{name}", policy="mix_cd", rehearsal=rehearsal
        )
        fine_tune(job, preflight(job), AloneWorker())
        losses.append(losses_of(tmp_path / name))
    assert losses[0] == losses[1]


def test_a_job_is_bitwise_the_same_with_the_promise_that_its_injection_is_fixed(
    tmp_path: Path, tiny_model: Path, service_url: str
) -> None:
    def trained(name: str, promised: bool, state: dict[str, Any] | None = None) -> dict[str, Any] | None:
        rehearsal = {"feedback": "fenced", "feedback_lag": 5, "injection_fixed": promised}
        settings = {"policy": "mix_cd", "injection_ratio": "0.08", "num_steps": 14, "checkpoint_every": 8}
        run = f"promise-{int(promised)}"
        job = a_job(tmp_path / name, tiny_model, service_url, run=run, rehearsal=rehearsal, **settings)
        return train_together(job, preflight(job), 2, state)

    trained("asking", promised=False)
    state = trained("skipping", promised=True)
    assert losses_of(tmp_path / "skipping") == losses_of(tmp_path / "asking")
    assert state is not None and state["step"] == 8
    trained("resumed", promised=True, state=state)
    assert losses_of(tmp_path / "resumed") == losses_of(tmp_path / "asking")[8:]


def test_a_resumed_fenced_job_learns_what_it_learned(tmp_path: Path, tiny_model: Path, service_url: str) -> None:
    changes: dict[str, Any] = {"num_steps": 20, "checkpoint_every": 8, "policy": "mix_cd"}
    changes["rehearsal"] = {"feedback": "fenced", "feedback_lag": 4}
    worker = AloneWorker()
    whole = a_job(tmp_path / "whole", tiny_model, service_url, run="fenced-whole", **changes)
    fine_tune(whole, preflight(whole), worker)
    changes["rehearsal"] = {"feedback": "fenced", "feedback_lag": 4}
    again = a_job(tmp_path / "again", tiny_model, service_url, run="fenced-whole", **changes)
    fine_tune(again, preflight(again), AloneWorker(worker.state))
    assert losses_of(tmp_path / "again") == losses_of(tmp_path / "whole")[16:]
    with ReplayClient(service_url) as client:
        info, stats = client.run("fenced-whole"), client.stats("fenced-whole")
    assert (info["attempt"], info["next_step"]) == (2, 20)
    assert (stats["num_reported"], stats["num_pending"]) == (24, 0)


def test_a_ratio_that_changes_on_the_way_leaves_no_row_out(tmp_path: Path, tiny_model: Path, service_url: str) -> None:
    job = a_job(tmp_path, tiny_model, service_url, run="changing", rehearsal={"window_steps": 1})
    preflight(job)
    taken: list[int] = []
    with (
        open_feed(job, load_tokenizer(job.model), 0, 1) as feed,
        ReplayClient(service_url) as client,
    ):
        for step in range(job.num_steps):
            if step == 5:
                client.configure("changing", injection_ratio="0.75")
            batch = feed.next(step)
            assert len(batch.length_B) == job.global_batch_size
            taken.append(batch.num_rehearsed)
    assert taken[:5] == [1, 1, 1, 1, 2]
    assert taken[-3:] == [3, 3, 3]


@pytest.mark.parametrize("mode", ["replace", "add"])
def test_worlds_of_every_size_train_on_the_same_rows_in_each_step(
    tmp_path: Path, tiny_model: Path, service_url: str, mode: str
) -> None:
    job = a_job(
        tmp_path, tiny_model, service_url, run=f"sizes-{mode}", global_batch_size=7, rehearsal={"injection_mode": mode}
    )
    preflight(job)

    def rows_of_steps(world_size: int) -> list[list[bytes]]:
        """The rows of each step, whatever rank has them, in an order of their own."""
        with ExitStack() as stack:
            tokenizer = load_tokenizer(job.model)
            feeds = [stack.enter_context(open_feed(job, tokenizer, rank, world_size)) for rank in range(world_size)]
            found = []
            for step in range(job.num_steps):
                batches = [feed.next(step) for feed in feeds]
                sizes = [len(batch.length_B) for batch in batches]
                assert max(sizes) - min(sizes) <= (1 if mode == "replace" else 2)
                found.append(sorted(row.numpy().tobytes() for batch in batches for row in batch.input_ids_BT))
        return found

    alone = rows_of_steps(1)
    assert [len(rows) for rows in alone] == ([7] * 10 if mode == "replace" else [10] * 10)
    assert rows_of_steps(2) == rows_of_steps(3) == rows_of_steps(7) == alone


def test_a_checkpoint_of_two_workers_resumes_with_any_number_to_the_same_samples_and_losses(
    tmp_path: Path, tiny_model: Path, service_url: str
) -> None:
    """Three workers do not divide the four rows of a step, and a worker takes its share in parts."""

    def job(folder: str, run: str) -> TrainConfig:
        fenced = {"feedback": "fenced", "feedback_lag": 3}
        changes = {"num_steps": 12, "checkpoint_every": 7, "policy": "mix_cd", "micro_batch_size": 1}
        return a_job(tmp_path / folder, tiny_model, service_url, run=run, rehearsal=fenced, **changes)

    whole, begun = job("whole", "of-one"), job("begun", "of-two")
    fine_tune(whole, preflight(whole), AloneWorker())
    state = train_together(begun, preflight(begun), 2)
    expected = losses_of(whole.output)
    assert losses_of(begun.output) == pytest.approx(expected, abs=1e-5)
    with ReplayClient(service_url) as client:
        planned = client.batch("of-one", 0, num_steps=12).sample_id.tolist()
        for world_size in (1, 3):
            resumed = job(f"resumed-{world_size}", "of-two")
            train_together(resumed, preflight(resumed), world_size, state)
            assert losses_of(resumed.output) == pytest.approx(expected[7:], abs=1e-5)
            assert client.batch("of-two", 0, num_steps=12).sample_id.tolist() == planned
            stats = client.stats("of-two")
            assert stats["num_pending"] == 0 and stats["num_reported"] == stats["rows_rehearsed"] > 0


def test_rows_whose_loss_is_not_finite_are_counted_awaited_no_longer_and_teach_nothing(
    tmp_path: Path, tiny_model: Path, service_url: str
) -> None:
    broken = load_model(str(tiny_model))
    broken.model.norm.weight.data.fill_(float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    load_tokenizer(str(tiny_model)).save_pretrained(tmp_path / "broken")
    fenced = {"feedback": "fenced", "feedback_lag": 3}
    job = a_job(tmp_path / "job", tmp_path / "broken", service_url, run="broken", rehearsal=fenced, micro_batch_size=3)
    fine_tune(job, preflight(job), AloneWorker())
    steps = [line for line in MetricsFile(job.output / "metrics.jsonl").lines() if line["kind"] == "step"]
    assert [(step["num_nonfinite_rows"], step["target_loss"], step["rehearsed_loss"]) for step in steps] == [
        (4, None, None)
    ] * 10
    with ReplayClient(service_url) as client:
        stats = client.stats("broken")
    assert stats["num_unmeasured"] == stats["rows_rehearsed"] == 12
    assert (stats["num_reported"], stats["num_pending"], stats["forgetting"]["nats"]) == (0, 0, None)
