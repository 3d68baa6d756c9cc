"""Base models that an ingest may load when somebody else names them: no code and no pickle is run for it."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from replay_service.classification.factory import is_factory
from replay_service.errors import CorpusError

Find = Callable[[str], str | None]
"""The path of a file of a model by its name; None when the model has no such file."""

_HUB_NAME: Final = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_WEIGHTS: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"


def check_model(name: str) -> None:
    """Find what is wrong with a model, as far as that shows without the network.

    Raises:
        CorpusError: when it is a factory, neither a folder nor a name as the hub has them, or a folder without
            safetensors.
    """
    if is_factory(name):
        raise CorpusError(
            f"the factory {name!r} would run code in the service; start this ingest with `replay-service ingest`"
        )
    if os.path.isdir(name):  # noqa: PTH112 (False, and no error, for what cannot be a path)
        check_safetensors(name, lambda file: _found(Path(name, file)))
    elif not _HUB_NAME.fullmatch(name):
        raise CorpusError(
            f"{_shortened(name)} is neither a folder on the service's machine nor a hub name such as "
            "HuggingFaceTB/SmolLM2-135M; name the base model by one of them"
        )


def check_safetensors(name: str, find: Find) -> None:
    """Raises CorpusError unless loading the model reads weights from safetensors alone."""
    if find("adapter_config.json") is not None:
        raise CorpusError(f"{_shortened(name)} is an adapter; merge it into its model, and name the merged model")
    index = find(_INDEX)
    if find(_WEIGHTS) is None and (index is None or not _names_safetensors(Path(index))):
        raise CorpusError(
            f"{_shortened(name)} has no weights as safetensors, and an ingest that is started over HTTP loads no "
            "pickle (.bin, .pt); save the model with save_pretrained, or start the ingest with `replay-service ingest`"
        )


def _found(path: Path) -> str | None:
    return str(path) if path.is_file() else None


def _names_safetensors(index: Path) -> bool:
    """Whether all files that an index of weights names are safetensors."""
    try:
        files = json.loads(index.read_text())["weight_map"].values()
        return all(file.endswith(".safetensors") for file in files)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _shortened(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:100]}...")
