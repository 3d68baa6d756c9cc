"""The server process: uvicorn around the application, its log as JSON lines."""

import logging
import signal
import sys

import structlog
import uvicorn

from replay_service.gateway.app import create_app
from replay_service.settings import ServiceSettings


def run_server(settings: ServiceSettings) -> None:
    """Serve until SIGTERM or SIGINT; open requests are finished first.

    uvicorn raises the signal again once it has drained; a process that was asked to stop and did has not failed.
    """
    _configure_logging(settings.log_level)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=settings.log_level == "debug",
        timeout_graceful_shutdown=settings.drain_timeout_s,
        server_header=False,
    )


def _configure_logging(level: str) -> None:
    """uvicorn's lines and ours in one form, on standard error."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, structlog.processors.JSONRenderer()],
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
