"""Plans between the owner's process and its gateways, and an error from its problem document.

Plans are sent as the length of a head (4 bytes, little-endian), the head as JSON, and the rows of all plans one after
the other as PLANNED_ROW records. Nothing of it is executed when it is read.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from replay_service import errors
from replay_service.errors import ReplayError
from replay_service.ledger.plan_windows import Window
from replay_service.sampling.events import PLANNED_ROW, Planned

_LENGTH_BYTES: Final = 4
_SAID_OF_RUN: Final = ("run", "corpus", "corpus_fingerprint", "generation", "attempt", "injection_ratio", "is_new")
_SAID_BY_PROBLEM: Final = ("type", "title", "status", "detail")


def encode_window(window: Window) -> bytes:
    return encode_plans(window.plans, {name: getattr(window, name) for name in _SAID_OF_RUN})


def encode_plans(plans: Sequence[Planned], said: dict[str, Any] | None = None) -> bytes:
    """Plans, and what else is to be said with them."""
    heads = [(each.step, each.policy_version, each.rehearsed_before, len(each.rows)) for each in plans]
    head = json.dumps((said or {}) | {"plans": heads}).encode()
    return b"".join([len(head).to_bytes(_LENGTH_BYTES, "little"), head, *(each.rows.tobytes() for each in plans)])


def decode_window(content: bytes) -> Window:
    """The window; the rows of its plans are views of `content`."""
    plans, said = decode_plans(content)
    return Window(**said, plans=plans)


def decode_plans(content: bytes) -> tuple[list[Planned], dict[str, Any]]:
    """The decoded plans; their rows are views of `content`."""
    end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    said = json.loads(content[_LENGTH_BYTES:end])
    plans = []
    for step, policy_version, rehearsed_before, num_rows in said.pop("plans"):
        rows = np.frombuffer(content, PLANNED_ROW, num_rows, end)
        plans.append(Planned(step, policy_version, rehearsed_before, rows))
        end += rows.nbytes
    return plans, said


def error_of(problem: dict[str, Any]) -> ReplayError | None:
    """The error that a problem document tells of, as it was raised; None when it is none that a caller can cause."""
    kind = _KINDS.get(problem["type"].rpartition(":")[2])
    extensions = {name: value for name, value in problem.items() if name not in _SAID_BY_PROBLEM}
    return None if kind is None else kind(problem["detail"], **extensions)


def _kinds(kind: type[ReplayError]) -> Iterator[type[ReplayError]]:
    for each in kind.__subclasses__():
        if each.__module__ == errors.__name__:
            yield each
            yield from _kinds(each)


_KINDS: Final = {kind.slug: kind for kind in _kinds(ReplayError)}
