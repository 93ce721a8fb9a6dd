"""The object store without keys in its settings: the credentials that EKS Pod Identity hands to a pod."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from actors.objects import ObjectStore
from contract.settings import Settings

pytestmark = pytest.mark.integration
_EXPIRES = "2099-01-01T00:00:00Z"


class Agent(BaseHTTPRequestHandler):
    """The agent on a node, which gives credentials for a pod's token, and the object store, in one server."""

    asked: list[tuple[str, str, str]]

    def do_GET(self) -> None:
        """Credentials for whoever shows the token."""
        self._note()
        body = {"AccessKeyId": "ASIAOFTHEPOD", "SecretAccessKey": "secret", "Token": "session", "Expiration": _EXPIRES}
        self._answer(json.dumps(body).encode())

    def do_PUT(self) -> None:
        """Take an object."""
        self._note()
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(b"")

    def _note(self) -> None:
        session = self.headers.get("x-amz-security-token", "")
        self.asked.append((self.path, self.headers.get("Authorization", ""), session))

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"etag"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def agent() -> Iterator[ThreadingHTTPServer]:
    Agent.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Agent) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def test_a_pod_writes_with_the_credentials_of_its_role(
    agent: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"http://127.0.0.1:{agent.server_port}"
    (tmp_path / "token").write_text("token-of-the-pod")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    # What EKS sets in a pod, and the region that the manifests set.
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{address}/v1/credentials")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    store = ObjectStore(
        Settings(home=tmp_path, object_store_url="s3://pictures", object_store_options={"endpoint": address})
    )
    await store.put("images/one", b"bytes")
    (credentials, token, _), (path, signature, session) = Agent.asked
    assert (credentials, token) == ("/v1/credentials", "token-of-the-pod")
    assert path == "/pictures/images/one"
    assert "Credential=ASIAOFTHEPOD/" in signature
    assert "/eu-central-1/s3/" in signature
    assert session == "session"
