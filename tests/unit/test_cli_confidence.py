"""What the command line says of an answer that is not confident."""

from __future__ import annotations

import pytest

from serving.cli.output import print_hits
from serving.client import SearchAnswer
from serving.client.answers import Confidence, Coverage, Freshness, Hit, Took


@pytest.mark.parametrize(
    ("flagged", "confidence", "said"),
    [
        (True, Confidence(probability=0.08, reason="below_threshold"), "right with a probability of 8%"),
        (True, Confidence(reason="no_hits"), "No confident match\n"),
        (True, None, "No confident match\n"),
    ],
)
def test_an_unconfident_answer_is_named(
    flagged: bool, confidence: Confidence | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_hits("words", answer(flagged, confidence))
    assert said in capsys.readouterr().out


def test_a_confident_answer_needs_no_word(capsys: pytest.CaptureFixture[str]) -> None:
    print_hits("words", answer(False, Confidence(probability=0.9)))
    assert "No confident match" not in capsys.readouterr().out


def answer(flagged: bool, confidence: Confidence | None) -> SearchAnswer:
    return SearchAnswer(
        hits=(Hit(id="bird", score=0.4),),
        coverage=Coverage(shards_total=1, shards_answered=1, degraded=False),
        freshness=Freshness(applied_offsets={0: 1}, staleness_s=0.0),
        took_ms=Took(total=1.0),
        model="offline",
        no_confident_match=flagged,
        confidence=confidence,
    )
