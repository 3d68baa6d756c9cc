"""Factories: a callable of a package that makes a model, named `package.module:callable`."""

import importlib
import os
import re
from typing import Any, Final

from replay_service.errors import CorpusError

_FACTORY: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_factory(name: str) -> bool:
    """Whether a model's name is that of a factory, which runs code of others."""
    return _FACTORY.fullmatch(name) is not None and not os.path.exists(name)  # noqa: PTH110 (no error if it is too long)


def made_by(name: str) -> Any:
    """The model of a factory, called without arguments; raises CorpusError when it cannot be called."""
    module, _, factory = name.partition(":")
    try:
        return getattr(importlib.import_module(module), factory)()
    except (ImportError, AttributeError, TypeError) as error:
        raise CorpusError(
            f"the factory {name!r} cannot be called: {error}; name a callable without arguments as "
            "package.module:callable, in a package that Python finds"
        ) from error
