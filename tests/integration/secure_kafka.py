"""A real Apache Kafka that asks for TLS and SASL, and the certificates around it."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Mapping
from pathlib import Path

from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._scram import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from contract.settings import Settings
from streams.local_kafka import LocalKafka
from tests.integration.system import free_port

USER, PASSWORD = "riverlens", "not the password of anybody"
_SCRAM = {"SCRAM-SHA-256": ScramMechanism.SCRAM_SHA_256, "SCRAM-SHA-512": ScramMechanism.SCRAM_SHA_512}
_LOGIN = "org.apache.kafka.common.security"


class Authority:
    """A certificate authority of its own; all it makes lies in `folder` as PEM files."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = folder / f"{name}.pem"
        made = _unsigned(self._name, self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.certificate.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        """A certificate for 127.0.0.1 and its private key."""
        key = ec.generate_private_key(ec.SECP256R1())
        address = x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))
        made = _unsigned(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), self._name, key).add_extension(
            x509.SubjectAlternativeName([address]), critical=False
        )
        certificate, private = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate, private


def _unsigned(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    today = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(minutes=5))
        .not_valid_after(today + datetime.timedelta(days=1))
    )


class SecureKafka(LocalKafka):
    """The Kafka that Riverlens starts itself, with two more listeners: SASL over TLS, and TLS of both sides."""

    def __init__(self, home: Path, authority: Authority) -> None:
        super().__init__(Settings(home=home))
        self.sasl_ssl, self.ssl = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        certificate, key = authority.issue("broker")
        self._store = certificate.with_name("broker-store.pem")
        self._store.write_bytes(key.read_bytes() + certificate.read_bytes())
        self._trusted = authority.certificate

    def _write_properties(self, broker_port: int, controller_port: int) -> None:
        super()._write_properties(broker_port, controller_port)
        plain = f"PLAINTEXT://127.0.0.1:{broker_port}"
        secured = f"SASL_SSL://{self.sasl_ssl},SSL://{self.ssl}"
        scram = {
            f"listener.name.sasl_ssl.{mechanism.lower()}.sasl.jaas.config": f"{_LOGIN}.scram.ScramLoginModule required;"
            for mechanism in _SCRAM
        }
        more: Mapping[str, str] = {
            "listeners": f"{plain},CONTROLLER://127.0.0.1:{controller_port},{secured}",
            "advertised.listeners": f"{plain},{secured}",
            "listener.security.protocol.map": ",".join(
                f"{listener}:{protocol}"
                for listener, protocol in (
                    ("PLAINTEXT", "PLAINTEXT"),
                    ("CONTROLLER", "PLAINTEXT"),
                    ("SASL_SSL", "SASL_SSL"),
                    ("SSL", "SSL"),
                )
            ),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self._store),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self._trusted),
            "listener.name.ssl.ssl.client.auth": "required",
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            "listener.name.sasl_ssl.plain.sasl.jaas.config": (
                f'{_LOGIN}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
            ),
            **scram,
        }
        with self._properties.open("a") as properties:
            properties.writelines(f"{name}={value}\n" for name, value in more.items())

    def know_user(self, bootstrap: str) -> None:
        """Make the user known to SCRAM, over the listener that asks for nothing."""
        admin = AdminClient({"bootstrap.servers": bootstrap})
        # A request names a user once.
        for mechanism in _SCRAM.values():
            asked = UserScramCredentialUpsertion(USER, ScramCredentialInfo(mechanism, 4096), PASSWORD.encode())
            admin.alter_user_scram_credentials([asked])[USER].result(30)
