"""A plugin of Axolotl that rehearses; see README.md."""

from typing import Any

from axolotl.core.trainers.base import AxolotlTrainer
from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel

from replay_trainer.hf import RehearsalMixin


class RehearsalArgs(BaseModel):
    """The key that the plugin adds to a YAML file."""

    rehearsal: dict[str, Any] | None = None


class RehearsalAxolotlTrainer(RehearsalMixin, AxolotlTrainer):  # type: ignore[misc]
    """Axolotl's trainer of supervised fine-tuning, which rehearses."""


class RehearsalPlugin(BasePlugin):  # type: ignore[misc]
    """Gives Axolotl a trainer that rehearses where the YAML file has the key `rehearsal`."""

    def get_input_args(self) -> str:
        return "replay_axolotl.RehearsalArgs"

    def get_trainer_cls(self, cfg: Any) -> type[AxolotlTrainer] | None:
        if not cfg.rehearsal:
            return None
        return type(RehearsalAxolotlTrainer.__name__, (RehearsalAxolotlTrainer,), {"rehearsal_settings": cfg.rehearsal})
