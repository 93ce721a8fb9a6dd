"""Both Kafka clients and the whole system against an Apache Kafka that asks for TLS and SASL (`make test-tls`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import pytest
from msgspec import Struct

from actors.log.admin import ensure_topic
from actors.log.connection import bootstrap_servers
from actors.log.producer import LogProducer
from contract.errors import BrokerUnavailable
from contract.settings import Settings
from contract.topics import image_events_spec, image_events_topic
from streams.app import make_app
from streams.outcome import SourceEvent
from tests.integration.pictures import new_picture
from tests.integration.secure_kafka import PASSWORD, USER, Authority, SecureKafka
from tests.integration.system import RunningSystem, kafka_can_run

pytestmark = [
    pytest.mark.tls,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not kafka_can_run(), reason="Apache Kafka needs Java 17 and Maven"),
]


class Secured(Struct, frozen=True):
    """A running broker and what its clients may need."""

    kafka: SecureKafka
    authority: Authority
    client: tuple[Path, Path]

    def sasl(self, mechanism: str) -> dict[str, str]:
        """Settings by environment variable, for SASL over TLS."""
        return {
            "kafka_bootstrap": self.kafka.sasl_ssl,
            "kafka_security_protocol": "SASL_SSL",
            "kafka_sasl_mechanism": mechanism,
            "kafka_sasl_username": USER,
            "kafka_sasl_password": PASSWORD,
            "kafka_ssl_ca_location": str(self.authority.certificate),
        }

    def mutual(self) -> dict[str, str]:
        """Settings for TLS with a certificate of the client's own."""
        return {
            "kafka_bootstrap": self.kafka.ssl,
            "kafka_security_protocol": "SSL",
            "kafka_ssl_ca_location": str(self.authority.certificate),
            "kafka_ssl_certificate_location": str(self.client[0]),
            "kafka_ssl_key_location": str(self.client[1]),
        }


@pytest.fixture(scope="module")
def secured(short_tmp: Path) -> Iterator[Secured]:
    authority = Authority(short_tmp / "tls", "authority")
    kafka = SecureKafka(short_tmp / "secured", authority)
    kafka.prepare()
    try:
        kafka.know_user(kafka.start().bootstrap)
        yield Secured(kafka, authority, authority.issue("client"))
    finally:
        kafka.stop()


WAYS: Mapping[str, Callable[[Secured], dict[str, str]]] = {
    "plain": lambda secured: secured.sasl("PLAIN"),
    "scram-sha-256": lambda secured: secured.sasl("SCRAM-SHA-256"),
    "scram-sha-512": lambda secured: secured.sasl("SCRAM-SHA-512"),
    "mutual-tls": Secured.mutual,
}


@pytest.mark.parametrize("way", WAYS)
async def test_what_one_client_sends_the_other_reads(secured: Secured, tmp_path: Path, way: str) -> None:
    settings = Settings(home=tmp_path, **WAYS[way](secured))  # type: ignore[arg-type]
    topic = image_events_topic(way)
    ensure_topic(settings, image_events_spec(way, 1, -1))
    got: asyncio.Queue[bytes] = asyncio.Queue()

    async def submit(batch: Sequence[tuple[SourceEvent, object]]) -> None:
        for event, _ in batch:
            await got.put(event.value)

    producer = LogProducer(settings, "test-tls")
    app = make_app(settings, {way: "life"}, submit, tmp_path)
    app.finalize()
    await app.start()
    try:
        assert await producer.send(topic, 0, b"a", b"over TLS") == 0
        assert await asyncio.wait_for(got.get(), 60) == b"over TLS"
    finally:
        await app.stop()
        await asyncio.to_thread(producer.close)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kafka_ssl_ca_location": "OTHER"}, "certificate"),
        ({"kafka_sasl_password": "wrong"}, "[Aa]uthentication failed"),
    ],
    ids=["an authority that did not sign", "a wrong password"],
)
def test_what_is_wrong_is_refused_and_named(
    secured: Secured, tmp_path: Path, changes: dict[str, str], told: str
) -> None:
    other = str(Authority(tmp_path, "other").certificate)
    changes = {name: other if value == "OTHER" else value for name, value in changes.items()}
    settings = Settings(home=tmp_path, **{**secured.sasl("PLAIN"), **changes})  # type: ignore[arg-type]
    with pytest.raises(BrokerUnavailable, match=told) as refused:
        bootstrap_servers(settings, 3.0)
    assert PASSWORD not in str(refused.value)


def test_the_whole_system_runs_on_it(secured: Secured, fresh_system: Callable[..., RunningSystem]) -> None:
    settings = {f"RIVERLENS_{name.upper()}": value for name, value in secured.sasl("SCRAM-SHA-512").items()}
    running = fresh_system("over-tls", "kafka", **settings)
    running.start()
    data = new_picture(7, 96)
    assert running.upload(data, id="encrypted").status_code == 201
    assert running.search_picture(data)["hits"][0]["id"] == "encrypted"
    assert running.stop() == 0
    assert PASSWORD.encode() not in running.log.read_bytes()
    assert msgspec.json.encode(PASSWORD) not in running.log.read_bytes()
