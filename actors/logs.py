"""Structured logs of every process: one event per line, to standard output."""

from __future__ import annotations

import logging
import sys

import structlog

from actors.call_context import add_request_ids
from contract.settings import Settings
from contract.telemetry import LogField

# Libraries that tell every step of their life at INFO; what goes wrong there still shows.
_TALKATIVE = ("faust", "mode", "aiokafka", "kafka", "faiss", "httpx", "numba")


def configure(settings: Settings, process: str, **fields: str) -> None:
    """Route structlog and the standard library's loggers to standard output under one format.

    `process` is the name of the process in the Procfile, or of the actor; it and `fields` stand in every line.
    """
    level = logging.getLevelNamesMapping()[settings.log_level]

    def named(_logger: object, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        # A context variable would be known only to the task that set it, and an actor's calls are tasks.
        return {**event, LogField.PROCESS: process, **fields}

    shared: list[structlog.types.Processor] = [
        named,
        structlog.contextvars.merge_contextvars,
        add_request_ids,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    if settings.log_level != "DEBUG":
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
