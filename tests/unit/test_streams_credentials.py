"""TLS and SASL as Faust's Kafka client takes them."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import faust
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from contract.settings import Settings
from streams.app import credentials


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "riverlens test")])
    today = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(today)
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = tmp_path / "cert.pem", tmp_path / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


def test_plain_text_needs_none(tmp_path: Path) -> None:
    assert credentials(Settings(home=tmp_path, kafka_bootstrap="k:1", kafka_sasl_password="secret")) is None


def test_tls_trusts_the_given_authority_and_shows_the_client_certificate(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    made = credentials(
        Settings(
            home=tmp_path,
            kafka_bootstrap="k:1",
            kafka_security_protocol="SSL",
            kafka_ssl_ca_location=certificate[0],
            kafka_ssl_certificate_location=certificate[0],
            kafka_ssl_key_location=certificate[1],
        )
    )
    assert isinstance(made, faust.SSLCredentials)
    assert [authority["serialNumber"] for authority in made.context.get_ca_certs()] == ["07"]
    assert made.context.verify_mode == ssl.CERT_REQUIRED
    assert made.context.check_hostname


@pytest.mark.parametrize(("protocol", "encrypted"), [("SASL_PLAINTEXT", False), ("SASL_SSL", True)])
def test_sasl_passes_user_password_and_mechanism(tmp_path: Path, protocol: str, encrypted: bool) -> None:
    made = credentials(
        Settings(
            home=tmp_path,
            kafka_bootstrap="k:1",
            kafka_security_protocol=protocol,
            kafka_sasl_mechanism="SCRAM-SHA-256",
            kafka_sasl_username="me",
            kafka_sasl_password="secret",
        )
    )
    assert isinstance(made, faust.SASLCredentials)
    assert (made.username, made.password, made.mechanism.value) == ("me", "secret", "SCRAM-SHA-256")
    assert made.protocol.value == protocol
    assert (made.ssl_context is not None) == encrypted
