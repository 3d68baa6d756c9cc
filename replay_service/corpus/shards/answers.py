"""Answers of servers, as the filesystems of fsspec tell of them: by a FileNotFoundError, whatever a server has said."""

from http import HTTPStatus
from typing import Final

_MISSING: Final = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)


def behind(error: Exception) -> BaseException:
    """The answer of a server, or the failed connection to it, that an error was made of; else the error itself."""
    cause = error.__cause__
    if cause is None or not isinstance(error, FileNotFoundError):
        return error
    is_of_connection = isinstance(cause, OSError) or type(cause).__module__.startswith("aiohttp.")
    return cause if _status_of(cause) is not None or is_of_connection else error


def says_missing(error: BaseException) -> bool:
    """Whether an error means that there is no such file, and not that the file may not or cannot be read."""
    status = _status_of(error)
    return isinstance(error, FileNotFoundError) if status is None else status in _MISSING


def reason_of(error: BaseException) -> str:
    """An error in a few words: the status that a server has answered with, or what the error says."""
    status = _status_of(error)
    if status is None:
        return str(error) or type(error).__name__
    known = next((f" {each.phrase}" for each in HTTPStatus if each == status), "")
    return f"the server answered {status}{known}"


def _status_of(error: BaseException) -> int | None:
    """The HTTP status that an error of aiohttp, httpx or requests is about."""
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None
