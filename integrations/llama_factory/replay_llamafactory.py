"""`llamafactory-cli` with rehearsal: `python -m replay_llamafactory train job.yaml`; see README.md."""

import os
import sys

from llamafactory.cli import main as llamafactory_main
from llamafactory.train.pt import workflow as pretraining
from llamafactory.train.pt.trainer import CustomTrainer
from llamafactory.train.sft import workflow as fine_tuning
from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer

from replay_trainer.hf import RehearsalMixin


class RehearsalSeq2SeqTrainer(RehearsalMixin, CustomSeq2SeqTrainer):  # type: ignore[misc]
    """The trainer of the stage `sft`, which rehearses."""


class RehearsalPretrainer(RehearsalMixin, CustomTrainer):  # type: ignore[misc]
    """The trainer of the stage `pt`, which rehearses."""


def main() -> None:
    """Run a command of LLaMA-Factory with trainers that rehearse, in this process."""
    if os.environ.get("FORCE_TORCHRUN"):
        sys.exit("start the processes yourself: torchrun --nproc-per-node N -m replay_llamafactory train job.yaml")
    fine_tuning.CustomSeq2SeqTrainer = RehearsalSeq2SeqTrainer
    pretraining.CustomTrainer = RehearsalPretrainer
    llamafactory_main()


if __name__ == "__main__":
    main()
