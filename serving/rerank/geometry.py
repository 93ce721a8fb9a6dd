"""Geometric verification: do two pictures show the same object, turned, cut or scaled? Pure functions.

Local features are found in both, matched, and a homography is sought that explains as many matches
as it can. Chance matches agree on no homography, so the number of inliers tells the same object from
one that merely looks alike as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

# Longer side of the pictures that are compared, in pixels.
SIDE = 512
# Most features of one picture; bounds the time of matching.
FEATURES = 800
# A match counts if its nearest neighbour is this much nearer than the second nearest.
# Source: D. G. Lowe, Distinctive Image Features from Scale-Invariant Keypoints, IJCV 60 (2004), section 7.1.
_RATIO = 0.8
# How far, in pixels, a match may lie from where the homography puts it.
_TOLERANCE = 4.0
_ITERATIONS = 2000
_CONFIDENCE = 0.999
# A homography that enlarges by more, mirrors or flattens is none that a camera or an editor makes.
_LARGEST_ENLARGEMENT = 10.0
# Inliers at which a confirmed picture is half way from 1 to the most any can score.
_INLIERS_HALF = 30
# Four matches fix a homography, so that fewer than this say nothing.
_LEAST_MATCHES = 5


@dataclass(frozen=True, slots=True)
class Features:
    """Local features of one picture: where they lie, (n, 2) float32 in pixels, and (n, 128) uint8 descriptors."""

    points: npt.NDArray[np.float32]
    descriptors: npt.NDArray[np.uint8]


def features(image: Image.Image) -> Features:
    """SIFT features of an RGB picture, which is taken down to SIDE pixels first; small ones are doubled.

    Source: D. G. Lowe, IJCV 60 (2004); descriptors as R. Arandjelović and A. Zisserman, Three Things
    Everyone Should Know to Improve Object Retrieval, CVPR 2012 (RootSIFT).
    """
    small = image
    if max(image.size) > SIDE:
        small = image.copy()
        small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    grey = np.asarray(small.convert("L"))
    keypoints, descriptors = cv2.SIFT.create(FEATURES).detectAndCompute(grey, None)
    if descriptors is None or not len(keypoints):
        return Features(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8))
    root = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-7))
    points = np.array([keypoint.pt for keypoint in keypoints], np.float32)
    return Features(points, np.asarray(np.clip(np.rint(root * 512), 0, 255), np.uint8))


def inliers(query: Features, candidate: Features) -> int:
    """How many matches between two pictures one plausible homography explains; 0 if there is none.

    The same two always give the same number.
    """
    if len(query.points) < _LEAST_MATCHES or len(candidate.points) < _LEAST_MATCHES:
        return 0
    pairs = cv2.BFMatcher(cv2.NORM_L2).knnMatch(query.descriptors, candidate.descriptors, k=2)
    good = [pair[0] for pair in pairs if len(pair) == 2 and pair[0].distance < _RATIO * pair[1].distance]
    # One point of the candidate explains one point of the query: repeated patterns must not vote many times.
    best = {match.trainIdx: match for match in sorted(good, key=lambda match: -match.distance)}
    matches = sorted(best.values(), key=lambda match: match.queryIdx)
    if len(matches) < _LEAST_MATCHES:
        return 0
    source = query.points[[match.queryIdx for match in matches]]
    target = candidate.points[[match.trainIdx for match in matches]]
    # MAGSAC++ draws its samples from a generator with a fixed seed.
    homography, mask = cv2.findHomography(
        source, target, cv2.USAC_MAGSAC, _TOLERANCE, maxIters=_ITERATIONS, confidence=_CONFIDENCE
    )
    if homography is None or not _plausible(np.asarray(homography), source):
        return 0
    return int(np.count_nonzero(mask))


def confirmed_relevance(relevance: float, count: int, min_inliers: int) -> float:
    """Relevance after verification: with enough inliers above 1 and rising with them, else as it was (at most 1)."""
    return relevance if count < min_inliers else 1.0 + count / (count + _INLIERS_HALF)


def _plausible(homography: npt.NDArray[np.float64], points: npt.NDArray[np.float32]) -> bool:
    """Whether, around the middle of the points, it neither mirrors nor stretches beyond what pictures undergo."""
    x, y = points.mean(axis=0)
    (a, b, _), (c, d, _), (g, h, _) = homography
    u, v, w = homography @ (x, y, 1.0)
    if abs(w) < 1e-9:
        return False
    jacobian = np.array([[a - g * u / w, b - h * u / w], [c - g * v / w, d - h * v / w]]) / w
    if not np.isfinite(jacobian).all() or np.linalg.det(jacobian) <= 0:
        return False
    stretch = np.linalg.svd(jacobian, compute_uv=False)
    return bool(stretch[0] <= _LARGEST_ENLARGEMENT and stretch[1] >= 1 / _LARGEST_ENLARGEMENT)
