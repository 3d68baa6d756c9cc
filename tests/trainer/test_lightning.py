"""What the callback for Lightning refuses before the first step."""

from pathlib import Path
from typing import Any

import lightning
import pytest
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from replay_trainer.client import ReplayClient
from replay_trainer.errors import CorpusMismatch, InvalidTraining
from replay_trainer.lightning import RehearsalCallback
from tests.trainer.loops import Seen, Tuned
from tests.trainer.plain_worlds import VOCAB, a_run, rows

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning warns of what no test is about


class Validated(Tuned):
    def validation_step(self, inputs: dict[str, Tensor], batch_idx: int) -> None:
        self.rehearsing.mix(inputs)  # type: ignore[operator,union-attr]


def fit(callback: Callback, module: lightning.LightningModule, **options: Any) -> None:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=1, callbacks=[callback], enable_model_summary=False, **quiet, **options
    )
    batch = rows()
    samples: Any = [{name: each[row] for name, each in batch.items()} for row in range(4)]
    trainer.fit(module, DataLoader(samples, batch_size=4), DataLoader(samples, batch_size=4))


@pytest.mark.parametrize(
    ("options", "num_steps", "message"),
    [
        ({}, 0, "while the module is not trained, as in Lightning's sanity check"),
        ({"num_sanity_val_steps": 0}, 1, "without gradients, as in an evaluation"),
    ],
    ids=["sanity check", "validation"],
)
def test_rows_are_not_mixed_into_batches_of_a_validation(
    client: ReplayClient, tiny_model: Path, options: dict[str, Any], num_steps: int, message: str
) -> None:
    module = Validated(tiny_model, 0.0, Seen())
    module.model.resize_token_embeddings(VOCAB)  # type: ignore[operator]
    run = f"validated-{num_steps}"
    with pytest.raises(InvalidTraining, match=message):
        fit(RehearsalCallback(a_run(client, run)), module, **options)
    assert client.run(run)["next_step"] == num_steps


def test_a_model_that_does_not_know_all_tokens_of_the_corpus_is_refused_before_the_first_step(
    client: ReplayClient, tiny_model: Path
) -> None:
    module = Tuned(tiny_model, 0.0, Seen())
    module.model.resize_token_embeddings(VOCAB - 10)  # type: ignore[operator]
    with pytest.raises(CorpusMismatch, match=f"the model knows only {VOCAB - 10} tokens"):
        fit(RehearsalCallback(a_run(client, "unknown-tokens")), module)
    assert client.run("unknown-tokens")["next_step"] == 0
