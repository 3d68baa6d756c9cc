"""A rehearsal of a loop of your own, or of `transformers.Trainer`, by the keys of a job's section `[rehearsal]`."""

from dataclasses import fields
from typing import Any, Literal

from pydantic import ValidationError

from replay_trainer.client import ReplayClient
from replay_trainer.compatibility import check_distilled
from replay_trainer.errors import InvalidTraining
from replay_trainer.keys import problems_of
from replay_trainer.methods.teacher import Teacher
from replay_trainer.plain import Rehearsal
from replay_trainer.rehearsal_config import RehearsalConfig


def new_rehearsal(
    client: ReplayClient,
    run: str,
    corpus: str,
    *,
    global_batch_size: int,
    seed: int = 0,
    teacher: Teacher | Literal["stored"] | None = None,
    **keys: Any,
) -> Rehearsal:
    """Create a run, or find it, and the rehearsal that goes with it.

        rehearsal = new_rehearsal(client, "my-run", "pretraining", global_batch_size=8, recipe="recommended")

    Args:
        client: of the service.
        run: its name.
        corpus: to rehearse from.
        global_batch_size: fine-tuning rows of an optimizer step, over all ranks and accumulated parts.
        seed: key of the run's draws.
        teacher: whom distilled rows learn from, see Rehearsal. None: what the corpus stores of the base model, if it
            does; else a Trainer takes its model as it is given, and a loop of your own must give one.
        keys: of a job's section `[rehearsal]`, such as `recipe`. Rehearsed rows are added to the loop's.

    Raises:
        InvalidTraining: when a key is unknown or out of range.
        CorpusMismatch: when the corpus has nothing to distil. The run is not created then.
        ServiceError: as ReplayClient does.
    """
    written = {"injection_mode": "add", **keys, "corpus": corpus, "run": run}
    try:
        config = RehearsalConfig.model_validate(written)
    except ValidationError as error:
        raise InvalidTraining(f"run {run!r}: {problems_of(error, RehearsalConfig)}") from error
    if config.timing != "even":
        raise InvalidTraining(
            f"run {run!r}: timing {config.timing} depends on the length of the training and on its learning rate; give "
            "the keys that replay_trainer.timing.lasting makes of them in its place"
        )
    rehearsal = rehearsal_of(client, config, teacher)
    client.ensure_run(run, corpus, {**config.run_settings(), "global_batch_size": global_batch_size, "seed": seed})
    return rehearsal


def rehearsal_of(
    client: ReplayClient, config: RehearsalConfig, teacher: Teacher | Literal["stored"] | None = None
) -> Rehearsal:
    """What a section `[rehearsal]` says to rehearse; its run need not be there.

    Args:
        teacher: as for `new_rehearsal`; None also leaves the choice to the section's `teacher`.

    Raises:
        CorpusMismatch: when the corpus has nothing to distil.
        ServiceError: as ReplayClient does, which is asked about the corpus of distilled rows.
    """
    if config.is_distilled:
        info = client.corpus(config.corpus)
        if teacher is None and (config.needs_topk or (config.teacher == "auto" and info.topk)):
            teacher = "stored"
        check_distilled(info, teacher)
    own = {each.name for each in fields(Rehearsal)} & RehearsalConfig.model_fields.keys() - {"run", "teacher"}
    return Rehearsal(client, config.run, teacher=teacher, **{name: getattr(config, name) for name in own})
