"""`transformers.Trainer` with rehearsal: what it trains on, what it reports, and what stays as it was."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback

from replay_service.language.tokenizer import fingerprint, load_tokenizer
from replay_service.testing import ServiceUnderTest, replay_service
from replay_trainer import hf
from replay_trainer.batches.rows import MixedInputs
from replay_trainer.client import ReplayClient
from replay_trainer.errors import CorpusMismatch, InvalidTraining
from replay_trainer.hf import RehearsalMixin, RehearsalTrainer
from tests.trainer.hf_worlds import SEQ_LEN, a_run, arguments, dataset

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "hugging-face.md"


@pytest.fixture(scope="module")
def service(tiny_model: Path) -> Iterator[ServiceUnderTest]:
    vocab_size = AutoModelForCausalLM.from_pretrained(tiny_model).config.vocab_size
    with replay_service(seq_len=SEQ_LEN, vocab_size=vocab_size, rows_per_domain=200) as found:
        yield found


@pytest.fixture(scope="module")
def client(service: ServiceUnderTest) -> Iterator[ReplayClient]:
    with service.client() as found:
        yield found


class Watched(RehearsalTrainer):
    """Keeps what it rehearsed in each step, and the losses of its steps."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.samples: dict[int, list[int]] = {}
        self.num_rows: dict[int, int] = {}

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        mixed = inputs.get("mixed_with_rehearsal")
        if model.training:
            step = self.state.global_step
            self.num_rows[step] = self.num_rows.get(step, 0) + len(inputs["input_ids"])
            self.samples.setdefault(step, []).extend([] if mixed is None else mixed.rehearsed.sample_id.tolist())
        return super().compute_loss(model, inputs, *args, **options)


