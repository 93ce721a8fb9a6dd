"""Keys, scopes, rates, ownership: the plain parts of access."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from contract.errors import (
    BodyTooLarge,
    BrokerUnavailable,
    EventInvalid,
    Forbidden,
    InvalidRequest,
    NotFound,
    SettingsInvalid,
    Unauthenticated,
)
from contract.events import ImageUploaded, decode_event, encode_json
from contract.filters import matches
from contract.keys import ApiKey, Scope, decode_api_key
from contract.payloads import PAYLOAD_BYTES_MAX, PAYLOAD_DEPTH_MAX, check_payload
from contract.settings import Settings, load_settings
from serving.access.caller import EVERYBODY, NOBODY, Caller, acting_as, current_caller
from serving.access.keys import FRESH_S, KeyRing, make_key, revoked
from serving.access.ownership import owned_payload
from serving.access.rates import Rates
from serving.access.rules import scope_of
from serving.app import create_app
from serving.rerank.policy import make_policy
from tests.unit.serving_fakes import make_system

ADA = Caller("1", "ada", frozenset[Scope]({"read", "write"}))
ADMIN = Caller("2", "root", frozenset[Scope]({"admin"}))


class Store:
    """Keys in memory; reads block while the gate is closed."""

    def __init__(self) -> None:
        self.keys: dict[str, ApiKey] = {}
        self.reads = 0
        self.down = False
        self.gate = threading.Event()
        self.gate.set()

    def refresh(self) -> dict[str, ApiKey]:
        self.reads += 1
        found = dict(self.keys)
        self.gate.wait(10)
        if self.down:
            raise BrokerUnavailable("down")
        return found

    def put(self, key: ApiKey) -> None:
        self.keys[key.key_id] = key

    def close(self) -> None:
        pass


def put(store: Store, *scopes: Scope, owner: str = "ada") -> str:
    record, key = make_key(owner, scopes or ("read",), 1)
    store.put(record)
    return key


# --- keys


def test_what_is_kept_of_a_key_does_not_let_anybody_use_it() -> None:
    record, key = make_key("ada", ("write", "read"), 5)
    secret = key.rsplit("_", 1)[-1] if key.count("_") == 2 else key.split("_", 2)[2]
    kept = encode_json(record)
    assert secret.encode() not in kept
    assert decode_api_key(kept) == record
    assert record.scopes == ("read", "write")
    assert make_key("ada", ("read",), 5)[1] != key


def test_a_key_needs_an_owner_and_a_scope() -> None:
    with pytest.raises(InvalidRequest):
        make_key("ada", (), 1)
    for owner in ("", " ada", "a/b", "x" * 101, "ä"):
        with pytest.raises(InvalidRequest):
            make_key(owner, ("read",), 1)


async def test_only_the_very_key_is_taken() -> None:
    store = Store()
    key = put(store, "write")
    ring = KeyRing(store)
    caller = await ring.caller(key)
    assert (caller.owner, sorted(caller.scopes)) == ("ada", ["write"])
    last = "A" if key[-1] != "A" else "B"
    for wrong in ("", "x", key[:-1], key + "x", key[:-1] + last, "rl_" + "0" * 12 + key[15:], key.upper()):
        with pytest.raises(Unauthenticated):
            await ring.caller(wrong)


async def test_a_revoked_key_ends_within_the_bound() -> None:
    store, now = Store(), [0.0]
    key = put(store)
    ring = KeyRing(store, lambda: now[0])
    caller = await ring.caller(key)
    store.put(revoked(store.keys, caller.key_id or "", 9))
    now[0] += FRESH_S
    with pytest.raises(Unauthenticated):
        await ring.caller(key)


async def test_a_replica_that_revokes_knows_at_once() -> None:
    store = Store()
    key = put(store)
    ring = KeyRing(store)
    caller = await ring.caller(key)
    store.gate.clear()
    reading = asyncio.create_task(ring.refresh())
    await asyncio.sleep(0)
    # A reading is under way that saw the key still good.
    store.put(revoked(store.keys, caller.key_id or "", 9))
    store.gate.set()
    await reading
    await ring.refresh()
    with pytest.raises(Unauthenticated):
        await ring.caller(key)


async def test_known_keys_are_good_while_the_broker_is_away() -> None:
    store, now = Store(), [0.0]
    key = put(store)
    ring = KeyRing(store, lambda: now[0])
    store.down = True
    with pytest.raises(BrokerUnavailable):
        await ring.caller(key)
    store.down = False
    now[0] += 10
    await ring.caller(key)
    store.down = True
    for _ in range(3):
        now[0] += 10
        assert (await ring.caller(key)).owner == "ada"


async def test_one_reading_serves_many_requests() -> None:
    store = Store()
    key = put(store)
    ring = KeyRing(store, lambda: 0.0)
    await asyncio.gather(*(ring.caller(key) for _ in range(50)))
    assert store.reads == 1


def test_revoking_twice_changes_nothing_and_an_unknown_key_is_not_found() -> None:
    record, _ = make_key("ada", ("read",), 1)
    ended = revoked({record.key_id: record}, record.key_id, 7)
    assert ended.revoked_at_ms == 7
    assert revoked({record.key_id: ended}, record.key_id, 9) == ended
    with pytest.raises(NotFound):
        revoked({}, "nothing", 1)


# --- scopes


def test_every_route_has_the_scope_it_should(tmp_path: Path) -> None:
    app = create_app(make_system(tmp_path).dependencies())
    found = {
        f"{method.upper()} {path}": scope_of(method.upper(), path.replace("{", "").replace("}", ""))
        for path, operations in app.openapi()["paths"].items()
        for method in operations
    }
    reading = {
        "GET /v1/collections",
        "GET /v1/collections/{collection}",
        "GET /v1/collections/{collection}/images",
        "GET /v1/collections/{collection}/images/{image_id}",
        "GET /v1/collections/{collection}/images/{image_id}/content",
        "GET /v1/collections/{collection}/search",
        "POST /v1/collections/{collection}/search",
        "POST /v1/collections/{collection}/search/batch",
        "POST /v1/collections/{collection}/clicks",
        "GET /metrics",
    }
    writing = {
        "POST /v1/collections/{collection}/images",
        "PATCH /v1/collections/{collection}/images/{image_id}",
        "DELETE /v1/collections/{collection}/images/{image_id}",
    }
    assert {name for name, scope in found.items() if scope == "read"} == reading
    assert {name for name, scope in found.items() if scope == "write"} == writing
    assert {name for name, scope in found.items() if scope is None} == {"GET /healthz", "GET /readyz"}
    assert scope_of("GET", "/v1/nothing-yet") == "admin"


# --- rates


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    now = [0.0]
    rates = Rates(2.0, 3, lambda: now[0])
    assert [rates.take("a") for _ in range(3)] == [0, 0, 0]
    assert rates.take("a") == pytest.approx(0.5)
    assert rates.take("b") == 0
    now[0] += 0.5
    assert rates.take("a") == 0
    assert rates.take("a") > 0


@given(st.lists(st.floats(0, 3), min_size=1, max_size=60), st.floats(0.1, 20), st.integers(1, 10))
def test_no_bucket_ever_gives_more_than_burst_and_rate(pauses: list[float], per_s: float, burst: int) -> None:
    now, given_out = [0.0], 0
    rates = Rates(per_s, burst, lambda: now[0])
    for pause in pauses:
        now[0] += pause
        given_out += rates.take("a") == 0
    assert given_out <= burst + per_s * now[0] + 1e-6


# --- private images

PAYLOADS = st.fixed_dictionaries(
    {},
    optional={
        "visibility": st.sampled_from(["private", "public", ["private"], None]),
        "owner": st.sampled_from(["ada", "bob", ["ada", "bob"], None, 7]),
    },
)


@given(PAYLOADS, st.sampled_from([ADA, ADMIN, NOBODY, EVERYBODY]))
def test_filter_policy_and_sight_agree_on_who_sees_what(payload: dict[str, object], caller: Caller) -> None:
    data = msgspec.json.encode(payload)
    listed = (
        [payload["visibility"]]
        if not isinstance(payload.get("visibility"), list) and "visibility" in payload
        else payload.get("visibility", [])
    )
    owners = payload.get("owner")
    is_owner = caller.owner is not None and (
        owners == caller.owner or (isinstance(owners, list) and caller.owner in owners)
    )
    visible = caller.sees_all or "private" not in (listed or []) or is_owner  # type: ignore[operator]
    assert caller.sees(data) == visible
    policy = make_policy("tags", []).towards(caller)
    assert policy.allows(data) == visible
    restricted = policy.restrict(None, None)
    assert (restricted is None or matches(restricted, payload)) == visible


def test_shards_that_do_not_index_the_fields_are_checked_after() -> None:
    policy = make_policy("tags", ["secret"]).towards(ADA)
    assert policy.reaches_shards(None)
    assert not policy.reaches_shards(("tags", "visibility"))
    assert policy.reaches_shards(("tags", "visibility", "owner"))
    # What they can tell, they are still asked for.
    restricted = policy.restrict(None, ("tags",))
    assert restricted is not None
    assert not matches(restricted, {"tags": "secret"})
    assert matches(restricted, {"visibility": "private"})
    assert not policy.allows(b'{"visibility": "private"}')


def test_outside_of_a_request_nobody_sees_anything_private() -> None:
    assert current_caller() is NOBODY
    with acting_as(ADA):
        assert current_caller() is ADA
    assert current_caller() is NOBODY


def test_an_upload_belongs_to_its_key_and_nobody_claims_another() -> None:
    assert owned_payload(ADA, {"caption": "a"}, None) == {"caption": "a", "owner": "ada"}
    assert owned_payload(ADA, {"owner": "ada"}, None) == {"owner": "ada"}
    assert owned_payload(ADMIN, {"owner": "bob"}, None) == {"owner": "bob"}
    assert owned_payload(EVERYBODY, {"owner": "bob"}, b'{"owner": "ada"}') == {"owner": "bob"}
    with pytest.raises(Forbidden):
        owned_payload(ADA, {"owner": "bob"}, None)
    with pytest.raises(InvalidRequest):
        owned_payload(ADA, {"visibility": "privat"}, None)
    with pytest.raises(InvalidRequest):
        owned_payload(ADMIN, {"owner": ["ada", "bob"]}, None)


def test_a_change_keeps_the_owner_and_takes_nothing_from_another() -> None:
    assert owned_payload(ADMIN, {"caption": "b"}, b'{"owner": "ada"}') == {"caption": "b", "owner": "ada"}
    assert owned_payload(ADA, {}, b"{}") == {"owner": "ada"}
    with pytest.raises(Forbidden):
        owned_payload(ADA, {}, b'{"owner": "bob"}')
    with pytest.raises(Forbidden):
        owned_payload(ADA, {}, b'{"owner": 7}')


# --- settings


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("127.0.0.1", False),
        ("::1", False),
        ("localhost", False),
        ("0.0.0.0", True),
        ("10.0.0.7", True),
        ("images.example", True),
    ],
)
def test_keys_are_asked_for_beyond_loopback(host: str, asked: bool) -> None:
    assert Settings(http_host=host).asks_for_keys is asked
    assert Settings(http_host=host, auth="on").asks_for_keys


def test_a_public_address_without_keys_must_be_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIVERLENS_HTTP_HOST", "0.0.0.0")
    monkeypatch.setenv("RIVERLENS_AUTH", "off")
    load_settings.cache_clear()
    with pytest.raises(SettingsInvalid, match="AUTH_OFF_BEYOND_LOOPBACK"):
        load_settings()
    monkeypatch.setenv("RIVERLENS_AUTH_OFF_BEYOND_LOOPBACK", "true")
    assert not load_settings().asks_for_keys
    load_settings.cache_clear()


def test_half_of_a_certificate_is_refused() -> None:
    with pytest.raises(ValueError, match="belong together"):
        Settings(http_tls_cert=Path("cert.pem"))


def test_a_key_in_the_settings_is_not_printed() -> None:
    settings = Settings(api_key=SecretStr("rl_secret"))
    assert "rl_secret" not in f"{settings!r} {settings} {settings.model_dump_json()}"


# --- payloads


def nested(depth: int) -> dict[str, object]:
    payload: dict[str, object] = {}
    for _ in range(depth - 1):
        payload = {"a": [payload]} if depth % 2 else {"a": payload}
    return payload


def test_payloads_that_could_not_be_carried_are_refused() -> None:
    check_payload({"n": 2**64 - 1, "m": -(2**63), "t": True, "deep": {"a": [1, {"b": 2.5}]}})
    check_payload(nested(PAYLOAD_DEPTH_MAX))
    for payload in ({"n": 2**64}, {"list": [{"n": -(2**63) - 1}]}, nested(PAYLOAD_DEPTH_MAX + 2)):
        with pytest.raises(InvalidRequest):
            check_payload(payload)
    with pytest.raises(BodyTooLarge):
        check_payload({"text": "x" * PAYLOAD_BYTES_MAX})


@pytest.mark.parametrize("payload", [b'{"n": 1' + b"0" * 40 + b"}", b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"])
def test_an_event_with_such_a_payload_is_no_event(payload: bytes) -> None:
    event = ImageUploaded("images", "a", "k", "0" * 64, 1, 1)
    data = encode_json(event).replace(b'"payload":{}', b'"payload":' + payload)
    assert payload in data
    with pytest.raises(EventInvalid):
        decode_event(data)
