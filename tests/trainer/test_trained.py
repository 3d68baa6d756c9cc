"""Counts of what a loop has trained on, and the refusal of batches that are not as large as their run expects."""

import pytest
from structlog.testing import capture_logs

from replay_trainer.client import ReplayClient
from replay_trainer.errors import InvalidTraining
from tests.trainer.plain_worlds import SEQ_LEN, a_run, logits_for, rows, train_on


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


def test_a_loop_that_tells_its_batch_size_may_have_smaller_batches(client: ReplayClient) -> None:
    with a_run(client, "told").open(num_steps=3, global_batch_size=4) as loop:
        for step in range(3):
            loop.mix(step, rows(2))
        assert loop.trained.num_target_rows == 6
