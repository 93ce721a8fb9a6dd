"""Pictures from strangers: what is refused, and what a decoder that crashes or hangs does to its owner: nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.decoding.metrics import DecodingMetrics
from actors.decoding.pool import DecodingLoad, DecodingPool
from actors.messages import PreprocessSpec
from contract import telemetry
from contract.errors import DecoderUnavailable, ImageTooLarge, InvalidImage, InvalidRequest, RiverlensError
from contract.settings import Settings
from tests.decoding import shared_decoder
from tests.unit.bad_pictures import BAD, GOOD, encoded, noise

ROOT = Path(__file__).parent.parent.parent
SPEC = PreprocessSpec(32, "fit", "bicubic", 0.0, (255, 255, 255), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
GOOD_PNG = encoded(noise())


@pytest.mark.parametrize("name", BAD)
async def test_bad_bytes_are_refused_with_their_code_and_their_decoder_lives(name: str) -> None:
    make, code = BAD[name]
    decoder = shared_decoder()
    await decoder.square(GOOD_PNG, SPEC)
    before = decoder.pids()
    with pytest.raises(InvalidImage) as refused:
        await decoder.square(make(), SPEC)
    assert refused.value.code == code
    assert not refused.value.retryable
    assert refused.value.detail
    for operation in (decoder.thumbnail(make(), 64), decoder.small(make(), 64)):
        with pytest.raises(InvalidImage):
            await operation
    assert decoder.pids() == before


@pytest.mark.parametrize("name", GOOD)
async def test_odd_pictures_are_decoded_and_can_be_served(name: str) -> None:
    decoder = shared_decoder()
    data = GOOD[name]()
    decoded = await decoder.square(data, SPEC)
    assert decoded.pixels.shape == (32, 32, 3)
    clean, content_type = await decoder.clean(data)
    assert content_type == (await decoder.inspect(data)).content_type
    assert (await decoder.square(clean, SPEC)).pixels.tobytes() == decoded.pixels.tobytes()


async def test_what_comes_back_is_what_is_decoded_here() -> None:
    decoder = shared_decoder()
    whole = await decoder.square(GOOD_PNG, SPEC)
    assert (whole.width, whole.height) == (64, 48)
    part = await decoder.square(GOOD_PNG, SPEC, (0.5, 0.0, 0.5, 1.0))
    assert (part.width, part.height) == (64, 48)
    assert part.pixels.tobytes() != whole.pixels.tobytes()
    assert (await decoder.small(GOOD_PNG, 32)).pixels.shape == (24, 32, 3)
    assert (await decoder.small(GOOD_PNG, 500)).pixels.shape == (48, 64, 3)
    described = await decoder.inspect(await decoder.thumbnail(GOOD_PNG, 16))
    assert (described.content_type, described.width, described.height) == ("image/webp", 16, 12)
    with pytest.raises(InvalidRequest, match="crop"):
        await decoder.square(GOOD_PNG, SPEC, (0.9, 0.0, 0.5, 1.0))


@pytest.fixture
def hostile() -> Iterator[DecodingPool]:
    """One process, whose decoder obeys."""
    pool = DecodingPool(
        Settings(decode_processes=1, decode_timeout_s=0.5, decode_memory_bytes=512 * 1024 * 1024),
        module="tests.unit.hostile_child",
    )
    yield pool
    pool.close()
    assert pool.pids() == []


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (b"CRASH", "SIGSEGV"),
        (b"ABORT", "SIGABRT"),
        (b"SPIN", "longer than 0.5 s"),
        (b"HANG", "longer than 0.5 s"),
        (b"RAISE", "status 1"),
        (b"LEAVE", "status 0"),
        (b"NONSENSE", "astray"),
    ],
)
async def test_a_decoder_that_dies_or_hangs_costs_its_picture_and_nothing_else(
    hostile: DecodingPool, harm: bytes, reason: str
) -> None:
    await hostile.square(GOOD_PNG, SPEC)
    (before,) = hostile.pids()
    with pytest.raises(InvalidImage, match=reason) as refused:
        await hostile.square(harm + b" ", SPEC)
    assert not refused.value.retryable
    assert not _alive(before)
    # Others that wait for the same process get theirs.
    answers = await asyncio.gather(*(hostile.square(GOOD_PNG, SPEC) for _ in range(3)))
    assert len(answers) == 3
    (after,) = hostile.pids()
    assert after != before
    assert hostile.load() == DecodingLoad(processes=1, in_flight=0, lost=1)


async def test_a_decoder_that_eats_memory_is_stopped_by_its_limit_and_goes_on() -> None:
    settings = Settings(decode_processes=1, decode_memory_bytes=512 * 1024 * 1024)
    pool = DecodingPool(settings, module="tests.unit.hostile_child")
    try:
        with pytest.raises(ImageTooLarge, match="decode_memory_bytes"):
            await pool.square(b"EAT ", SPEC)
        before = pool.pids()
        await pool.square(GOOD_PNG, SPEC)
        assert pool.pids() == before
    finally:
        pool.close()


async def test_a_decoder_can_write_nothing_and_knows_no_secret(
    hostile: DecodingPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIVERLENS_KAFKA_SASL_PASSWORD", "hush")
    with pytest.raises(InvalidImage) as refused:
        await hostile.square(b"SECRETS ", SPEC)
    assert "RIVERLENS" not in refused.value.detail
    with pytest.raises(InvalidImage):
        await hostile.square(b"WRITE ", SPEC)


async def test_a_death_from_outside_costs_no_picture() -> None:
    pool = DecodingPool(Settings(decode_processes=1))
    try:
        await pool.square(GOOD_PNG, SPEC)
        for number in (signal.SIGKILL, signal.SIGKILL):
            os.kill(pool.pids()[0], number)
            assert (await pool.square(GOOD_PNG, SPEC)).width == 64
        # Ctrl-C and a stop of the group are the parent's business.
        before = pool.pids()
        os.kill(before[0], signal.SIGINT)
        os.kill(before[0], signal.SIGTERM)
        await pool.square(GOOD_PNG, SPEC)
        assert pool.pids() == before
    finally:
        pool.close()


async def test_a_pool_that_cannot_start_or_has_ended_is_retryable() -> None:
    pool = DecodingPool(Settings(decode_processes=1), module="tests.unit.no_such_module")
    with pytest.raises(DecoderUnavailable) as refused:
        await pool.square(GOOD_PNG, SPEC)
    assert refused.value.retryable
    pool.close()
    with pytest.raises(DecoderUnavailable):
        await pool.square(GOOD_PNG, SPEC)


async def test_its_load_counts_what_works_and_what_waits() -> None:
    pool = DecodingPool(Settings(decode_processes=1), module="tests.unit.hostile_child")
    told = DecodingMetrics(pool.load)
    working = [asyncio.create_task(pool.square(b"SPIN ", SPEC)) for _ in range(3)]
    for _ in range(3000):
        if pool.pids():
            break
        await asyncio.sleep(0.01)
    assert pool.load() == DecodingLoad(processes=1, in_flight=3, lost=0)
    assert [(family.name, family.samples[0].value) for family in told.collect()] == [
        (telemetry.DECODERS.name, 1),
        (telemetry.DECODINGS_IN_FLIGHT.name, 3),
        (telemetry.DECODERS_LOST.name.removesuffix("_total"), 0),
    ]
    await asyncio.to_thread(pool.close)
    await asyncio.gather(*working, return_exceptions=True)
    assert pool.load().in_flight == 0


async def test_closing_ends_a_decoder_at_work() -> None:
    pool = DecodingPool(Settings(decode_processes=1), module="tests.unit.hostile_child")
    working = asyncio.create_task(pool.square(b"SPIN ", SPEC))
    for _ in range(3000):
        if pool.pids():
            break
        await asyncio.sleep(0.01)
    (pid,) = pool.pids()
    await asyncio.to_thread(pool.close)
    with pytest.raises(RiverlensError):
        await working
    assert not _alive(pid)


_OWNER = """
import asyncio, sys
from actors.decoding.metrics import DecodingMetrics
from actors.decoding.pool import DecodingLoad, DecodingPool
from contract.settings import Settings
from tests.unit.test_decoding_pool import GOOD_PNG, SPEC

async def main():
    pool = DecodingPool(Settings(decode_processes=2, decode_timeout_s=4.0), module="tests.unit.hostile_child")
    await asyncio.gather(pool.square(GOOD_PNG, SPEC), pool.square(GOOD_PNG, SPEC))
    hanging = asyncio.create_task(pool.square(b"HANG ", SPEC))
    await asyncio.sleep(0.2)
    print(*pool.pids(), flush=True)
    await hanging

asyncio.run(main())
"""


def test_no_decoder_outlives_an_owner_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", _OWNER], cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        owner.kill()
    assert pids
    for _ in range(600):
        if not any(_alive(pid) for pid in pids):
            return
        time.sleep(0.05)
    pytest.fail("a decoder outlived its owner")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