def losses_of(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture
def model(tiny_model: Path) -> nn.Module:
    found: nn.Module = AutoModelForCausalLM.from_pretrained(tiny_model)
    return found


def test_without_rehearsal_it_trains_as_the_plain_trainer_does(
    client: ReplayClient, tiny_model: Path, tmp_path: Path
) -> None:
    models = [AutoModelForCausalLM.from_pretrained(tiny_model) for _ in range(2)]
    args = arguments(tmp_path, gradient_accumulation_steps=2, logging_steps=1)
    plain = Trainer(model=models[0], args=args, train_dataset=dataset())
    rehearsal = a_run(client, "nothing", injection_ratio="0", global_batch_size=8)
    ours = RehearsalTrainer(rehearsal=rehearsal, model=models[1], args=args, train_dataset=dataset())
    plain.train()
    ours.train()
    assert losses_of(ours) == pytest.approx(losses_of(plain), abs=1e-6) and len(losses_of(ours)) == 6
    for expected, found in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


class Reporter(TrainerCallback):
    """What a reporter of transformers gets, such as those that `report_to` names."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        self.lines.append({"step": state.global_step, **logs})


@pytest.mark.parametrize("parts", [1, 2])
def test_reporters_get_losses_by_kind_of_row_and_forgetting_with_its_interval(
    client: ReplayClient, model: nn.Module, tmp_path: Path, parts: int
) -> None:
    reporter, run = Reporter(), f"figures-{parts}"
    rehearsal = a_run(client, run, injection_ratio="0.8", feedback={"mode": "fenced", "lag": 1})
    args = arguments(
        tmp_path,
        per_device_train_batch_size=4 // parts,
        gradient_accumulation_steps=parts,
        eval_strategy="steps",
        eval_steps=4,
        logging_steps=4,
        max_steps=12,
        learning_rate=0.0,
    )
    trainer = Watched(
        rehearsal=rehearsal,
        model=model,
        args=args,
        train_dataset=dataset(),
        eval_dataset=dataset(4),
        callbacks=[reporter],
    )
    trainer.train()
    lines = [each for each in reporter.lines if "loss" in each]
    assert [each["step"] for each in lines] == [4, 8, 12]
    # The weights stay as they are, so the mean over all steps is that of the data set, and of the reports.
    with torch.no_grad():
        alone = [model(input_ids=torch.tensor([row["input_ids"]])).logits[0] for row in dataset()]
    nats = [
        nn.functional.cross_entropy(logits[1:-1], torch.tensor(row["input_ids"][2:]), reduction="sum")
        for logits, row in zip(alone, dataset(), strict=True)
    ]
    expected = float(sum(nats)) / (24 * 8)
    assert sum(each["target_loss"] for each in lines) / 3 == pytest.approx(expected, abs=1e-5)
    visits = [
        visit
        for sample in {each for step in trainer.samples.values() for each in step}
        for visit in client._json("GET", f"/v1/runs/{run}/samples/{sample}")["visits"]
    ]
    reported = sum(each["loss_nats"] * (SEQ_LEN - 1) for each in visits) / (len(visits) * (SEQ_LEN - 1))
    rehearsed = [each["rehearsed_loss"] for each in lines]
    counts = [sum(len(trainer.samples[step]) for step in range(first, first + 4)) for first in (0, 4, 8)]
    weighted = sum(loss * num for loss, num in zip(rehearsed, counts, strict=True)) / sum(counts)
    assert weighted == pytest.approx(reported, abs=1e-5)
    stats = client.stats(run)
    assert stats["num_reported"] == len(visits) == sum(counts)
    assert lines[-1]["rows_rehearsed"] == stats["rows_rehearsed"]
    forgetting = {name: lines[-1][f"forgetting_{name}"] for name in ("nats", "low", "high")}
    assert forgetting["low"] <= forgetting["nats"] <= forgetting["high"]
    evaluations = [each for each in reporter.lines if "eval_loss" in each]
    assert len(evaluations) == 3
    assert not any("forgetting" in name or "rehears" in name for each in evaluations for name in each)


@pytest.mark.parametrize("changes", [{}, {"gradient_accumulation_steps": 2}], ids=["plain", "accumulated"])
def test_rows_that_would_widen_the_batch_learn_the_same_in_a_pass_of_their_own(
    client: ReplayClient, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    trained = []
    for worth in (hf.WORTH, 2.0):
        monkeypatch.setattr(hf, "WORTH", worth)
        run = f"apart-{worth}-{len(changes)}"
        trainer = Widths(
            rehearsal=a_run(client, run, 0.5, global_batch_size=4 * changes.get("gradient_accumulation_steps", 1)),
            model=AutoModelForCausalLM.from_pretrained(tiny_model),
            args=arguments(tmp_path, **changes),
            train_dataset=dataset(width=4),
        )
        trainer.train()
        trained.append(trainer)
        assert client.stats(run)["num_reported"] == client.stats(run)["rows_rehearsed"] > 0
    apart, together = trained
    assert set(apart.widths) == {4, SEQ_LEN} and SEQ_LEN in together.widths
    assert len(apart.widths) > len(together.widths)
    assert losses_of(apart) == pytest.approx(losses_of(together), abs=1e-5)
    for ours, theirs in zip(apart.model.parameters(), together.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    for name in ("target_loss", "rehearsed_loss", "num_target_tokens", "num_rehearsed_tokens"):
        figures = [[each[name] for each in trainer.state.log_history if "loss" in each] for trainer in trained]
        assert figures[0] == pytest.approx(figures[1], abs=1e-5)


class Widths(RehearsalTrainer):
    """Keeps the widths of the batches that its model is called with."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.widths: list[int] = []
        self.model.register_forward_pre_hook(
            lambda _, __, inputs: self.widths.append(inputs["input_ids"].shape[1]), with_kwargs=True
        )


def test_a_trainer_does_the_same_with_the_promise_that_the_injection_is_fixed(
    client: ReplayClient, tiny_model: Path, tmp_path: Path
) -> None:
    trainers = []
    for promised in (False, True):
        rehearsal = a_run(client, f"promise-{int(promised)}", injection_ratio="0.1", injection_fixed=promised)
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        trainer = Watched(rehearsal=rehearsal, model=model, args=arguments(tmp_path), train_dataset=dataset())
        trainer.train()
        trainers.append(trainer)
    assert trainers[0].samples == trainers[1].samples
    assert sorted(map(len, trainers[0].samples.values())) == [0, 0, 0, 0, 1, 1]
    assert losses_of(trainers[0]) == losses_of(trainers[1])


def test_each_step_holds_its_plan_and_reports_it_once(client: ReplayClient, model: nn.Module, tmp_path: Path) -> None:
    trainer = Watched(rehearsal=a_run(client, "plan"), model=model, args=arguments(tmp_path), train_dataset=dataset())
    trainer.train()
    # floor(8 / 3 * (t + 1)) - floor(8 / 3 * t): 0.4 of the whole batch.
    assert [len(each) for each in trainer.samples.values()] == [2, 3, 3, 2, 3, 3]
    assert all(trainer.num_rows[step] == 4 + len(samples) for step, samples in trainer.samples.items())
    stats = client.stats("plan")
    assert (stats["next_step"], stats["num_reported"], stats["num_pending"]) == (6, 16, 0)
    assert stats["achieved_ratio"] == pytest.approx(0.4)


def test_accumulating_the_gradient_changes_neither_the_samples_nor_the_loss(
    client: ReplayClient, tiny_model: Path, tmp_path: Path
) -> None:
    trainers = []
    for size, parts in ((4, 1), (1, 4)):
        args = arguments(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=parts)
        trainer = Watched(
            rehearsal=a_run(client, f"accumulated-{parts}", weight=0.5),
            model=AutoModelForCausalLM.from_pretrained(tiny_model),
            args=args,
            train_dataset=dataset(),
        )
        trainer.train()
        trainers.append(trainer)
    assert trainers[0].samples == trainers[1].samples
    assert losses_of(trainers[0]) == pytest.approx(losses_of(trainers[1]), rel=1e-4)
    assert client.stats("accumulated-4")["num_reported"] == 16


def test_a_short_step_at_the_end_of_an_epoch_rehearses_its_plan_too(
    client: ReplayClient, model: nn.Module, tmp_path: Path
) -> None:
    args = arguments(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    trainer = Watched(rehearsal=a_run(client, "short"), model=model, args=args, train_dataset=dataset(10))
    trainer.train()
    assert [trainer.num_rows[step] - len(trainer.samples[step]) for step in range(6)] == [4, 4, 2, 4, 4, 2]
    assert client.stats("short")["num_reported"] == 16
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    assert (last["num_target_rows"], last["num_rehearsed_rows"]) == (20, 16)
    assert last["rehearsed_share"] == pytest.approx(16 / 36)
    assert last["num_rehearsed_tokens"] == 16 * (SEQ_LEN - 1) and last["num_target_tokens"] == 20 * 8


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_the_loss_is_the_mean_over_all_predictions_with_rehearsed_ones_at_their_weight(
    client: ReplayClient, model: nn.Module, tmp_path: Path, weight: float
) -> None:
    args = arguments(tmp_path, max_steps=1, learning_rate=0.0)
    rehearsal = a_run(client, f"weight-{weight}", weight)
    trainer = RehearsalTrainer(rehearsal=rehearsal, model=model, args=args, train_dataset=dataset(4))
    trainer.train()
    rows = dataset(4)
    batch = client.batch(rehearsal.run, 0)
    target = model(
        input_ids=torch.tensor([row["input_ids"] for row in rows]), labels=torch.tensor([row["labels"] for row in rows])
    )
    ids = torch.from_numpy(batch.input_ids.astype("int64"))
    num_target, num_rehearsed = 4 * 8, 2 * (SEQ_LEN - 1)
    total = target.loss.item() * num_target + weight * model(input_ids=ids, labels=ids).loss.item() * num_rehearsed
    (found,) = losses_of(trainer)
    assert found == pytest.approx(total / (num_target + num_rehearsed), rel=1e-4)


class WithoutOutputs(Trainer):  # type: ignore[misc]
    """Its loss knows no parameter `return_outputs`, as that of trl 2."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        return super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)


class RehearsalWithoutOutputs(RehearsalMixin, WithoutOutputs):  # type: ignore[misc]
    pass


def test_a_trainer_whose_loss_gives_no_outputs_is_not_asked_for_them(
    client: ReplayClient, tiny_model: Path, tmp_path: Path
) -> None:
    losses = []
    for kind in (RehearsalTrainer, RehearsalWithoutOutputs):
        rehearsal, model = a_run(client, kind.__name__.lower()), AutoModelForCausalLM.from_pretrained(tiny_model)
        trainer = kind(rehearsal=rehearsal, model=model, args=arguments(tmp_path), train_dataset=dataset())
        trainer.train()
        losses.append(losses_of(trainer))
        assert client.stats(rehearsal.run)["num_reported"] == 16
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


class StopAt(TrainerCallback):  # type: ignore[misc]
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop |= state.global_step == self.step


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("has_adapters", [False, True])
def test_distilled_rows_learn_from_the_model_that_the_trainer_was_given(
    client: ReplayClient, tiny_model: Path, tmp_path: Path, has_adapters: bool
) -> None:
    """Where the model is the base model still, rehearsed rows cost nothing."""
    from peft import LoraConfig, get_peft_model

    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    if has_adapters:
        model = get_peft_model(model, LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    rehearsal = replace(a_run(client, f"distilled-{int(has_adapters)}"), rehearsal_loss="distill")
    trainer = Watched(
        rehearsal=rehearsal, model=model, args=arguments(tmp_path, learning_rate=1e-2), train_dataset=dataset()
    )
    weighed: list[tuple[float, float, float]] = []
    weigh = MixedInputs.weigh

    def watched(self: MixedInputs, loss: torch.Tensor, losses: Any, share: Any) -> torch.Tensor:
        found = weigh(self, loss, losses, share)
        change = share * (losses.divergence_RS - losses.nll_BS).sum()
        weighed.append((losses.divergence_RS.sum().item(), (found - loss).item(), change.item()))
        return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MixedInputs, "weigh", watched)
        trainer.train()
    divergence, found, expected = zip(*weighed, strict=True)
    assert divergence[0] == pytest.approx(0.0, abs=1e-4) and divergence[-1] > 0.01
    assert found == pytest.approx(expected, abs=1e-5)
    assert client.stats(rehearsal.run)["num_pending"] == 0


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_training_that_resumes_rehearses_the_same_samples_and_goes_on_bitwise(
    client: ReplayClient, tiny_model: Path, tmp_path: Path
) -> None:
    def trainer(**options: Any) -> Watched:
        args = arguments(tmp_path, save_strategy="steps", save_steps=3, save_only_model=False)
        fenced = {"feedback": {"mode": "fenced", "lag": 2}, "policy": "mix_cd"}
        loaded = AutoModelForCausalLM.from_pretrained(tiny_model)
        rehearsal = a_run(client, "resumed", **fenced)
        return Watched(rehearsal=rehearsal, model=loaded, args=args, train_dataset=dataset(), **options)

    whole, resumed = trainer(), trainer(callbacks=[StopAt(5)])
    whole.train()
    resumed.train()
    assert resumed.samples == {step: whole.samples[step] for step in range(5)}
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.samples == {step: whole.samples[step] for step in range(3, 6)}
    assert losses_of(resumed) == losses_of(whole)
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert client.stats("resumed")["num_reported"] == 16


def test_evaluation_rehearses_nothing(client: ReplayClient, model: nn.Module, tmp_path: Path) -> None:
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=2)
    trainer = RehearsalTrainer(
        rehearsal=a_run(client, "evaluated"), model=model, args=args, train_dataset=dataset(), eval_dataset=dataset(4)
    )
    trainer.train()
    plain = Trainer(model=model, args=args, eval_dataset=dataset(4)).evaluate()["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain)
    assert client.stats("evaluated")["num_reported"] == 16


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_learn_and_the_base_model_stays(client: ReplayClient, model: nn.Module, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    before = {name: each.detach().clone() for name, each in adapted.named_parameters()}
    trainer = Watched(
        rehearsal=a_run(client, "adapted"), model=adapted, args=arguments(tmp_path), train_dataset=dataset()
    )
    trainer.train()
    changed = {name for name, each in adapted.named_parameters() if not torch.equal(each, before[name])}
    assert changed and all("lora_" in name for name in changed)
    assert client.stats("adapted")["num_reported"] == 16


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_rows_whose_loss_is_not_finite_are_counted_and_reported_as_not_measured(
    client: ReplayClient, model: nn.Module, tmp_path: Path
) -> None:
    model.model.norm.weight.data.fill_(float("nan"))  # type: ignore[union-attr,operator]
    rehearsal = a_run(client, "broken", feedback={"mode": "fenced", "lag": 2})
    trainer = RehearsalTrainer(rehearsal=rehearsal, model=model, args=arguments(tmp_path), train_dataset=dataset())
    trainer.train()
    assert [entry["num_unmeasured_rows"] for entry in trainer.state.log_history if "loss" in entry][-1] == 16
    stats = client.stats("broken")
    assert (stats["num_reported"], stats["num_unmeasured"], stats["num_pending"]) == (0, 16, 0)


@pytest.mark.parametrize(
    ("collate", "message"),
    [
        (lambda rows: (torch.tensor([each["input_ids"] for each in rows]),), "the batch is a tuple, not a mapping"),
        (lambda rows: {"input_ids": torch.ones(len(rows), 8).long()}, "the batch has no labels"),
        (lambda rows: {"input_ids": torch.ones(len(rows), 8).long(), "labels": [1]}, "labels are a list, not a tensor"),
    ],
)
def test_batches_without_labels_are_refused_before_the_first_step(
    client: ReplayClient, model: nn.Module, tmp_path: Path, collate: Any, message: str
) -> None:
    trainer = RehearsalTrainer(
        rehearsal=a_run(client, "labels-missing"),
        model=model,
        args=arguments(tmp_path),
        train_dataset=dataset(),
        data_collator=collate,
    )
    with pytest.raises(InvalidTraining, match=message):
        trainer.train()
    assert client.stats("labels-missing")["num_reported"] == 0


def test_a_run_of_another_batch_size_is_refused(client: ReplayClient, model: nn.Module, tmp_path: Path) -> None:
    larger = arguments(tmp_path, gradient_accumulation_steps=3)
    trainer = RehearsalTrainer(rehearsal=a_run(client, "refused"), model=model, args=larger, train_dataset=dataset())
    with pytest.raises(InvalidTraining, match="takes 12 fine-tuning rows"):
        trainer.train()


def test_the_tokenizer_that_the_trainer_holds_must_be_the_corpuss(
    tiny_model: Path, model: nn.Module, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    made = fingerprint(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    for made_with, is_taken in ((made, True), ("of another", False)):
        with (
            replay_service(seq_len=SEQ_LEN, vocab_size=len(tokenizer) - 1, tokenizer_fingerprint=made_with) as service,
            service.client() as client,
        ):
            trainer = RehearsalTrainer(
                rehearsal=a_run(client, "a-run"),
                model=model,
                args=arguments(tmp_path, max_steps=1),
                train_dataset=dataset(),
                processing_class=tokenizer,
            )
            if is_taken:
                trainer.train()
            else:
                with pytest.raises(CorpusMismatch, match="the tokenizer is not the one"):
                    trainer.train()
                assert client.run("a-run")["next_step"] == 0


def test_a_model_that_does_not_know_all_tokens_of_the_corpus_is_refused_before_the_first_step(
    client: ReplayClient, model: nn.Module, tmp_path: Path
) -> None:
    num_known = model.config.vocab_size  # type: ignore[union-attr]
    model.resize_token_embeddings(num_known - 10)  # type: ignore[operator]
    rehearsal = a_run(client, "unknown-tokens")
    trainer = RehearsalTrainer(rehearsal=rehearsal, model=model, args=arguments(tmp_path), train_dataset=dataset())
    said = f"has token ids up to {num_known - 1}, but the model knows only {num_known - 10} tokens"
    with pytest.raises(CorpusMismatch, match=said):
        trainer.train()
    assert client.run("unknown-tokens")["next_step"] == 0


def test_the_documentation_shows_the_trainer(tiny_model: Path, tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n([^`]*import RehearsalTrainer[^`]*)```", PAGE.read_text())
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    args = arguments(tmp_path, per_device_train_batch_size=8, max_steps=4)
    names: dict[str, Any] = {"model": model, "args": args, "train_dataset": dataset()}
    with replay_service(seq_len=SEQ_LEN, vocab_size=model.config.vocab_size, serve=True) as service:
        exec(compile(example.replace("http://127.0.0.1:8400", service.url), str(PAGE), "exec"), names)
        names["client"].close()
        with service.client() as client:
            stats = client.stats("my-run")
    assert (
        stats["state"] == "finished"
        and stats["next_step"] == 4
        and stats["num_reported"] == stats["rows_rehearsed"] > 0
    )
