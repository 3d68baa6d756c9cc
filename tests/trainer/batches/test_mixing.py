import numpy as np
import pytest
import torch

from replay_service.language.losses import TokenLosses, token_losses
from replay_service.wire.batches import Batch, BatchHeader
from replay_trainer.batches.mixing import loss_rows, mix
from replay_trainer.batches.target import TrainingRows

SEQ_LEN = 5


def target_rows(num_rows: int) -> TrainingRows:
    ids = np.arange(num_rows * SEQ_LEN, dtype=np.uint16).reshape(num_rows, SEQ_LEN)
    return TrainingRows(ids, np.full(num_rows, SEQ_LEN, dtype=np.int32))


def rehearsed_rows(base_correct: list[list[int]], length: list[int]) -> Batch:
    num = len(length)
    return Batch(
        header=BatchHeader("a-run", 3, "wiki", 1, "0.5", 0, 1, SEQ_LEN, 0, []),
        step=np.full(num, 7),
        sample_id=np.arange(100, 100 + num),
        input_ids=np.full((num, SEQ_LEN), 3, dtype=np.uint16),
        length=np.array(length, dtype=np.int32),
        base_loss=np.ones(num, dtype=np.float32),
        base_correct=np.packbits(np.array(base_correct, dtype=bool), axis=1, bitorder="little"),
        stratum=np.zeros(num, dtype=np.int32),
        probability=np.ones(num),
        times_drawn=np.ones(num, dtype=np.int32),
    )


def losses_with(correct: list[list[int]], nll: list[list[float]], mask: list[list[int]]) -> TokenLosses:
    return TokenLosses(torch.tensor(nll), torch.tensor(correct).bool(), torch.tensor(mask).bool())


def test_rehearsed_rows_stand_last_and_keep_their_tokens() -> None:
    batch = mix(target_rows(3), rehearsed_rows([[0] * 5], [4]))
    assert batch.input_ids_BT.shape == (4, SEQ_LEN)
    assert batch.input_ids_BT.dtype == torch.int64
    assert batch.input_ids_BT[3].tolist() == [3] * 5
    assert batch.length_B.tolist() == [5, 5, 5, 4]
    assert (batch.num_target, batch.num_rehearsed) == (3, 1)


def test_a_job_without_rehearsal_has_only_its_own_rows() -> None:
    batch = mix(target_rows(2), None)
    losses = losses_with([[1] * 4] * 2, [[1.0] * 4] * 2, [[1] * 4] * 2)
    assert (batch.num_target, len(loss_rows(batch, losses, 0, 0))) == (2, 0)


def test_a_flip_is_a_token_that_was_right_and_is_wrong() -> None:
    batch = mix(target_rows(1), rehearsed_rows([[0, 1, 1, 0, 1], [0, 1, 1, 1, 1]], [5, 3]))
    losses = losses_with(
        correct=[[0, 0, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0]],
        nll=[[9.0] * 4, [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 0.0, 0.0]],
        mask=[[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]],
    )
    rows = loss_rows(batch, losses, step=7, rank=2)
    assert rows["num_flips"].tolist() == [2, 1]
    assert rows["num_gains"].tolist() == [1, 0]
    assert rows["num_tokens"].tolist() == [4, 2]
    assert rows["loss_nats"].tolist() == [2.5, 1.5]
    assert rows["sample_id"].tolist() == [100, 101]
    assert set(rows["step"]) == {7}
    assert set(rows["rank"]) == {2}
    assert set(rows["attempt"]) == {3}


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf"), 2e6])
def test_a_row_whose_loss_is_no_loss_is_reported_as_not_measured(loss: float) -> None:
    batch = mix(target_rows(1), rehearsed_rows([[1] * 5, [1] * 5], [5, 5]))
    losses = losses_with([[0] * 4] * 3, [[1.0] * 4, [2.0, 2.0, 2.0, 4 * loss], [2.0] * 4], [[1] * 4] * 3)
    lost, good = loss_rows(batch, losses, 0, 0)
    assert (lost["sample_id"], lost["num_tokens"], lost["num_flips"], lost["loss_nats"]) == (100, 0, 0, 0.0)
    assert (good["sample_id"], good["num_tokens"], good["num_flips"], good["loss_nats"]) == (101, 4, 4, 2.0)


def test_a_row_that_the_service_could_not_read_is_reported_as_not_measured() -> None:
    batch = mix(target_rows(1), rehearsed_rows([[0] * 5, [0, 1, 1, 1, 1]], [0, 5]))
    losses = token_losses(torch.randn(3, SEQ_LEN, 32), batch.input_ids_BT, batch.length_B)
    unread, read = loss_rows(batch, losses, 0, 0)
    assert (unread["sample_id"], unread["num_tokens"], unread["num_flips"], unread["loss_nats"]) == (100, 0, 0, 0.0)
    assert read["num_tokens"] == 4


def test_an_unchanged_model_flips_nothing() -> None:
    torch.manual_seed(0)
    rehearsed = rehearsed_rows([[0] * 5] * 4, [5] * 4)
    logits_BTV = torch.randn(4, SEQ_LEN, 8)
    ids_BT = torch.from_numpy(rehearsed.input_ids.astype(np.int64))
    losses = token_losses(logits_BTV, ids_BT, torch.full((4,), SEQ_LEN))
    correct = np.pad(losses.correct_BS.numpy(), ((0, 0), (1, 0)))
    batch = mix(target_rows(0), rehearsed_rows(correct.astype(int).tolist(), [5] * 4))
    rows = loss_rows(batch, losses, 0, 0)
    assert rows["num_flips"].sum() == rows["num_gains"].sum() == 0
