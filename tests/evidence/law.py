"""The forgetting law on models of three sizes: `python -m tests.evidence.law FOLDER`.

Each model is pretrained on known text, and fine-tuned at several lengths and ratios by studies; then
`replay-service plan` fits the laws. README.md in this folder says more. A second call goes on where the first stopped.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from replay_service.demo.process import service_process
from replay_service.planning.files import read_runs
from replay_service.planning.holdout import predict_largest
from replay_service.planning.picture import draw
from replay_service.planning.plan import make_plan
from replay_service.planning.report import report
from replay_service.planning.settings import PlanSettings
from replay_service.ray_session import start_ray
from replay_trainer.study.command import carry_out
from replay_trainer.study.command import report as report_study
from replay_trainer.study.settings import StudySettings
from tests.evidence.base_model import SEQ_LEN, SIZES, SizeName
from tests.evidence.coverage import CORPUS, make_corpus, of_world
from tests.evidence.world import pretrain, write_text

RATIOS: Final = ("0.01", "0.03", "0.1")
"""Besides none at all."""

SHARE_OF_RATE: Final = 1 / 6
"""Learning rate of fine-tuning, by that of the model's pretraining: larger models are trained at lower ones."""


def study_of(
    folder: Path, size: SizeName, target: str, num_steps: int, seeds: Sequence[int], url: str
) -> StudySettings:
    """Uniform rehearsal at all ratios, with one model and one length."""
    text, output = folder / "text", folder / "law" / f"{size}-{target}-{num_steps}"
    arms = [{"name": ratio, "rehearsal": {"injection_ratio": ratio}} for ratio in RATIOS]
    targets = {"target": str(text / "targets" / target), "heldout_target": str(text / "targets_heldout" / target)}
    content = {
        "model": str(folder / "pretraining_jobs" / size / "model"),
        "output": str(output),
        "num_steps": num_steps,
        "global_batch_size": 32,
        "learning_rate": SHARE_OF_RATE * SIZES[size].learning_rate,
        "schedule": "constant",
        "warmup_steps": 10,
        "data": {"heldout_pretraining": str(text / "heldout"), "domain_column": "domain", "seq_len": SEQ_LEN},
        "rehearsal": {"service_url": url, "corpus": CORPUS, "run": output.name, "policy": "uniform"},
        "study": {
            "arms": [{"name": "none", "rehearsal": False}, *arms],
            "targets": [{"name": target, **targets}],
            "seeds": list(seeds),
            "heldout_rows": 128,
            "cells_at_once": 1,
        },
    }
    return StudySettings.of(content, folder / "law.toml")


def results_of(folder: Path, size: SizeName, args: argparse.Namespace, console: Console) -> list[Path]:
    """Pretrains a model, makes its corpus, and carries out a study for each length; gives the result files."""
    pretrain(folder, size, console)
    setting = of_world(folder, size)
    make_corpus(setting, console)
    found = []
    with service_process(setting.root) as url:
        for num_steps in args.steps:
            study = study_of(folder, size, args.target, num_steps, range(args.seeds), url)
            carry_out(study, console, start_ray)
            report_study(study, console)
            found.append(Path(study.job["output"]) / "results.parquet")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--steps", nargs="+", type=int, default=[50, 100, 200], help="lengths, in steps of 32 rows")
    parser.add_argument("--target", default="office_de")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--budget-nats", type=float, default=0.1)
    args = parser.parse_args()
    folder, console = args.folder.absolute(), Console()
    write_text(folder / "text", console)
    runs = read_runs([path for size in args.sizes for path in results_of(folder, size, args, console)])
    foretold = predict_largest(runs) if len(args.sizes) > 2 and len(args.steps) > 2 else None
    plan = make_plan(runs, PlanSettings(budget_nats=args.budget_nats))
    console.print(report(plan, foretold), markup=False, highlight=False, soft_wrap=True)
    draw(plan, folder / "law" / "law.png")


if __name__ == "__main__":
    main()
