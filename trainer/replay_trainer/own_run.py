"""A rehearsal that a trainer makes itself, from plain settings: for programs that build their trainer by its name."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from replay_trainer.client import ReplayClient
from replay_trainer.errors import InvalidTraining
from replay_trainer.keys import problems_of
from replay_trainer.new_run import rehearsal_of
from replay_trainer.plain import Rehearsal
from replay_trainer.rehearsal_config import RehearsalConfig
from replay_trainer.service_urls import URL_VARIABLE

SETTINGS_VARIABLE: Final = "REPLAY_REHEARSAL"
"""The environment variable that holds the settings, as JSON."""


@dataclass(frozen=True, slots=True)
class OwnRun:
    """What to rehearse, and in which run, which is made when training begins.

    Attributes:
        config: the settings, as in the section [rehearsal] of a job's file.
    """

    config: RehearsalConfig

    @classmethod
    def of(cls, settings: Mapping[str, Any] | None, arguments: Any, environment: Mapping[str, str]) -> "OwnRun":
        """The settings in one of these places, the first that has any.

        Without `service_url` the service is that of REPLAY_URL. Without `run` its name is the arguments' `run_name`, or
        the name of their output folder.

        Args:
            settings: those of the program; None for none.
            arguments: those of the trainer, whose attribute `rehearsal` may hold settings.
            environment: may hold them in REPLAY_REHEARSAL, as JSON.

        Raises:
            InvalidTraining: when there are none, or one of them is unknown, missing or out of range.
        """
        places = (
            ("the settings of the trainer's class", settings),
            ("the attribute rehearsal of the trainer's arguments", getattr(arguments, "rehearsal", None)),
            (f"the environment variable {SETTINGS_VARIABLE}", _parsed(environment.get(SETTINGS_VARIABLE))),
        )
        place, found = next(((place, each) for place, each in places if each), ("", None))
        if not isinstance(found, Mapping):
            raise InvalidTraining(
                f"nothing says what to rehearse; give the trainer rehearsal=Rehearsal(...), or set {SETTINGS_VARIABLE} "
                'to settings such as {"corpus": "pretraining", "injection_ratio": "0.05"}'
                if found is None
                else f"{place} must be a mapping of settings, not a {type(found).__name__}"
            )
        values = {"run": _name_of(arguments), "injection_mode": "add", **found}
        if URL_VARIABLE in environment:
            values.setdefault("service_url", environment[URL_VARIABLE])
        try:
            config = RehearsalConfig.model_validate(values)
        except ValidationError as error:
            raise InvalidTraining(f"{place}: {problems_of(error, RehearsalConfig)}") from None
        if config.run_settings()["injection_mode"] != "add":
            raise InvalidTraining(f"{place}: injection_mode must be add, since rows are added to the trainer's batches")
        return cls(config)

    def client(self) -> ReplayClient:
        """A client of the service; raises ServiceError as ReplayClient does."""
        return ReplayClient(self.config.service_url)

    def rehearsal(self) -> Rehearsal:
        """The rehearsal, with a client of its own.

        Raises:
            CorpusMismatch: as `rehearsal_of` does.
            ServiceError: as ReplayClient does.
        """
        return rehearsal_of(self.client(), self.config)

    def ensure(self, client: ReplayClient, global_batch_size: int, seed: int, num_steps: int, scheduler: str) -> None:
        """Make the run, or find it as it was made before.

        Args:
            client: of the service.
            global_batch_size: fine-tuning rows of an optimizer step.
            seed: key of the run's draws.
            num_steps: of the training.
            scheduler: of its learning rate, by the name that transformers gives it.

        Raises:
            InvalidTraining: when the rehearsal is timed, and nobody knows when by this scheduler.
            ServiceError: as ReplayClient does; ServiceRefused when there is a run of that name with other settings.
        """
        of_job = {"global_batch_size": global_batch_size, "seed": seed}
        settings = self.config.timed_settings(num_steps, scheduler)
        client.ensure_run(self.config.run, self.config.corpus, {**settings, **of_job})


def _parsed(text: str | None) -> Any:
    try:
        return json.loads(text) if text else None
    except ValueError as error:
        raise InvalidTraining(f"the environment variable {SETTINGS_VARIABLE} holds no JSON: {error}") from None


def _name_of(arguments: Any) -> str:
    """A name for the run: that of the training, in the characters that a run's name may have."""
    name = getattr(arguments, "run_name", None) or Path(arguments.output_dir).absolute().name
    return re.sub(r"[^a-z0-9._-]+", "-", str(name).lower()).strip("-._")[:64]
