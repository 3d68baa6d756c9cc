"""The releases of the training libraries that this release is tested with; others are told of, once."""

import re
from functools import cache
from importlib import metadata
from typing import Final

import structlog

TESTED: Final[dict[str, tuple[str, str]]] = {
    "torch": ("2.13", "2.13"),
    "transformers": ("5.10", "5.23"),
    "accelerate": ("1.6", "1.15"),
    "peft": ("0.18", "0.21"),
    "trl": ("1.16", "1.16"),
    "lightning": ("2.5", "2.6"),
}
"""The oldest and the newest release that the tests of the training loops passed with; major and minor number.

The newest are those of `deploy/constraints.txt`. The oldest ran together, but trl needs accelerate 1.10. Older releases
may work where the package's metadata allow them, but nobody has tried.
"""

_log = structlog.get_logger()


@cache
def warn_if_untested(*names: str) -> None:
    """Log, once in a process, each of these libraries that is installed in a release outside its range."""
    for name in names:
        found = _installed(name)
        oldest, newest = TESTED[name]
        if found is not None and not _numbers(oldest) <= _numbers(found) <= _numbers(newest):
            _warn(name, found)


@cache
def _warn(name: str, found: str) -> None:
    oldest, newest = TESTED[name]
    span = newest if oldest == newest else f"{oldest} and {newest}"
    _log.warning(
        "untested_version",
        library=name,
        installed=found,
        oldest=oldest,
        newest=newest,
        hint=f"rehearsal was tried with {name} {span}; if training fails or figures look wrong, install "
        "one of those, or a newer release of replay-service",
    )


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """Major and minor number."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))
