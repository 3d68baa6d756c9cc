"""Flat batches: what joins them, and that they train as padded ones do on models that keep samples apart."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, DataCollatorWithFlattening

from replay_service.testing import ServiceUnderTest, replay_service
from replay_trainer.batches.added import IGNORED
from replay_trainer.batches.mixing import loss_rows
from replay_trainer.batches.padding_free import check_isolation
from replay_trainer.batches.rows import MixedInputs, add_rows, rows_for_report
from replay_trainer.client import ReplayClient
from replay_trainer.errors import InvalidTraining
from replay_trainer.plain import Rehearsal

SEQ_LEN = 12
SETTINGS = {"global_batch_size": 4, "injection_ratio": "0.5", "injection_mode": "add", "policy": "uniform"}
Rows = list[list[int]]


@pytest.fixture(scope="module")
def vocab_size(tiny_model: Path) -> int:
    return int(AutoModelForCausalLM.from_pretrained(tiny_model).config.vocab_size)


@pytest.fixture(scope="module")
def service(vocab_size: int) -> Iterator[ServiceUnderTest]:
    # Documents of which the last row of each domain is short.
    documents = {"web": [[1 + i % 200 for i in range(67)]], "code": [[3 + i % 90 for i in range(41)]]}
    with replay_service(seq_len=SEQ_LEN, vocab_size=vocab_size, documents=documents) as found:
        yield found


@pytest.fixture(scope="module")
def client(service: ServiceUnderTest) -> Iterator[ReplayClient]:
    with service.client() as found:
        found.ensure_run("flat", service.corpus, SETTINGS)
        yield found


def a_model(tiny_model: Path, attention: str = "sdpa", use_cache: bool = False) -> Any:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=attention)
    model.config.use_cache = use_cache
    return model.train()


def padded(rows: Rows) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED)}


def flat(rows: Rows, **options: bool) -> dict[str, Any]:
    found: dict[str, Any] = DataCollatorWithFlattening(**options)([{"input_ids": row} for row in rows])
    return found


ROWS: Rows = [[5, 6, 7, 8, 9], [10, 11, 12], [13, 14, 15, 16, 17, 18, 19], [20, 21]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_flat_batch_has_the_loss_the_gradients_and_the_reports_of_a_padded_one(
    client: ReplayClient, tiny_model: Path, attention: str
) -> None:
    rehearsed = client.batch("flat", 0, num_steps=2)
    found = []
    for inputs in (padded(ROWS), flat(ROWS)):
        model, batch = a_model(tiny_model, attention), add_rows(inputs, rehearsed, 0.5)
        output = model(**batch.inputs)
        losses = batch.losses(output.logits)
        loss = batch.weigh(output.loss, losses)
        loss.backward()
        gradients = [each.grad for each in model.parameters()]
        found.append(
            (batch.num_predictions, loss, losses, loss_rows(rows_for_report(rehearsed), losses, 0, 0), gradients)
        )
    (number, loss, losses, report, gradients), (other_number, other_loss, other_losses, other_report, others) = found
    assert number == other_number
    torch.testing.assert_close(other_loss, loss)
    torch.testing.assert_close(other_losses, losses)
    torch.testing.assert_close(others, gradients, rtol=1e-4, atol=1e-6)
    assert other_report["loss_nats"] == pytest.approx(report["loss_nats"], rel=1e-5)
    for name in ("sample_id", "num_tokens", "num_flips"):
        assert other_report[name].tolist() == report[name].tolist()


@given(
    st.lists(st.lists(st.integers(1, 200), min_size=1, max_size=9), min_size=1, max_size=5),
    st.lists(st.integers(0, SEQ_LEN), max_size=4),
)
def test_each_rehearsed_row_is_one_sample_without_padding(client: ReplayClient, rows: Rows, lengths: list[int]) -> None:
    rehearsed = client.batch("flat", 0, num_steps=1).rows(slice(0, len(lengths)))
    rehearsed = replace(rehearsed, length=np.array(lengths[: len(rehearsed)], dtype=np.int32))
    inputs = flat(rows, return_flash_attn_kwargs=True, return_seq_idx=True)
    batch = add_rows(inputs, rehearsed)
    num_ours = sum(map(len, rows))
    samples = [
        *rows,
        *(ids[:length].tolist() for ids, length in zip(rehearsed.input_ids, rehearsed.length, strict=True)),
    ]
    expected = flat([sample for sample in samples if sample], return_flash_attn_kwargs=True, return_seq_idx=True)
    for name, found in batch.inputs.items():
        assert found == expected[name] if isinstance(found, int) else torch.equal(found, expected[name]), name
    losses = batch.losses(torch.randn(1, batch.inputs["input_ids"].shape[1], 300))
    assert losses.mask_BS.sum(dim=1).tolist() == [max(0, length - 1) for length in rehearsed.length]
    assert torch.equal(losses.nll_BS > 0, losses.mask_BS)
    assert batch.inputs["input_ids"].shape == (1, num_ours + rehearsed.length.sum())


def test_rows_that_could_not_be_read_add_nothing_and_can_still_be_weighed(client: ReplayClient) -> None:
    rehearsed = client.batch("flat", 0)
    rehearsed = replace(rehearsed, length=np.zeros_like(rehearsed.length))
    batch = add_rows(flat(ROWS), rehearsed, 0.5)
    logits = torch.randn(1, batch.inputs["input_ids"].shape[1], 300, requires_grad=True)
    loss = batch.weigh(logits.mean(), batch.losses(logits))
    loss.backward()
    assert loss == logits.mean()
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_that_fills_a_cache_does_not_keep_samples_apart_and_is_refused(
    tiny_model: Path, attention: str
) -> None:
    check_isolation(a_model(tiny_model, attention), flat(ROWS, return_seq_idx=False))
    with pytest.raises(InvalidTraining, match=r"set model\.config\.use_cache to False"):
        check_isolation(a_model(tiny_model, attention, use_cache=True), flat(ROWS))


def test_trying_a_model_changes_neither_it_nor_any_generator(tiny_model: Path) -> None:
    model = a_model(tiny_model)
    before, state = {name: each.clone() for name, each in model.state_dict().items()}, torch.get_rng_state()
    check_isolation(model, flat([[7, 7]]))
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_a_loop_of_ones_own_tries_its_model_before_a_flat_batch_is_mixed(
    client: ReplayClient, tiny_model: Path
) -> None:
    with Rehearsal(client, "flat").open(num_steps=1, on_existing="rewind") as loop:
        with pytest.raises(InvalidTraining, match="call check_model"):
            loop.mix(0, flat(ROWS))
        loop.check_model(a_model(tiny_model), flat(ROWS))
        batch: MixedInputs = loop.mix(0, flat(ROWS))
        loop.report(batch, batch.losses(a_model(tiny_model)(**batch.inputs).logits))
    assert loop.reporter.num_accepted == batch.num_rehearsed == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_mask": torch.ones(1, 17, dtype=torch.int64)}, "has attention_mask, of which"),
        ({"labels": None}, "no labels"),
        ({name: torch.zeros(2, 5, dtype=torch.int64) for name in ("input_ids", "labels", "position_ids")}, "one row"),
        ({"position_ids": torch.zeros(1, 16, dtype=torch.int64)}, "one row"),
    ],
)
def test_a_flat_batch_that_cannot_be_mixed_is_refused(
    client: ReplayClient, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    inputs = {name: each for name, each in {**flat(ROWS), **changes}.items() if each is not None}
    with pytest.raises(InvalidTraining, match=message):
        add_rows(inputs, client.batch("flat", 0))
