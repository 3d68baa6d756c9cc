"""The log: one JSON object a line on standard error, whoever writes it."""

import json
import logging
import sys
from typing import Any, Final

import structlog

_ENCODER: Final = json.JSONEncoder(default=repr)


def configure_logs(level: str) -> None:
    """Bring uvicorn's lines and ours into one form; `level` is the least severe that is written.

    Ours go to standard error past the standard library's logging, which costs as much as half a batch.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
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
