"""Fitting and measuring the confidence, on made-up pictures whose truth is known."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from actors.embedding.image_tower import OFFLINE_PREPROCESS
from actors.messages import EncoderDescription, FloatMatrix, Pixels
from benchmarks.confidence import results
from contract.settings import Settings
from evaluation.cached_vectors import picture_vectors
from evaluation.calibrate import Calibrated, parts_of, split, tables, write_calibrations
from evaluation.calibration import KINDS, auc, best_cut_off, curve_of, fit, flagged, logistic, measure, trials_of
from evaluation.confidence_curve import draw_curves
from evaluation.confidence_trials import Corpus, Trial, draw, halves, name_of
from evaluation.datasets import Picture, listed
from evaluation.packages import DatasetUnavailable
from serving.confidence import DEPTH, Calibration, Weights, decode_file

ENCODER = EncoderDescription("made-up", "f" * 16, 32, OFFLINE_PREPROCESS, "cpu")
CONCEPTS, EACH = 24, 6


def picture(number: int) -> Picture:
    concept, member = divmod(number, EACH)
    return Picture(f"{number}", f"Thing {concept} {member // 2}.", "all", f"concept {concept}", lambda: b"")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Pictures around the centre of their concept, and captions that are true but noisy."""
    generator = np.random.default_rng(5)
    centres = np.repeat(generator.normal(size=(CONCEPTS, 32)), EACH, axis=0)
    motifs = np.repeat(generator.normal(size=(CONCEPTS * EACH // 2, 32)), 2, axis=0)
    images = centres + 0.6 * motifs + 0.3 * generator.normal(size=centres.shape)
    texts = centres + 0.6 * motifs + 0.9 * generator.normal(size=centres.shape)
    unit = [
        (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32) for rows in (images, texts, centres)
    ]
    return Corpus([picture(number) for number in range(CONCEPTS * EACH)], *unit)


def has(trials: list[Trial], *, broad: bool) -> list[Trial]:
    return [trial for trial in trials if trial.broad == broad]


@pytest.fixture(scope="module")
def calibrated(corpus: Corpus) -> Calibrated:
    settings = Settings()
    first, *others = (split(settings, ENCODER, corpus, "00", seed) for seed in range(3))
    parts = parts_of(settings, first[0][0], corpus, corpus)
    return Calibrated(ENCODER, *first, tuple(measured for _, measured in others), parts, "00")


def trial(top: float, *, right: bool, answerable: bool = True, relatives: bool = True) -> Trial:
    return Trial((top,), right, answerable, relatives)


@pytest.mark.parametrize("seed", range(5))
def test_no_concept_is_in_both_halves(corpus: Corpus, seed: int) -> None:
    fitted, held_out = halves(corpus.pictures, seed)
    of = [{corpus.pictures[index].sub_category for index in half} for half in (fitted, held_out)]
    assert not of[0] & of[1]
    assert sorted([*fitted, *held_out]) == list(range(len(corpus.pictures)))
    assert abs(len(fitted) - len(held_out)) <= EACH


def test_too_few_concepts_are_refused() -> None:
    with pytest.raises(DatasetUnavailable, match="7 concepts"):
        halves([picture(number) for number in range(7 * EACH)], 0)


@pytest.mark.parametrize("kind", ["text", "image", "mixed"])
def test_trials_have_an_answer_exactly_where_it_was_left_in(corpus: Corpus, kind: str) -> None:
    half, _ = halves(corpus.pictures, 0)
    trials = draw(corpus, half, kind, 2, 0)  # type: ignore[arg-type]
    assert len(has(trials, broad=False)) == 2 * 2 * len(half)
    assert bool(has(trials, broad=True)) == (kind == "text")
    assert sum(trial.answerable for trial in trials) == len(trials) / 2
    for each in trials:
        assert 1 <= len(each.scores) <= DEPTH
        assert list(each.scores) == sorted(each.scores, reverse=True)
        assert each.answerable or not each.right
        assert each.relatives or not each.answerable
    assert trials == draw(corpus, half, kind, 2, 0)  # type: ignore[arg-type]
    without = [each for each in trials if not each.answerable]
    # For captions, half of the queries without an answer still have relatives in the collection.
    assert any(each.relatives for each in without) == (kind == "text")


def test_a_picture_is_never_its_own_answer(corpus: Corpus) -> None:
    half, _ = halves(corpus.pictures, 0)
    assert max(each.scores[0] for each in draw(corpus, half, "image", 2, 0)) < 0.9999


def test_names_of_concepts() -> None:
    assert [name_of(c) for c in ("food", "animals/sea_lions", "clothing;hats")] == ["food", "sea lions", "hats"]


def test_the_logistic_model_finds_what_made_the_data() -> None:
    generator = np.random.default_rng(1)
    columns = generator.normal(size=(40_000, 2)) * [1.0, 0.1] + [3.0, -2.0]
    chance = 1 / (1 + np.exp(-(-1.0 + 1.5 * columns[:, 0] + 10.0 * (columns[:, 1] + 1.7))))
    intercept, weights = logistic(columns, generator.random(len(chance)) < chance)
    assert weights == pytest.approx([1.5, 10.0], rel=0.08)
    assert intercept == pytest.approx(16.0, rel=0.1)


def test_the_flat_cut_off_parts_right_from_wrong() -> None:
    trials = [trial(0.1, right=False), trial(0.2, right=False), trial(0.3, right=True), trial(0.4, right=True)]
    cut = best_cut_off(trials)
    assert 0.1 < cut <= 0.3


def test_figures_of_a_flag() -> None:
    trials = [
        trial(0.1, right=False, answerable=False, relatives=False),
        trial(0.2, right=False, answerable=False),
        trial(0.3, right=False),
        trial(0.4, right=True),
    ]
    found = flagged(trials, np.array([True, False, True, False]))
    assert (found.precision, found.recall) == (0.5, 0.5)
    assert (found.recall_clear, found.recall_relatives) == (1.0, 0.0)
    assert (found.wrong_precision, found.right_flagged) == (1.0, 0.0)
    assert math.isnan(flagged(trials, np.zeros(4, np.bool_)).precision)


def test_auc_counts_ties_half() -> None:
    right = np.array([False, True, False, True])
    assert auc(np.array([0.1, 0.9, 0.2, 0.8]), right) == 1.0
    assert auc(np.array([0.5, 0.5, 0.5, 0.5]), right) == 0.5


def test_the_curve_of_a_true_probability_is_the_diagonal() -> None:
    generator = np.random.default_rng(2)
    probability = generator.random(50_000)
    curve = curve_of(probability, generator.random(50_000) < probability)
    assert curve.predicted == pytest.approx(curve.observed, abs=0.03)


def test_a_calibration_holds_on_concepts_it_never_saw(calibrated: Calibrated) -> None:
    assert [each.kind for each in calibrated.measured] == ["text", "image", "mixed"]
    for measured in calibrated.measured:
        assert measured.brier < 0.8 * measured.brier_constant
        assert measured.ece < 0.12
        assert measured.auc > 0.85
        assert measured.flag.recall > 0.7
        assert measured.equal_recall.recall == pytest.approx(measured.flag.recall, abs=0.02)


def test_the_figures_stand_in_the_table_and_in_the_result_file(calibrated: Calibrated) -> None:
    console = Console(width=100, record=True)
    console.print(tables(calibrated, 0.3))
    printed = console.export_text()
    assert all(name in printed for name in (*KINDS, "text: captions", "text: broad", "text: samples"))
    values = {result.name: result.value for result in results(calibrated, 0.3)}
    text = calibrated.measured[0]
    assert values["threshold"] == 0.3
    assert values["text_flag_precision"] == pytest.approx(text.flag.precision, abs=1e-4)
    assert values["text_one_flat_cut_off_recall"] == pytest.approx(text.one_cut_off.recall, abs=1e-4)
    assert values["text_brier"] == pytest.approx(text.brier, abs=1e-4)
    assert "image_flag_recall_with_relatives" not in values
    assert values["text_captions_queries"] + values["text_broad_queries"] == values["text_queries"]
    assert values["text_samples_queries"] > values["text_queries"]
    assert all(math.isfinite(value) for value in values.values())


def test_measuring_a_flat_model_gives_the_base_rate(corpus: Corpus) -> None:
    fit_half, held_out = halves(corpus.pictures, 0)
    fitted, measured_on = trials_of(corpus, fit_half, held_out, 0)["text"]
    learned = fit(ENCODER, corpus, fit_half, "text", fitted, "00")
    flat = msgspec.structs.replace(learned, intercept=0.0, weights=Weights(0.0, 0.0, 0.0))
    found = measure(flat, fitted, measured_on, 0.4, 0.0)
    assert (found.brier, found.auc) == (0.25, 0.5)
    assert found.flag.recall == 0.0


def test_a_file_of_calibrations_keeps_those_of_other_encoders(tmp_path: Path, calibrated: Calibrated) -> None:
    file = tmp_path / "folder" / "own.json"
    other = Calibration("other", "0" * 16, "text", 0.1, 0.0, Weights(1.0, 1.0, -1.0), 3, "00")
    write_calibrations(file, [other])
    write_calibrations(file, calibrated.calibrations)
    write_calibrations(file, calibrated.calibrations)
    assert decode_file(file.read_bytes(), "own.json") == (other, *calibrated.calibrations)


def test_the_curve_is_drawn(tmp_path: Path, calibrated: Calibrated) -> None:
    file = tmp_path / "new" / "curve.png"
    draw_curves(file, [("made-up", calibrated.measured)])
    first = file.read_bytes()
    with Image.open(file) as image:
        assert image.format == "PNG"
    draw_curves(file, [("made-up", calibrated.measured)])
    assert file.read_bytes() == first


def test_pictures_of_ones_own_come_from_a_table(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    csv = tmp_path / "own.csv"
    csv.write_text("file,caption,concept\na.png,A black square,squares\n")
    (found,) = listed(csv)
    assert (found.identity, found.caption, found.sub_category) == ("a.png", "A black square", "squares")
    assert found.read() == (tmp_path / "a.png").read_bytes()
    for row, complaint in (("b.png,b,b", r"line 2: there is no file .*b\.png"), ("a.png,,b", "line 2: .*must all")):
        csv.write_text(f"file,caption,concept\n{row}\n")
        with pytest.raises(DatasetUnavailable, match=complaint):
            listed(csv)
    with pytest.raises(DatasetUnavailable, match="cannot be read"):
        listed(tmp_path / "missing.csv")


class _Counting:
    """Encodes a picture as its mean colour, and counts."""

    description = ENCODER
    encoded = 0

    def encode_images(self, pixels: Pixels) -> FloatMatrix:
        self.encoded += len(pixels)
        means: FloatMatrix = pixels.reshape(len(pixels), -1, 3).mean(axis=1).astype(np.float32)
        return means

    def encode_texts(self, texts: object) -> FloatMatrix:
        raise NotImplementedError

    def warm_up(self) -> None:
        raise NotImplementedError


def test_vectors_are_encoded_once(tmp_path: Path) -> None:
    settings = Settings(cache=tmp_path / "cache")
    pictures = []
    for number in range(3):
        file = tmp_path / f"{number}.png"
        Image.new("RGB", (9, 9), (number * 80, 9, 9)).save(file)
        pictures.append(Picture(file.name, file.name, "c", "c", file.read_bytes))
    encoder = _Counting()
    first = picture_vectors(settings, encoder, "three", pictures[:2])
    again = picture_vectors(settings, encoder, "three", pictures[::-1])
    assert encoder.encoded == 3
    assert np.array_equal(again[::-1][:2], first)
