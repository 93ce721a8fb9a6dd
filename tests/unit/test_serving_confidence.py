"""The confidence of an answer, from its scores."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.embedding.encoder import fingerprint
from actors.embedding.head import HEAD_PATH
from actors.embedding.image_tower import OFFLINE_PREPROCESS
from actors.embedding.weights import CLIP_IMAGE_TOWER, EFFICIENTNET_LITE0, MINILM, sha256_of
from actors.messages import Candidate
from contract.errors import SettingsInvalid
from serving.confidence import (
    DEPTH,
    Calibration,
    CalibrationFile,
    Calibrations,
    QueryKind,
    Weights,
    assess,
    decode_file,
    features,
    query_kind,
    top_scores,
)

PACKAGED = decode_file((Path(__file__).parents[2] / "serving/confidence.json").read_bytes(), "confidence.json")
SCORES = st.lists(st.floats(-1, 1), min_size=1, max_size=DEPTH).map(lambda scores: sorted(scores, reverse=True))


def calibration(kind: QueryKind = "text", intercept: float = 0.0, mark: str = "f") -> Calibration:
    return Calibration("fake", mark, kind, 0.1, intercept, Weights(1.0, 2.0, -3.0), 10, "00")


def candidates(*scores: float, prefix: str = "") -> list[Candidate]:
    return [Candidate(f"{prefix}{number}", score, None) for number, score in enumerate(scores)]


def test_features_are_the_best_score_its_lead_and_the_last_one() -> None:
    scores = [0.9, 0.6, *[0.5] * (DEPTH - 3), 0.4]
    assert features(scores, 0.1) == pytest.approx((0.9, 0.3, 0.4))


def test_scores_that_are_not_there_count_as_those_of_unrelated_pictures() -> None:
    assert features([0.9], 0.1) == pytest.approx((0.9, 0.8, 0.1))
    assert features([0.9, 0.6], 0.1) == pytest.approx((0.9, 0.3, 0.1))
    assert features([0.05], 0.1) == pytest.approx((0.05, 0.0, 0.05))


def test_the_probability_is_the_logistic_function_of_the_log_odds() -> None:
    log_odds = -0.5 + 1.0 * 0.9 + 2.0 * 0.3 - 3.0 * 0.1
    assert calibration(intercept=-0.5).probability([0.9, 0.6]) == pytest.approx(1 / (1 + math.exp(-log_odds)))
    assert calibration(intercept=-5000.0).probability([0.9]) == 0.0


@pytest.mark.parametrize("each", PACKAGED, ids=lambda each: f"{each.model}-{each.kind}")
@given(SCORES, st.floats(0, 1))
def test_a_better_first_hit_is_never_less_confident(each: Calibration, scores: list[float], more: float) -> None:
    probability = each.probability(scores)
    assert 0.0 <= probability <= each.probability([scores[0] + more, *scores[1:]]) <= 1.0


def test_the_default_model_is_calibrated_as_it_stands() -> None:
    """A retrained head is another encoder, and wants `make calibrate`."""
    weights = [CLIP_IMAGE_TOWER.sha256, EFFICIENTNET_LITE0.sha256, MINILM.sha256, sha256_of(HEAD_PATH)]
    known = {(each.fingerprint, each.kind) for each in PACKAGED}
    now = fingerprint(weights, OFFLINE_PREPROCESS, 512)
    assert {(now, kind) for kind in ("text", "image", "mixed")} <= known


def test_the_packaged_models_tell_a_clear_hit_from_an_even_field() -> None:
    found = Calibrations.load(None).of(PACKAGED[0].fingerprint, "text")
    assert found is not None
    assert found.probability([0.7, *[0.3] * 9]) > 0.9
    assert found.probability([0.3] * 10) < 0.1


def test_top_scores_count_an_image_once_and_leave_the_query_out() -> None:
    shards = [candidates(1.0, 0.5, 0.25), candidates(1.0, 0.75)]
    assert top_scores(shards) == [1.0, 0.75, 0.25]
    assert top_scores(shards, {"0"}) == [0.75, 0.25]
    assert top_scores([]) == []


@given(st.lists(st.floats(-1, 1), max_size=40), st.integers(1, 5))
def test_top_scores_do_not_depend_on_how_points_lie_on_shards(scores: list[float], shards: int) -> None:
    together = candidates(*scores)
    apart = [sorted(together[number::shards], key=lambda c: -c.score)[:DEPTH] for number in range(shards)]
    assert top_scores(apart) == sorted(scores, reverse=True)[:DEPTH] == top_scores(reversed(apart))


@pytest.mark.parametrize(
    ("text", "picture", "others", "kind"),
    [
        (1.0, None, False, "text"),
        (0.2, None, False, "text"),
        (None, 3.0, False, "image"),
        (1.0, 4.0, False, "mixed"),
        (4.0, 1.0, False, "mixed"),
        (1.0, 5.0, False, None),
        (5.0, 1.0, False, None),
        (-1.0, 1.0, False, None),
        (1.0, -1.0, False, None),
        (1.0, 0.0, False, None),
        (1.0, None, True, None),
        (None, None, True, None),
        (None, None, False, None),
    ],
)
def test_the_kind_of_a_query(text: float | None, picture: float | None, others: bool, kind: QueryKind | None) -> None:
    assert query_kind(text, picture, others=others) == kind


def test_an_answer_says_why_it_is_not_confident() -> None:
    sure, unsure = calibration(intercept=3.0), calibration(intercept=-9.0)
    confident = assess([0.9, 0.1], sure, 0.5, has_hits=True)
    assert (confident.reason, confident.no_confident_match) == (None, False)
    assert confident.probability is not None and confident.probability > 0.5
    low = assess([0.9, 0.1], unsure, 0.5, has_hits=True)
    assert (low.reason, low.no_confident_match) == ("below_threshold", True)
    past_the_end = assess([0.9, 0.1], sure, 0.5, has_hits=False)
    assert (past_the_end.reason, past_the_end.no_confident_match) == ("no_hits", True)
    assert past_the_end.probability == confident.probability
    unknown = assess([], None, 0.5, has_hits=True)
    assert (unknown.probability, unknown.reason, unknown.no_confident_match) == (None, "not_calibrated", False)
    assert assess([], None, 0.5, has_hits=False).reason == "no_hits"
    only_itself = assess([], sure, 0.5, has_hits=True)
    assert (only_itself.probability, only_itself.reason) == (None, "no_hits")


def test_thresholds_of_0_and_1() -> None:
    assert assess([0.9], calibration(intercept=-9.0), 0.0, has_hits=True).reason is None
    assert assess([0.9], calibration(intercept=0.0), 1.0, has_hits=True).reason == "below_threshold"


def test_a_file_of_ones_own_adds_to_the_package_and_wins(tmp_path: Path) -> None:
    own = msgspec.structs.replace(PACKAGED[0], intercept=99.0)
    file = tmp_path / "own.json"
    file.write_bytes(msgspec.json.encode(CalibrationFile((own, calibration(mark="mine")))))
    loaded = Calibrations.load(file)
    assert loaded.of(own.fingerprint, own.kind) == own
    assert loaded.of("mine", "text") == calibration(mark="mine")
    assert loaded.of("mine", "image") is None
    assert loaded.of("mine", None) is None
    assert loaded.of(PACKAGED[1].fingerprint, PACKAGED[1].kind) == PACKAGED[1]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "holds no calibrations"),
        ('{"calibrations": [{"model": "m"}]}', "holds no calibrations"),
        ('{"calibrations": [], "versoin": 1}', "holds no calibrations"),
        ('{"calibrations": [], "version": 2}', "version 2"),
    ],
)
def test_a_file_that_is_none_stops_the_start_and_is_named(tmp_path: Path, content: str, complaint: str) -> None:
    file = tmp_path / "own.json"
    file.write_text(content)
    with pytest.raises(SettingsInvalid, match=complaint) as raised:
        Calibrations.load(file)
    assert "own.json" in raised.value.detail
    with pytest.raises(SettingsInvalid, match="cannot be read"):
        Calibrations.load(tmp_path / "missing.json")
