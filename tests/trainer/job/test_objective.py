"""The methods in the loop: what each makes of the loss, and all of them together."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from replay_service.language.model import load_model
from replay_service.language.tokenizer import load_tokenizer, separator_id
from replay_trainer.batches.mixing import mix
from replay_trainer.batches.target import TrainingRows, load_target
from replay_trainer.client import ReplayClient
from replay_trainer.config import DataConfig, FlowConfig, TrainConfig
from replay_trainer.errors import CorpusMismatch, InvalidTraining
from replay_trainer.job.feed import open_feed
from replay_trainer.job.loop import _start, fine_tune
from replay_trainer.job.metrics import MetricsFile
from replay_trainer.job.objective import Counts, Objective
from replay_trainer.job.ray_train import preflight
from replay_trainer.job.stopwatch import Stopwatch
from replay_trainer.scoring import ScoringSettings, score_rows
from tests.trainer.worlds import SEQ_LEN, AloneWorker, a_job

A_RUN = {"corpus": "wiki", "run": "a-run", "injection_ratio": "0.1"}
STORED = {"rehearsal_loss": "distill", "teacher": "stored"}
CPU = torch.device("cpu")


def steps_of(output: Path) -> list[dict[str, Any]]:
    return [line for line in MetricsFile(output / "metrics.jsonl").lines() if line["kind"] == "step"]


@pytest.fixture(scope="module")
def scored(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions and answers, scored by the base model."""
    folder = tmp_path_factory.mktemp("scored")
    rows = [{"ask": f"what is {i}", "say": f"{i} is on the mat {i % 3}"} for i in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"ask": "why", "say": ""}]))
    settings = ScoringSettings(
        folder / "rows.jsonl",
        folder / "scored.parquet",
        str(tiny_model),
        response_column="say",
        prompt_column="ask",
        seq_len=SEQ_LEN,
        precision="float32",
    )
    score_rows(settings)
    return folder / "scored.parquet"


def data_of(scored: Path, **changes: Any) -> DataConfig:
    settings = {"prompt_column": "ask", "response_column": "say", "seq_len": SEQ_LEN, **changes}
    return DataConfig(target=str(scored), **settings)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("form", ["sequence", "token"])
def test_flow_weighs_each_token_of_a_response_as_the_formula_says(
    tiny_model: Path, scored: Path, layout: str, form: str
) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    rows = load_target(data_of(scored, layout=layout), FlowConfig(form=form), tokenizer)
    table = pq.read_table(scored).to_pylist()[:20]
    losses = [row["base_loss"] if form == "sequence" else row["base_token_losses"] for row in table]
    tau = np.median(np.concatenate([np.atleast_1d(loss) for loss in losses]))
    expected_ids, expected = [], []
    for row, loss in zip(table, losses, strict=True):
        prompt, response = (tokenizer(row[name], add_special_tokens=False).input_ids for name in ("ask", "say"))
        num_counted = len(row["base_token_losses"])
        weights = np.exp(-np.broadcast_to(loss, num_counted) / tau)
        ids = (prompt + response)[:SEQ_LEN]
        expected_ids.append([*ids, separator_id(tokenizer)])
        expected.append([*np.zeros(len(ids) - num_counted), *weights, weights.mean()])
    assert rows.weight is not None
    if layout == "padded":
        for i, (ids, weights) in enumerate(zip(expected_ids, expected, strict=True)):
            end = min(SEQ_LEN, len(ids))
            assert (rows.length[i], rows.input_ids[i, :end].tolist()) == (end, ids[:end])
            assert rows.weight[i, :end] == pytest.approx(weights[:end], rel=1e-6)
            assert not rows.weight[i, end:].any()
        return
    line = np.concatenate(expected)
    assert (
        rows.input_ids.ravel()[: len(line)].tolist()
        == [each for ids in expected_ids for each in ids][: rows.input_ids.size]
    )
    assert rows.weight.ravel()[: len(line)] == pytest.approx(line[: rows.weight.size], rel=1e-6)


