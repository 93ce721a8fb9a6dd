"""Which API keys exist: the last record per id in the compacted topic `riverlens-keys`."""

from __future__ import annotations

from actors.log.latest import LatestRecords
from contract.events import encode_json
from contract.keys import ApiKey, decode_api_key
from contract.settings import Settings
from contract.topics import KEYS_TOPIC


class KeyRegistry:
    """A view of the keys topic, and the way to write to it. Thread-safe; connects at its first use."""

    def __init__(self, settings: Settings) -> None:
        self._records = LatestRecords(settings, KEYS_TOPIC, "riverlens-keys", decode_api_key)

    def refresh(self) -> dict[str, ApiKey]:
        """Every key by its id, revoked ones too, as of now. Raises BrokerUnavailable (retryable)."""
        return self._records.read()

    def put(self, key: ApiKey) -> None:
        """Write a key and return once it is durable. Raises BrokerUnavailable (retryable)."""
        self._records.put(key.key_id, encode_json(key))

    def close(self) -> None:
        """Release the connection."""
        self._records.close()
