"""Images with equal bytes as one candidate: the same whatever the shards are, and whatever is asked for."""

from __future__ import annotations

from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from actors.duplicates import GROUP_IDS_MAX, alone, join, joined, named, picture_of
from actors.messages import Candidate, Group, Member
from serving.fusion import Hybrid, fuse
from serving.merge import merge

DIGESTS = [bytes([n]) * 32 for n in range(4)]
FEW = 9
METHODS = st.sampled_from(["rrf", "weighted"])

# One image each: its id, its bytes, its score, and when and as what it came.
images = st.lists(
    st.tuples(
        st.sampled_from(DIGESTS), st.floats(-1, 1, width=32), st.booleans(), st.integers(0, 3), st.integers(0, 4)
    ),
    max_size=FEW,
).map(
    lambda rows: [
        (
            alone(
                f"{n:02d}",
                score,
                f'{{"n":{n}}}'.encode(),
                sha256=digest.hex(),
                duplicate_of="x" if is_duplicate else None,
                uploaded_at_ms=at_ms,
            ),
            shard,
        )
        for n, (digest, score, is_duplicate, at_ms, shard) in enumerate(rows)
    ]
)
Images = list[tuple[Candidate, int]]


def by_shard(found: Images) -> list[list[Candidate]]:
    return [[one for one, shard in found if shard == number] for number in range(5)]


@given(images)
def test_it_does_not_matter_which_shards_the_images_lie_in(found: Images) -> None:
    whole = join(one for one, _ in found)
    apart = join(one for some in by_shard(found) for one in join(some))
    assert whole == apart
    for one in whole:
        same = [other for other, _ in found if picture_of(other) == picture_of(one)]
        members = sorted(other.group.members[0] for other in same if other.group is not None)
        assert isinstance(digest := picture_of(one), bytes)
        assert one.group == Group(digest, len(same), tuple(members))
        assert one.image_id == members[0].image_id
        assert one.payload == f'{{"n":{int(one.image_id)}}}'.encode(), "the payload is of the one that stands for all"
        assert one.score == max(other.score for other in same)
    assert [(-one.score, one.image_id) for one in whole] == sorted((-one.score, one.image_id) for one in whole)


@given(images, st.integers(1, 4), st.integers(0, 3), st.floats(-1, 1, width=32))
def test_as_many_pictures_of_each_shard_as_the_page_ends_at_are_enough(
    found: Images, limit: int, offset: int, threshold: float
) -> None:
    everything = join(one for one, _ in found)
    cut = [join(some)[: limit + offset] for some in by_shard(found)]
    page = merge([join(one for some in cut for one in some)], limit=limit, offset=offset)
    # Of equal scores another picture may stand: which image of it is cut off depends on the score of that image.
    assert [one.score for one in page] == [one.score for one in everything[offset : offset + limit]]
    assert len({picture_of(one) for one in page}) == len(page)
    above = merge([everything], limit=FEW, score_threshold=threshold)
    assert above == [one for one in everything if one.score >= threshold]


@given(images, images, METHODS, st.floats(0, 1))
def test_words_and_vectors_meet_in_the_picture_not_in_the_image(
    by_vector: Images, by_words: Images, method: Literal["rrf", "weighted"], weight: float
) -> None:
    halves = [join(one for one, _ in half) for half in (by_vector, by_words)]
    fused = fuse(halves[0], halves[1], Hybrid(fusion=method, lexical_weight=weight))
    pictures = [picture_of(one) for one in fused]
    assert len(pictures) == len(set(pictures))
    for one in fused:
        same = [other for half in halves for other in half if picture_of(other) == picture_of(one)]
        assert one.image_id in {other.image_id for other in same}
        if 0 < weight < 1:
            assert one.image_id == joined(same).image_id
            assert set(named(one)) == {image_id for other in same for image_id in named(other)}


def test_many_copies_are_counted_and_the_first_of_them_named() -> None:
    copies = [
        alone(f"{n:03d}", 0.5, None, sha256="ab" * 32, duplicate_of=None, uploaded_at_ms=500 - n) for n in range(100)
    ]
    (one,) = join([*join(copies[::3]), *join(copies[1::3]), *join(copies[2::3])])
    assert one.group is not None
    assert (one.image_id, one.group.count) == ("099", 100)
    assert named(one) == [f"{n:03d}" for n in range(99, 98 - GROUP_IDS_MAX, -1)]


def test_an_image_on_the_move_counts_once() -> None:
    before, after = (
        alone("a", 0.5, None, sha256="ab" * 32, duplicate_of=None, uploaded_at_ms=at_ms) for at_ms in (5, 7)
    )
    other = alone("b", 0.4, None, sha256="ab" * 32, duplicate_of=None, uploaded_at_ms=6)
    for order in ([before, other, after], [after, before, other]):
        (one,) = join(order)
        assert one.group == Group(b"\xab" * 32, 2, (Member(False, 5, "a"), Member(False, 6, "b")))


def test_the_first_stays_the_first_when_it_is_uploaded_again() -> None:
    first = alone("first", 0.5, None, sha256="ab" * 32, duplicate_of=None, uploaded_at_ms=9)
    second = alone("second", 0.5, None, sha256="ab" * 32, duplicate_of="first", uploaded_at_ms=2)
    assert join([second, first])[0].image_id == "first"


def test_what_is_no_hash_equals_nothing() -> None:
    odd = [alone(name, 0.5, None, sha256="s", duplicate_of=None, uploaded_at_ms=0) for name in "ab"]
    assert [(one.image_id, one.group) for one in join(odd)] == [("a", None), ("b", None)]
    assert [one.score for one in join([odd[0], Candidate("a", 0.75, None)])] == [0.75]