def test_flow_without_base_losses_or_with_those_of_other_tokens_is_refused(
    tiny_model: Path, scored: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    pq.write_table(pq.read_table(scored).drop_columns(["base_loss"]), tmp_path / "bare.parquet")
    with pytest.raises(InvalidTraining, match="replay-trainer score"):
        load_target(data_of(tmp_path / "bare.parquet"), FlowConfig(), tokenizer)
    with pytest.raises(InvalidTraining, match="seq_len of this job"):
        load_target(data_of(scored, prompt_column=None, response_column="ask"), FlowConfig(form="token"), tokenizer)


def test_tokens_of_a_prompt_are_read_and_not_learned(tiny_model: Path, scored: Path) -> None:
    rows = load_target(data_of(scored, layout="padded"), None, load_tokenizer(str(tiny_model)))
    assert len(rows) == 20
    assert rows.weight is not None
    assert set(np.unique(rows.weight)) == {0.0, 1.0}
    model = load_model(str(tiny_model))
    batch = mix(rows.take(np.arange(4)), None)
    loss = a_loss(model, batch)
    labels = torch.where(batch.weight_BT > 0, batch.input_ids_BT, -100)  # type: ignore[operator]
    assert loss.item() == pytest.approx(model(input_ids=batch.input_ids_BT, labels=labels).loss.item(), abs=1e-5)


def a_loss(model: Any, batch: Any, of_job: Counts | None = None) -> torch.Tensor:
    objective = Objective("float32", "cross_entropy", None, Stopwatch(CPU))
    return objective.measure(model, batch, of_job or Counts(*Counts.of(batch).tolist()), 1).loss


def test_parts_of_a_batch_add_up_to_the_whole(tiny_model: Path, scored: Path) -> None:
    model = load_model(str(tiny_model))
    rows = load_target(data_of(scored), FlowConfig(), load_tokenizer(str(tiny_model)))
    batch = mix(rows.take(np.arange(5)), None)
    of_job = Counts(*Counts.of(batch).tolist())
    whole = a_loss(model, batch)
    for num_rows in (1, 2, 5, 9):
        parts = [a_loss(model, piece, of_job) for piece in batch.pieces(num_rows)]
        assert sum(part.item() for part in parts) == pytest.approx(whole.item(), abs=1e-6)


def test_a_rehearsed_row_weighs_what_it_is_given(tmp_path: Path, tiny_model: Path, service_url: str) -> None:
    job = a_job(tmp_path, tiny_model, service_url, run="weight", rehearsal={"rehearsal_weight": 3.0})
    preflight(job)
    model = load_model(job.model)
    with open_feed(job, load_tokenizer(job.model), 0, 1) as feed:
        feed.next(0)
        batch = feed.next(1)
    assert (batch.num_rehearsed, batch.num_target) == (1, 3)
    per_row = [model(input_ids=row[None], labels=row[None]).loss.item() for row in batch.input_ids_BT]
    expected = (sum(per_row[:3]) + 3.0 * per_row[3]) / 4
    assert a_loss(model, batch).item() == pytest.approx(expected, abs=1e-5)


def test_rows_that_are_added_leave_every_fine_tuning_row_in_place(
    tmp_path: Path, tiny_model: Path, service_url: str
) -> None:
    job = a_job(tmp_path, tiny_model, service_url, run="added", rehearsal={"injection_mode": "add"})
    fine_tune(job, preflight(job), AloneWorker())
    steps = steps_of(tmp_path)
    num_rows = [step["num_tokens"] // (SEQ_LEN - 1) for step in steps]
    assert num_rows == [4 + step["num_rehearsed"] for step in steps]
    assert sum(step["num_rehearsed"] for step in steps) == int(10 * 4 * 0.3 / 0.7)


def test_features_are_held_the_nearer_the_more_ldifs_weighs(tmp_path: Path, tiny_model: Path) -> None:
    drift = {}
    for weight in (1e-6, 1.0):
        job = a_job(tmp_path / str(weight), tiny_model, None, num_steps=15, ldifs={"weight": weight})
        fine_tune(job, "float32", AloneWorker())
        drift[weight] = [step["drift"] for step in steps_of(tmp_path / str(weight))]
        assert drift[weight][0] == pytest.approx(0.0, abs=1e-6)
    assert 0 < drift[1.0][-1] < 0.5 * drift[1e-6][-1]


def test_layers_that_the_model_does_not_have_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    job = a_job(tmp_path, tiny_model, None, ldifs={"layers": ["model.layers.99"]})
    with pytest.raises(InvalidTraining, match="layers"):
        fine_tune(job, "float32", AloneWorker())


@pytest.mark.parametrize("loss", ["distill", "mixed"])
def test_rehearsed_rows_can_be_distilled(tmp_path: Path, tiny_model: Path, service_url: str, loss: str) -> None:
    job = a_job(tmp_path, tiny_model, service_url, run=loss, corpus="with-topk", rehearsal={"rehearsal_loss": loss})
    fine_tune(job, preflight(job), AloneWorker())
    with ReplayClient(service_url) as client:
        assert client.stats(loss)["num_reported"] == 12
        batch = client.batch(loss, 0, num_steps=4, topk=True)
    assert batch.topk_ids is not None
    assert batch.topk_ids.shape == (len(batch), SEQ_LEN - 1, 4)
    assert (batch.topk_ids[:, :, 0] == batch.input_ids[:, 1:]).all()


def spread_kl(model: Any, base: Any, ids_BT: torch.Tensor) -> torch.Tensor:
    """The mean divergence over the whole vocabulary of each row, float64."""
    with torch.no_grad():
        log_q, log_p = (each(input_ids=ids_BT).logits[:, :-1].double().log_softmax(dim=2) for each in (model, base))
    return (log_p.exp() * (log_p - log_q)).sum(dim=2).mean(dim=1)


@pytest.mark.parametrize("loss", ["distill", "mixed"])
@pytest.mark.parametrize("chunked_head", [False, True])
def test_the_base_model_itself_can_be_the_teacher(
    tmp_path: Path, tiny_model: Path, service_url: str, loss: str, chunked_head: bool
) -> None:
    """The corpus stores no likeliest tokens; each batch's loss is that of rows that go through the models alone."""
    taught = {"rehearsal_loss": loss, "teacher": "base", "rehearsal_weight": 2.0}
    name = f"taught-{loss}-{chunked_head}".lower()
    job = a_job(tmp_path, tiny_model, service_url, run=name, rehearsal=taught, chunked_head=chunked_head)
    job_parts, tuning = _start(job, preflight(job), AloneWorker())
    with torch.no_grad():
        for each in tuning.bare_model.parameters():
            each.add_(0.02 * torch.randn_like(each))
    with open_feed(job, load_tokenizer(job.model), 0, 1) as feed:
        feed.next(0)
        batch = feed.next(1)
    assert (batch.num_rehearsed, batch.num_target) == (1, 3)
    measured = job_parts.objective.measure(tuning.model, batch, Counts(*Counts.of(batch).tolist()), 1)
    model, base = tuning.bare_model, load_model(job.model)
    nll = [model(input_ids=row[None], labels=row[None]).loss.item() for row in batch.input_ids_BT]
    kl = spread_kl(model, base, batch.input_ids_BT[3:]).item()
    assert kl > 0.001
    learned = kl if loss == "distill" else 0.5 * (kl + nll[3])
    assert measured.loss.item() == pytest.approx((sum(nll[:3]) + 2.0 * learned) / 4, abs=1e-5)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("lora", [None, {"r": 2, "alpha": 8}])
def test_a_resumed_job_has_the_same_teacher(
    tmp_path: Path, tiny_model: Path, service_url: str, scored: Path, lora: dict[str, int] | None
) -> None:
    taught = {"rehearsal_loss": "distill", "teacher": "base", "feedback": "fenced", "feedback_lag": 4}
    changes = {"corpus": "wiki", "rehearsal": taught, "lora": lora, "run": f"taught-{lora is None}".lower()}
    worker, shown = AloneWorker(), []
    for name in ("whole", "again"):
        job = all_at_once(tmp_path / name, tiny_model, service_url, scored, **changes)
        fine_tune(job, preflight(job), worker)
        shown.append([(step["target_loss"], step["rehearsed_loss"], step["drift"]) for step in steps_of(job.output)])
    assert (len(shown[0]), shown[1]) == (8, shown[0][5:])


def test_likeliest_tokens_that_the_model_does_not_predict_are_refused(
    tmp_path: Path, tiny_model: Path, service_url: str
) -> None:
    distilled = {"rehearsal_loss": "distill", "teacher": "stored"}
    job = a_job(tmp_path, tiny_model, service_url, run="wider", corpus="with-topk", rehearsal=distilled)
    preflight(job)
    model = load_model(job.model)
    with open_feed(job, load_tokenizer(job.model), 0, 1) as feed:
        feed.next(0)
        batch = feed.next(1)
    assert batch.rehearsed is not None and batch.rehearsed.topk_ids is not None
    wider = replace(batch, rehearsed=replace(batch.rehearsed, topk_ids=batch.rehearsed.topk_ids + 1000))
    objective = Objective("float32", "distill", None, Stopwatch(CPU, False))
    with pytest.raises(CorpusMismatch, match=r"stores token ids up to .* tune the base model"):
        objective.measure(model, wider, Counts(*Counts.of(wider).tolist()), 1)


def test_a_corpus_without_likeliest_tokens_is_refused_before_training(
    tmp_path: Path, tiny_model: Path, service_url: str
) -> None:
    distilled = {"rehearsal_loss": "distill", "teacher": "stored"}
    job = a_job(tmp_path, tiny_model, service_url, run="no-topk", rehearsal=distilled)
    with pytest.raises(CorpusMismatch, match="--store-topk"):
        preflight(job)


def all_at_once(tmp_path: Path, model: Path, url: str, scored: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "run": "everything",
        "corpus": "with-topk",
        "policy": "mix_cd",
        "num_steps": 8,
        "checkpoint_every": 5,
        "micro_batch_size": 2,
        "data": data_of(scored).model_dump(),
        "flow": {"form": "token", "normalize": "mean"},
        "ldifs": {},
        "rehearsal": {"rehearsal_loss": "mixed", "rehearsal_weight": 2.0, "feedback": "fenced", "feedback_lag": 4},
    }
    return a_job(tmp_path, model, url, **{**settings, **changes})


def test_all_methods_go_together_and_a_resumed_job_is_bitwise_the_same(
    tmp_path: Path, tiny_model: Path, service_url: str, scored: Path
) -> None:
    whole = all_at_once(tmp_path / "whole", tiny_model, service_url, scored)
    worker = AloneWorker()
    fine_tune(whole, preflight(whole), worker)
    again = all_at_once(tmp_path / "again", tiny_model, service_url, scored)
    fine_tune(again, preflight(again), worker)
    shown = ("target_loss", "rehearsed_loss", "drift", "num_rehearsed")
    first, second = ([[step[name] for name in shown] for step in steps_of(each.output)] for each in (whole, again))
    assert (len(first), second) == (8, first[5:])


def test_losses_taken_from_the_head_in_tiles_train_the_same(
    tmp_path: Path, tiny_model: Path, service_url: str, scored: Path
) -> None:
    losses = []
    for chunked in (False, True):
        changes = {"chunked_head": chunked, "run": f"chunked-{chunked}".lower(), "rehearsal": {}, "corpus": "wiki"}
        job = all_at_once(tmp_path / str(chunked), tiny_model, service_url, scored, **changes)
        fine_tune(job, preflight(job), AloneWorker())
        losses.append([(step["target_loss"], step["drift"]) for step in steps_of(job.output)])
    assert np.array(losses[0]) == pytest.approx(np.array(losses[1]), abs=1e-4)


def test_a_profile_says_where_the_time_of_each_step_went(tmp_path: Path, tiny_model: Path) -> None:
    fine_tune(a_job(tmp_path, tiny_model, None, profile=True, ldifs={}, num_steps=3), "float32", AloneWorker())
    for step in steps_of(tmp_path):
        assert set(step["seconds"]) == {"data", "forward", "losses", "drift", "report", "backward", "optimizer"}
        assert 0 < sum(step["seconds"].values()) <= step["step_s"]


def test_metrics_go_to_trackers_too(tmp_path: Path, tiny_model: Path) -> None:
    fine_tune(a_job(tmp_path, tiny_model, None, trackers=["tensorboard"], num_steps=2), "float32", AloneWorker())
    assert list((tmp_path / "tensorboard").rglob("events.out.tfevents.*"))
    with pytest.raises(InvalidTraining, match="no tracker"):
        fine_tune(a_job(tmp_path, tiny_model, None, trackers=["a-notebook"]), "float32", AloneWorker())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"flow": {"tau": 0.0}}, "tau"),
        ({"flow": {"form": "row"}}, "form"),
        ({"flow": {"temperature": 1.0}}, "temperature"),
        ({"ldifs": {"weight": 0}}, "weight"),
        ({"data": {"target": "x", "prompt_column": "ask"}}, "response_column"),
        ({"data": {"target": "x", "layout": "padded"}}, "layout padded"),
        ({"rehearsal": A_RUN | {"schedule": {"curv": "linear"}}}, "curv"),
        ({"rehearsal": A_RUN | {"schedule": {"curve": "linear", "num_steps": 0}}}, "num_steps"),
        ({"rehearsal": A_RUN | {"injection_ratio": "auto", "budget": {"nats": 0}}}, "budget.nats"),
        ({"rehearsal": A_RUN | STORED, "chunked_head": True}, "chunked_head"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(
    tmp_path: Path, tiny_model: Path, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        TrainConfig.model_validate({**a_job(tmp_path, tiny_model, None).model_dump(), **settings})


def test_rows_without_any_response_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    pq.write_table(pa.table({"ask": ["a question"], "say": [" "]}), tmp_path / "rows.parquet")
    with pytest.raises(InvalidTraining, match="no row"):
        load_target(data_of(tmp_path / "rows.parquet"), None, load_tokenizer(str(tiny_model)))


def test_rows_keep_their_places() -> None:
    rows = TrainingRows(np.arange(6).reshape(3, 2).astype(np.uint8), np.array([2, 2, 1], np.int32))
    assert rows.take(np.array([2, 0])).input_ids.tolist() == [[4, 5], [0, 1]]
