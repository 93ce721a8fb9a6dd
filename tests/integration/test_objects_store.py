"""The object store client on a folder and on a local S3 server."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.objects import ObjectStore, image_key, thumbnail_key
from contract.errors import (
    ImageTooLarge,
    InvalidRequest,
    ObjectMissing,
    ObjectStoreUnavailable,
    SettingsInvalid,
)
from contract.settings import Settings
from tests.integration.s3 import CREDENTIALS, client

pytestmark = pytest.mark.integration

SHA = "ab" + "0" * 62


def s3_settings(home: Path, endpoint: str) -> Settings:
    return Settings(
        home=home,
        object_store_url="s3://pictures/some/prefix",
        object_store_options={"endpoint": endpoint, **CREDENTIALS},
    )


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "file":
        return ObjectStore(Settings(home=tmp_path / "home with spaces"))
    return ObjectStore(s3_settings(tmp_path, request.getfixturevalue("s3_endpoint")))


async def test_bytes_come_back_and_go_for_good(store: ObjectStore) -> None:
    key = image_key("birds", SHA)
    assert not await store.exists(key)
    await store.put(key, b"first", "image/png")
    await store.put(key, b"second", "image/png")
    assert await store.get(key) == b"second"
    assert await store.exists(key)
    await store.delete(key)
    await store.delete(key)
    assert not await store.exists(key)
    with pytest.raises(ObjectMissing):
        await store.get(key)


async def test_large_and_empty_objects(store: ObjectStore) -> None:
    data = bytes(range(256)) * 20_000
    await store.put("large", data)
    assert await store.get("large") == data
    await store.put("empty", b"")
    assert await store.get("empty") == b""


async def test_more_bytes_than_wanted_are_not_read(store: ObjectStore) -> None:
    await store.put("limited", b"x" * 100)
    assert await store.get("limited", max_bytes=100) == b"x" * 100
    with pytest.raises(ImageTooLarge):
        await store.get("limited", max_bytes=99)


@pytest.mark.parametrize("key", ["../outside", "a//b", "a\x00b", ""])
async def test_a_key_that_cannot_be_names_nothing(store: ObjectStore, key: str) -> None:
    """Events come from any producer, so a key from one may try to lead out of the store."""
    with pytest.raises(ObjectMissing):
        await store.get(key)


async def test_a_malformed_key_is_not_stored(store: ObjectStore) -> None:
    with pytest.raises(InvalidRequest):
        await store.put("../outside", b"x")


async def test_objects_lie_under_the_prefix_with_their_type(tmp_path: Path, s3_endpoint: str) -> None:
    store = ObjectStore(s3_settings(tmp_path, s3_endpoint))
    await store.put(thumbnail_key("birds", SHA, 256), b"tiny", "image/webp")
    head = client(s3_endpoint).head_object(Bucket="pictures", Key=f"some/prefix/thumbnails/birds/256/ab/{SHA}")
    assert head["ContentType"] == "image/webp"


async def test_files_lie_in_the_home_folder(tmp_path: Path) -> None:
    store = ObjectStore(Settings(home=tmp_path))
    await store.put(image_key("birds", SHA), b"picture")
    assert (tmp_path / "objects" / "images" / "birds" / "ab" / SHA).read_bytes() == b"picture"


async def test_a_server_that_is_gone_is_unavailable(tmp_path: Path) -> None:
    store = ObjectStore(s3_settings(tmp_path, "http://127.0.0.1:1"))
    for call in (store.get("a"), store.put("a", b"x"), store.exists("a"), store.delete("a")):
        with pytest.raises(ObjectStoreUnavailable) as caught:
            await call
        assert caught.value.retryable


async def test_a_missing_bucket_is_told(tmp_path: Path, s3_endpoint: str) -> None:
    settings = s3_settings(tmp_path, s3_endpoint).model_copy(update={"object_store_url": "s3://no-such-bucket"})
    with pytest.raises((ObjectMissing, ObjectStoreUnavailable)):
        await ObjectStore(settings).get("a")


@pytest.mark.parametrize(
    ("url", "options"), [("ftp://host/folder", {}), ("s3://bucket", {"no_such_option": "1"}), ("folder", {})]
)
def test_settings_that_cannot_work_are_named(tmp_path: Path, url: str, options: dict[str, str]) -> None:
    with pytest.raises(SettingsInvalid, match="object_store"):
        ObjectStore(Settings(home=tmp_path, object_store_url=url, object_store_options=options))
