"""What a payload may hold, so that every part of the way can carry it: HTTP, Kafka, the store, the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from contract.errors import BodyTooLarge, InvalidRequest

PAYLOAD_DEPTH_MAX = 32
# An event travels in one Kafka record, which ends at 1 MiB, with other fields beside the payload.
PAYLOAD_BYTES_MAX = 512 * 1024
# The range of MessagePack, in which the embedding log is written.
INTEGER_MIN, INTEGER_MAX = -(2**63), 2**64 - 1


def check_payload(payload: Mapping[str, Any]) -> None:
    """Refuse a payload that could not be carried; `payload` is as decoded from JSON.

    Raises InvalidRequest for objects and lists more than PAYLOAD_DEPTH_MAX deep inside each other and for an integer
    beyond 64 bits, BodyTooLarge for more than PAYLOAD_BYTES_MAX bytes of JSON.
    """
    # Not by recursion: the depth is what is in question.
    level: list[object] = [payload]
    depth = 0
    while level:
        depth += 1
        if depth > PAYLOAD_DEPTH_MAX:
            raise InvalidRequest(f"payload: its parts lie more than {PAYLOAD_DEPTH_MAX} deep inside each other")
        below: list[object] = []
        for node in level:
            for value in node.values() if isinstance(node, dict) else node:  # type: ignore[attr-defined]
                if isinstance(value, dict | list):
                    below.append(value)
                elif isinstance(value, int) and not INTEGER_MIN <= value <= INTEGER_MAX:
                    raise InvalidRequest("payload: holds an integer beyond 64 bits; write it as a string")
        level = below
    if len(msgspec.json.encode(payload)) > PAYLOAD_BYTES_MAX:
        raise BodyTooLarge(f"payload: has more than {PAYLOAD_BYTES_MAX} bytes")
