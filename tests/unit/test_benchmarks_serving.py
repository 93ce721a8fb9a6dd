"""The parts of the serving benchmark that need no running system."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks.load import LOST, UNANSWERED, LoadPlan, LoadReport, LoadRequest, Sample, due_times, report_of, run, wire
from benchmarks.result_file import Result
from benchmarks.serving import data
from benchmarks.serving.__main__ import LIMITS_S, _phases
from benchmarks.serving.asking import WHOLE, encoded, hit_ids, recall_of, text_requests, vector_requests
from benchmarks.serving.outcome import Curve, Outcome, Point, draw, ratios
from benchmarks.serving.under_load import best_qps
from serving.query_vector import decode_vector
from serving.schemas import SearchRequest

PLAN = LoadPlan(host="127.0.0.1", port=1, requests=(LoadRequest("/"),), connections=2, seconds=10.0)


def test_a_vector_is_read_by_the_server_as_it_was_sent() -> None:
    vector = np.random.default_rng(1).standard_normal(512).astype(np.float32)
    vector /= np.linalg.norm(vector)
    assert len(base64.b64decode(encoded(vector))) == 4 * 512
    np.testing.assert_allclose(decode_vector(encoded(vector)), vector, atol=1e-6)


def test_vector_searches_are_bodies_that_the_api_knows() -> None:
    requests = vector_requests("points", np.eye(3, 512, dtype=np.float32), 77)
    assert [request.path for request in requests] == ["/v1/collections/points/search"] * 3
    body = SearchRequest.model_validate(json.loads(requests[1].body))
    assert (body.ef_search, body.limit, body.with_payload) == (77, 10, False)
    assert body.vector is not None and int(np.argmax(body.vector)) == 1


def test_words_stand_quoted_in_the_address() -> None:
    (request,) = text_requests("images", ["a red & blue bird"])
    assert request == LoadRequest("/v1/collections/images/search?text=a+red+%26+blue+bird&limit=10")


def test_a_request_with_a_body_is_a_post_of_its_length() -> None:
    assert wire("h", 80, LoadRequest("/a")).startswith(b"GET /a HTTP/1.1\r\nHost: h:80\r\n")
    posted = wire("h", 80, LoadRequest("/a", '{"text":"ü"}'))
    head, _, body = posted.partition(b"\r\n\r\n")
    assert posted.startswith(b"POST /a HTTP/1.1\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body) == {"text": "ü"}


def test_an_open_loop_is_due_evenly_whatever_the_answers() -> None:
    times = due_times(200.0, 2.0)
    assert (len(times), times[0]) == (400, 0.0)
    np.testing.assert_allclose(np.diff(times), 0.005)
    assert len(due_times(0.1, 1.0)) == 1


def test_latencies_count_from_when_a_request_was_due() -> None:
    samples = [Sample(float(i), float(i), i + 0.010, 200, True) for i in range(98)]
    # Two that waited for a stalled server before they could be sent.
    samples += [Sample(98.0, 101.0, 101.01, 200, True), Sample(99.0, 101.0, 101.01, 200, True)]
    report = report_of(samples, PLAN)
    assert report.p50_ms == pytest.approx(10)
    assert report.max_ms == pytest.approx(3010)
    assert report.within_bound == pytest.approx(0.98)
    assert report.waited_p99_ms == pytest.approx(2010, abs=20)


def test_what_failed_or_was_partial_is_counted_and_timed() -> None:
    samples = [
        Sample(0.0, 0.0, 0.01, 200, True),
        Sample(1.0, 1.0, 1.02, 200, False),
        Sample(2.0, 2.0, 2.03, 503, False, "overloaded"),
        Sample(3.0, 3.0, 3.04, LOST, False),
        Sample(4.0, 4.0, 9.0, UNANSWERED, False),
        Sample(5.0, 5.0, 5.01, 200, True),
    ]
    report = report_of(samples, PLAN)
    assert (report.requests, report.failed, report.partial) == (3, 3, 1)
    assert report.failures == {"503 overloaded": 1, "lost": 1, "unanswered": 1}
    assert report.within_bound == pytest.approx(2 / 6)
    assert (report.disturbed_from_s, report.disturbed_until_s) == (1.02, 9.0)
    # A request that nobody answered has waited until the end.
    assert report.max_ms == pytest.approx(5000)


def test_the_warm_up_is_left_out() -> None:
    plan = msgspec.structs.replace(PLAN, warm_s=1.0)
    samples = [Sample(0.5, 0.5, 1.5, 200, True), Sample(1.0, 1.0, 1.1, 200, True), Sample(1.5, 1.5, 2.0, 200, True)]
    report = report_of(samples, plan)
    assert (report.requests, report.seconds, report.qps) == (2, 1.0, 2.0)


def test_a_run_without_a_request_is_an_error() -> None:
    with pytest.raises(ValueError, match="no request"):
        report_of([], PLAN)


async def _serve(answer: Callable[[bytes], bytes]) -> asyncio.Server:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"Content-Length: (\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                written = answer(body or head)
                if not written:
                    break
                # In two pieces, as a network may.
                writer.write(written[:25])
                await writer.drain()
                await asyncio.sleep(0)
                writer.write(written[25:])
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(handle, "127.0.0.1", 0)


def _answer(text: str, status: int = 200) -> bytes:
    body = text.encode()
    return f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


async def _load(answer: Callable[[bytes], bytes], **fields: object) -> LoadReport:
    server = await _serve(answer)
    port = server.sockets[0].getsockname()[1]
    requests = tuple(LoadRequest("/", f"{number}") for number in range(20))
    plan = LoadPlan(
        **{"host": "127.0.0.1", "port": port, "requests": requests, "connections": 3, "seconds": 20.0, **fields}
    )
    try:
        return await run(plan)
    finally:
        server.close()


async def test_a_closed_loop_asks_everything_once_and_keeps_the_answers() -> None:
    report = await _load(lambda body: _answer(f'{{"n":{body.decode()},{WHOLE}}}'), repeat=False, keep=True, whole=WHOLE)
    assert (report.requests, report.failed, report.partial) == (20, 0, 0)
    assert [json.loads(answer or "")["n"] for answer in report.answers] == list(range(20))


async def test_an_open_loop_sends_every_request_that_falls_due() -> None:
    report = await _load(lambda _: _answer("{}"), rate=400.0, seconds=0.25)
    assert (report.requests, report.failed) == (100, 0)


async def test_refusals_and_lost_connections_are_failures_and_the_run_goes_on() -> None:
    def answer(body: bytes) -> bytes:
        return {b"3": _answer('{"code":"overloaded"}', 503), b"7": b""}.get(body, _answer('{"degraded":true}'))

    report = await _load(answer, repeat=False, whole=WHOLE)
    assert report.failures == {"503 overloaded": 1, "lost": 1}
    assert (report.requests, report.failed, report.partial) == (18, 2, 18)


async def test_an_answer_without_a_length_ends_the_run() -> None:
    with pytest.raises(RuntimeError, match="without Content-Length"):
        await _load(lambda _: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")


def test_recall_counts_the_ids_of_the_answers() -> None:
    answers = [json.dumps({"hits": [{"id": str(row), "score": 1.0} for row in rows]}) for rows in ([0, 1], [5, 9])]
    assert hit_ids(answers[1]) == ["5", "9"]
    neighbours = np.array([list(range(10)), [5, 9, 20, 21, 22, 23, 24, 25, 26, 27], list(range(10))])
    assert recall_of([*answers, None], neighbours) == pytest.approx((0.2 + 0.2 + 0) / 3)


def test_points_do_not_depend_on_how_many_arrive_later() -> None:
    few, many = data.make(50, 10, 3), data.make(50, 9000, 3)
    assert few.sha256 == many.sha256 != data.make(50, 10, 4).sha256
    np.testing.assert_array_equal(few.points, many.points)
    assert (len(few.arriving), len(many.arriving), len(few.queries)) == (10, 9000, 1000)


def _report(qps: float, within_bound: float, partial: int = 0) -> LoadReport:
    report = report_of([Sample(0.0, 0.0, 0.01, 200, True)], PLAN)
    return msgspec.structs.replace(report, qps=qps, within_bound=within_bound, partial=partial, requests=100)


def test_the_best_rate_is_of_runs_that_answer_in_time_and_counts_whole_answers() -> None:
    assert best_qps([_report(100, 1.0), _report(900, 0.98), _report(200, 0.99, partial=1)]) == pytest.approx(198)
    assert best_qps([_report(900, 0.5)]) == 0.0


def test_ratios_are_told_as_far_as_both_sides_were_measured() -> None:
    ours = {"vector_qps_at_p99_100ms": 1000.0}
    assert ratios(ours) == ratios({"raw_qps_all_threads": 9.0}) == []
    found = {
        one.name: one.value
        for one in ratios(
            ours | {"raw_qps_all_threads": 4000.0, "a_peer_qps_at_p99_100ms": 250.0, "b_peer_qps_at_p99_100ms": 0.0}
        )
    }
    assert found == {"system_vs_raw_ratio": 0.25, "qps_vs_best_peer": 4.0}


def test_a_run_of_one_phase_keeps_the_others_of_the_same_data(tmp_path: Path) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    Outcome(1, "data", now, tmp_path).add("raw", [Result("raw_qps_all_threads", 2000.0, "1/s")], 1.0)
    outcome = Outcome(1, "data", now, tmp_path)
    path = outcome.add("load", [Result("vector_qps_at_p99_100ms", 500.0, "1/s"), Result("x", float("nan"), "1")], 1.0)
    content = json.loads(path.read_text())
    assert [one["name"] for one in content["results"]] == [
        "system_vs_raw_ratio",
        "raw_qps_all_threads",
        "vector_qps_at_p99_100ms",
    ]
    assert outcome.values()["system_vs_raw_ratio"] == 0.25
    Outcome(1, "other data", now, tmp_path).fail("kill", "no reason", 1.0)
    content = json.loads(path.read_text())
    assert (content["results"], content["phases"]["kill"]["failure"]) == ([], "no reason")


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    points = [Point(float(rate), _report(rate, 1.0)) for rate in (100, 200)]
    path = draw(Curve(points[:1], points), "title", tmp_path / "plot.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_phases_keep_their_order_and_unknown_ones_are_refused() -> None:
    assert _phases("kill,load") == ("load", "kill")
    assert set(_phases(",".join(LIMITS_S))) == set(LIMITS_S)
    with pytest.raises(Exception, match="no phase tea"):
        _phases("load,tea")
