"""The log on standard error, whoever writes it: one JSON object a line, or lines for a person at a terminal.

Lines that are written while a request is answered bear its run and, where it names them, its rank and step.
"""

import json
import logging
import sys
from typing import Any, Final, Literal

import structlog
from starlette.types import Scope
from structlog.contextvars import bind_contextvars, merge_contextvars

SPAN: Final = "replay.span"
"""Where the scope of a request holds its span, if it is traced."""

_ENCODER: Final = json.JSONEncoder(default=repr)


LogFormat = Literal["auto", "json", "console"]


def configure_logs(level: str, form: LogFormat = "auto") -> None:
    """Bring uvicorn's lines and ours into one form.

    Ours go to standard error past the standard library's logging, which costs as much as half a batch.

    Args:
        level: the least severe that is written.
        form: `auto` is `console` where standard error is a terminal, and `json` elsewhere.
    """
    is_console = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if is_console else "iso", utc=not is_console),
    ]
    renderer: structlog.typing.Processor
    if is_console:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    else:
        shared.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer(serializer=_serialize)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _serialize(event: Any, **_options: Any) -> str:
    return _ENCODER.encode(event)


def bind_work(scope: Scope, **names: int | str) -> None:
    """Let what a request logs from here on, and its trace if there is one, say what it is about."""
    bind_contextvars(**names)
    span = scope.get(SPAN)
    if span is not None:
        span.set_attributes({f"replay.{name}": value for name, value in names.items()})
