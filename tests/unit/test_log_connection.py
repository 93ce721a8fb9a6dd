"""How settings become the configuration of a Kafka client."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from confluent_kafka import KafkaError, KafkaException

from actors.log.connection import (
    LocalBroker,
    broker_instance,
    confluent_config,
    read_local_broker,
    translated,
)
from contract.errors import BrokerUnavailable
from contract.settings import Settings

LOCAL = LocalBroker("127.0.0.1:1234", "memory", "instance-1", "127.0.0.1:99")


def announced(home: Path, **changes: object) -> Settings:
    settings = Settings(home=home, **changes)  # type: ignore[arg-type]
    settings.broker_file.parent.mkdir(parents=True)
    settings.broker_file.write_bytes(msgspec.json.encode(LOCAL))
    return settings


def test_the_local_broker_is_reached_without_the_security_of_another_cluster(tmp_path: Path) -> None:
    settings = announced(tmp_path, kafka_security_protocol="SASL_SSL", kafka_sasl_username="me")
    config = confluent_config(settings)
    assert config["bootstrap.servers"] == LOCAL.bootstrap
    assert not [name for name in config if name.startswith(("sasl", "ssl", "security"))]
    assert broker_instance(settings) == "instance-1"


def test_a_cluster_that_settings_name_goes_before_the_local_broker(tmp_path: Path) -> None:
    settings = announced(tmp_path, kafka_bootstrap="kafka-1:9092,kafka-2:9092")
    assert confluent_config(settings)["bootstrap.servers"] == "kafka-1:9092,kafka-2:9092"
    assert read_local_broker(settings) is None
    assert broker_instance(settings) is None


def test_sasl_and_tls_pass_through(tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path,
        kafka_bootstrap="kafka:9093",
        kafka_security_protocol="SASL_SSL",
        kafka_sasl_mechanism="SCRAM-SHA-512",
        kafka_sasl_username="me",
        kafka_sasl_password="secret",
        kafka_ssl_ca_location=tmp_path / "ca.pem",
        kafka_ssl_certificate_location=tmp_path / "client.pem",
        kafka_ssl_key_location=tmp_path / "client.key",
    )
    config = confluent_config(settings)
    assert {name: config[name] for name in config if name.startswith(("sasl", "ssl", "security"))} == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "me",
        "sasl.password": "secret",
        "ssl.ca.location": str(tmp_path / "ca.pem"),
        "ssl.certificate.location": str(tmp_path / "client.pem"),
        "ssl.key.location": str(tmp_path / "client.key"),
    }


def test_plain_text_carries_no_credentials(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, kafka_bootstrap="kafka:9092", kafka_sasl_password="secret")
    assert "secret" not in confluent_config(settings).values()


def test_no_broker_and_a_damaged_announcement_are_unavailable(tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailable, match="is not running"):
        confluent_config(Settings(home=tmp_path))
    settings = announced(tmp_path)
    settings.broker_file.write_text('{"bootstrap": 5}')
    with pytest.raises(BrokerUnavailable, match="does not describe a broker"):
        confluent_config(settings)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (KafkaError._TRANSPORT, BrokerUnavailable),
        (KafkaError._TIMED_OUT, BrokerUnavailable),
        (KafkaError.LEADER_NOT_AVAILABLE, BrokerUnavailable),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaException),
    ],
)
def test_only_what_may_pass_is_called_unavailable(code: int, expected: type[Exception]) -> None:
    def call() -> None:
        raise KafkaException(KafkaError(code))

    with pytest.raises(expected):
        translated(call, "asking")
