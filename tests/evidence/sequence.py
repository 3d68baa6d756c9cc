"""What is kept when a language model is tuned on several targets in turn: `python -m tests.evidence.sequence FOLDER`.

FOLDER is what `tests.evidence.world` made, with the corpus that `study.toml` says how to ingest. Each stage is a job of
its own, whose model is the output of the stage before. All rehearse from the corpus of the first model, and distil its
stored tokens; LDIFS refers to the model that a stage begins with. Stopped, the same command goes on after the last
finished stage. With --report-only it shows what is finished.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console

from replay_service.demo.process import service_process
from replay_service.language.precision import Precision
from replay_trainer.config import TrainConfig
from replay_trainer.job.loop import fine_tune
from replay_trainer.job.metrics import MetricsFile
from replay_trainer.job.ray_train import preflight
from replay_trainer.study.cell import LoneWorker
from replay_trainer.study.cells import short_name
from tests.evidence.base_model import SEQ_LEN, SIZES
from tests.evidence.chains import Chain, Row, follow, write_rows
from tests.evidence.domains import TARGETS
from tests.evidence.held_text import HeldText
from tests.evidence.kept import tables

IN_ORDER: Final = ("manual_fr", "manual_ja", "code_tasks")
_CPU: Final = torch.device("cpu")
_RECOMMENDED: Final = {"recipe": "recommended"}
ARMS: Final[dict[str, dict[str, Any]]] = {
    "plain": {},
    "CE 5 %": {"rehearsal": {"policy": "uniform", "injection_ratio": "0.05"}},
    "recommended": {"rehearsal": _RECOMMENDED},
    "LDIFS": {"ldifs": {}},
    "LDIFS, recommended": {"ldifs": {}, "rehearsal": _RECOMMENDED},
    "recommended, teacher of the stage": {"rehearsal": {**_RECOMMENDED, "teacher": "base"}},
}
"""Sections of a job. The last arm learns from the model that the stage begins with, not from the first one."""
BY_DEFAULT: Final = tuple(ARMS)[:5]


@dataclass(frozen=True, slots=True)
class Setting:
    """What all stages have in common.

    Attributes:
        model: the first one, which scored the corpus.
        text: folder with `heldout`, `targets` and `targets_heldout`.
        output: folder of the chains.
        job: keys of a job but for its text, its model and what an arm says.
        heldout_rows: at most so many of each domain, and of each target.
        precision: in which all jobs train and all models are measured.
    """

    model: Path
    text: Path
    output: Path
    corpus: str
    seq_len: int
    heldout_rows: int
    precision: Precision
    job: Mapping[str, Any]

    def chain(self, arm: str, seed: int, targets: Sequence[str]) -> Chain:
        """Chains whose results may differ have folders of their own."""
        said = json.dumps([ARMS[arm], targets, dict(self.job), self.heldout_rows, self.precision], sort_keys=True)
        key = hashlib.sha256(said.encode()).hexdigest()[:8]
        return Chain(arm, seed, self.output / f"{short_name(arm)}-{seed}-{key}", self.model, tuple(targets))

    def config(self, chain: Chain, stage: int, url: str) -> TrainConfig:
        sections = dict(ARMS[chain.arm])
        if "rehearsal" in sections:
            run = f"sequence-{chain.folder.name}-{stage + 1}"
            sections["rehearsal"] = {"service_url": url, "corpus": self.corpus, "run": run, **sections["rehearsal"]}
        return TrainConfig.model_validate(
            {
                "model": str(chain.model_before(stage)),
                "output": chain.output(stage),
                "seed": chain.seed,
                "data": {
                    "target": str(self.text / "targets" / chain.targets[stage]),
                    "heldout_pretraining": str(self.text / "heldout"),
                    "domain_column": "domain",
                    "seq_len": self.seq_len,
                },
                "precision": self.precision,
                **self.job,
                **sections,
            }
        )


def of_world(folder: Path, size: str, num_steps: int) -> Setting:
    """The settings of a cell of `untuned.toml`."""
    return Setting(
        model=folder / "pretraining_jobs" / size / "model",
        text=folder / "text",
        output=folder / "sequence" / size,
        corpus="pretraining",
        seq_len=SEQ_LEN,
        heldout_rows=128,
        precision="bf16",
        job={
            "num_steps": num_steps,
            "global_batch_size": 32,
            "learning_rate": 5e-4,
            "schedule": "constant",
            "warmup_steps": 10,
            "checkpoint_every": 50,
        },
    )


@dataclass(frozen=True, slots=True)
class Trainer:
    """Trains stages by the loop of `replay-trainer train`, in this process."""

    setting: Setting
    held: HeldText
    url: str

    def __call__(self, chain: Chain, stage: int) -> list[Row]:
        asked = self.setting.config(chain, stage, self.url)
        # Held-out text is measured here, by as many rows of each target, and not by the job.
        job = asked.model_copy(update={"data": asked.data.model_copy(update={"heldout_pretraining": None})})
        tuning = fine_tune(job, preflight(job), LoneWorker(job.output, _CPU))
        steps = [each for each in MetricsFile(job.output / "metrics.jsonl").lines() if each["kind"] == "step"]
        about = {
            "num_steps": job.num_steps,
            "learning_rate": job.learning_rate,
            "num_rehearsed_rows": sum(each["num_rehearsed"] for each in steps),
            "training_s": sum(each["step_s"] for each in steps),
        }
        rows = [{**each, **about} for each in self.held.measured(tuning.bare_model)]
        for name in ("checkpoint.pt", "checkpoint.part"):
            (job.output / name).unlink(missing_ok=True)
        return rows


def run(setting: Setting, chains: Sequence[Chain], url: str, console: Console) -> list[Row]:
    """What was measured after each stage of the chains; a stage that is finished is not repeated."""
    setting.output.mkdir(parents=True, exist_ok=True)
    first = setting.config(chains[0], 0, url)
    scores = setting.output / f"base-{setting.heldout_rows}.npz"
    held = HeldText.of(
        first, setting.text / "targets_heldout", chains[0].targets, setting.heldout_rows, setting.precision, scores
    )
    return follow(chains, Trainer(setting, held, url), lambda line: console.print(line, soft_wrap=True))


@contextmanager
def served(url: str | None, root: Path) -> Iterator[str]:
    """The service that is given, or one of its own on the folder of the studies."""
    if url is not None:
        yield url
    else:
        with service_process(root) as own:
            yield own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=lambda given: Path(given).absolute())
    parser.add_argument("--size", choices=list(SIZES), default="medium")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(BY_DEFAULT), metavar="ARM")
    parser.add_argument("--targets", nargs="+", choices=[each.name for each in TARGETS], default=list(IN_ORDER))
    parser.add_argument("--steps", type=int, default=200, help="of each stage")
    parser.add_argument("--service-url", help="a service of FOLDER/study/service; by default one is started")
    parser.add_argument("--report-only", action="store_true")
    args = parser.parse_args()
    console, setting = Console(), of_world(args.folder, args.size, args.steps)
    chains = [setting.chain(arm, seed, args.targets) for seed in range(args.seeds) for arm in args.arms]
    if args.report_only:
        rows = [row for chain in chains for row in chain.rows()]
    else:
        with served(args.service_url, args.folder / "study" / "service") as url:
            rows = run(setting, chains, url, console)
    if rows:
        write_rows(setting.output / "sequence.parquet", rows)
    print(f"\n{tables(rows, args.targets)}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
