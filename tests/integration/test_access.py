"""Access on the running system: TLS, keys made by the command line, private images, secrets; then Schemathesis."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from serving.client import Client, Forbidden, NotFound, Unauthenticated
from tests.integration.pictures import new_picture
from tests.integration.system import RIVERLENS, RunningSystem, eventually, on_both_brokers

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

_CHECKS = (
    "fails_as_promised,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,unsupported_method,allow_header_conformance,"
    "missing_required_header,ignored_auth"
)


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its private key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "riverlens test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "cert.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return certificate, private


class Guarded:
    """A system that asks for keys, over TLS, and the keys that were made for it."""

    def __init__(self, home: Path, kind: str) -> None:
        home.parent.mkdir(parents=True, exist_ok=True)
        self.certificate, private = _certificate(home.parent)
        settings = {
            "RIVERLENS_AUTH": "on",
            "RIVERLENS_HTTP_TLS_CERT": str(self.certificate),
            "RIVERLENS_HTTP_TLS_KEY": str(private),
            "RIVERLENS_HTTP_TLS_CA": str(self.certificate),
            # What is not there is not waited for longer than it takes to apply what is.
            "RIVERLENS_MIN_RECEIPT_TIMEOUT_S": "0.5",
            # A line of every request, so that there is one that could hold a secret.
            "RIVERLENS_ACCESS_LOG": "all",
            # Where Ray keeps what its processes print.
            "TMPDIR": str(home.parent),
        }
        self.system = RunningSystem(home, kind, settings)
        self.system.base_url = self.system.base_url.replace("http:", "https:")
        self.system.http.close()
        trusted = ssl.create_default_context(cafile=str(self.certificate))
        self.system.http = httpx.Client(base_url=self.system.base_url, timeout=90, verify=trusted)
        self.secrets: list[str] = []

    def riverlens(self, *arguments: str, key: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**self.system.environment, **({} if key is None else {"RIVERLENS_API_KEY": key})}
        return subprocess.run(
            [RIVERLENS, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    def key(self, owner: str, *scopes: str) -> tuple[str, str]:
        """Make a key by the command line: its id, and the key."""
        options = [part for scope in scopes for part in ("--scope", scope)]
        made = self.riverlens("keys", "create", "--owner", owner, *options, "--json")
        assert made.returncode == 0, made.stderr
        answer = json.loads(made.stdout)
        self.secrets.append(answer["key"])
        return answer["key_id"], answer["key"]

    def client(self, key: str | None) -> Client:
        return Client(self.system.base_url, api_key=key, tls_ca=self.certificate, deadline_s=60)


@pytest.fixture(scope="module", params=["memory", "kafka"] if on_both_brokers() else ["memory"])
def guarded(request: pytest.FixtureRequest, short_tmp: Path) -> Iterator[Guarded]:
    made = Guarded(short_tmp / request.param[0] / "home", str(request.param))
    try:
        made.system.start(within_s=420)
        yield made
    finally:
        made.system.end()


def test_a_private_picture_is_its_owners_until_the_key_is_revoked(guarded: Guarded) -> None:
    _, ada_key = guarded.key("ada", "read", "write")
    bob_id, bob_key = guarded.key("bob", "read", "write")
    with guarded.client(ada_key) as ada, guarded.client(bob_key) as bob, guarded.client("rl_nothing") as nobody:
        # A key is known to the API within a second of being made.
        eventually(lambda: _is_known(ada) and _is_known(bob), within_s=5)
        with pytest.raises(Unauthenticated):
            nobody.collections()
        data = new_picture(7100)
        ada.upload("images", data, id="hers", payload={"visibility": "private", "caption": "zebra"}, wait="searchable")
        bob.upload("images", new_picture(7101), id="his", payload={"caption": "zebra"}, wait="searchable")
        assert ada.search("images", image=data, limit=1).hits[0].id == "hers"
        assert ada.content("images", "hers").data
        for answer in (
            bob.search("images", image=data, limit=50),
            bob.search("images", text="zebra", hybrid=True, limit=50),
            bob.search("images", text="zebra", exact=True, limit=50),
            bob.search("images", image=data, rerank=True, limit=50),
        ):
            assert [hit.id for hit in answer.hits] == ["his"]
        assert [one.id for one in bob.image_page("images").images] == ["his"]
        for ask in (bob.image, bob.content, bob.delete):
            with pytest.raises(NotFound):
                ask("images", "hers")
        with pytest.raises(Forbidden):
            bob.upload("images", data, id="hers")
        with pytest.raises(Forbidden):
            bob.create_collection("never-mine")
        revoking = guarded.riverlens("keys", "revoke", bob_id)
        assert revoking.returncode == 0, revoking.stderr
        eventually(lambda: not _is_known(bob), within_s=5)
        assert bob_id in guarded.riverlens("keys", "list").stdout
        assert ada.image("images", "hers").payload == {"visibility": "private", "caption": "zebra", "owner": "ada"}


def _is_known(client: Client) -> bool:
    try:
        client.collections()
    except Unauthenticated:
        return False
    return True


def test_the_command_line_sends_its_key(guarded: Guarded) -> None:
    _, key = guarded.key("cli", "read")
    eventually(lambda: guarded.riverlens("collections", key=key).returncode == 0, within_s=20)
    refused = guarded.riverlens("collections")
    assert refused.returncode == 1
    assert "unauthenticated" in refused.stderr


def test_clear_text_and_strange_authorities_are_refused(guarded: Guarded) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(guarded.system.base_url.replace("https:", "http:") + "/healthz")
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(guarded.system.base_url + "/healthz")
    answer = guarded.system.http.get("/healthz")
    assert answer.status_code == 200
    assert "max-age" in answer.headers["strict-transport-security"]


def test_the_running_api_is_what_it_says_it_is(guarded: Guarded, tmp_path: Path) -> None:
    """Schemathesis on every operation of /openapi.json, with a key for everything."""
    _, key = guarded.key("tester", "admin")
    with guarded.client(key) as client:
        eventually(lambda: _is_known(client), within_s=5)
        client.upload("images", new_picture(7102), id="known", payload={}, wait="searchable")
    examples = os.environ.get("SCHEMATHESIS_EXAMPLES", "5")
    phases = os.environ.get("SCHEMATHESIS_PHASES", "examples,fuzzing")
    seed = os.environ.get("SCHEMATHESIS_SEED", "1")
    run = subprocess.run(
        [
            *(str(Path(sys.executable).parent / "schemathesis"), "run", f"{guarded.system.base_url}/openapi.json"),
            *("--phases", phases, "--max-examples", examples, "--seed", seed, "--checks", _CHECKS),
            *("--header", f"Authorization: Bearer {key}", "--tls-verify", str(guarded.certificate)),
            *("--generation-database", "none", "--no-color", "--request-timeout", "30", "--continue-on-failure"),
        ],
        # It leaves files where it runs.
        cwd=tmp_path,
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
            "PYTHONPATH": str(Path(__file__).resolve().parent),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-20000:] + run.stderr[-2000:]
    tested = re.search(r"(\d+) generated", run.stdout)
    assert tested is not None, run.stdout[-3000:]
    assert int(tested.group(1)) > 50


def test_no_log_of_the_run_has_a_key(guarded: Guarded) -> None:
    """After the tests above: nothing that any process wrote, Ray and Kafka included, has the secret of any key."""
    guarded.key("last", "read")
    assert len(guarded.secrets) >= 2
    logs = [path for path in guarded.system.home.parent.rglob("*") if path.is_file()]
    lines = [path for path in logs if b"key_id=" in path.read_bytes()]
    assert lines, "no file has a line of a request"
    for path in logs:
        data = path.read_bytes()
        for key in guarded.secrets:
            assert key.encode() not in data, path
            assert key.split("_", 2)[2].encode() not in data, path
