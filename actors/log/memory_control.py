"""Creates and deletes topics on the in-memory cluster, whose Kafka protocol has no such request.

The process that runs the cluster listens on a loopback port; one JSON object a line each way.
"""

from __future__ import annotations

import socket
from typing import Literal

import msgspec
from msgspec import Struct

from contract.errors import BrokerUnavailable

_TIMEOUT_S = 10.0


class TopicRequest(Struct, frozen=True):
    """Create a topic of `partitions`, or delete it; both leave a fulfilled wish as it is."""

    operation: Literal["create", "delete"]
    topic: str
    partitions: int = 0


class TopicAnswer(Struct, frozen=True):
    """`error` is None when the request was carried out."""

    error: str | None = None


def ask(control: str, request: TopicRequest) -> None:
    """Have the in-memory cluster at `control` carry out a request.

    Raises:
        BrokerUnavailable: its process does not answer, or failed at it (retryable).
    """
    host, port = control.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), timeout=_TIMEOUT_S) as connection:
            connection.sendall(msgspec.json.encode(request) + b"\n")
            with connection.makefile("rb") as answers:
                answer = msgspec.json.decode(answers.readline(), type=TopicAnswer)
    except (OSError, msgspec.MsgspecError) as error:
        raise BrokerUnavailable(f"the in-memory broker at {control} does not answer: {error}") from error
    if answer.error is not None:
        raise BrokerUnavailable(f"the in-memory broker could not {request.operation} {request.topic}: {answer.error}")
