"""Tests of metrics.py against NumPy's own."""

import math

import numpy as np
import pytest

from isl import metrics


def _scores(predicted, truth, cross_entropy=None, pieces=1):
  running = metrics.RunningScores()
  entropies = np.zeros_like(truth) if cross_entropy is None else cross_entropy
  for parts in zip(
    *(np.array_split(a, pieces) for a in (predicted, truth, entropies)), strict=True
  ):
    running.add(*parts)
  return running.scores()


def _random(seed, shape=(37, 23)):
  return np.random.default_rng(seed).random(shape, dtype=np.float32)


@pytest.mark.parametrize('pieces', [1, 2, 37])
def test_scores_are_numpys_however_the_pixels_come(pieces):
  predicted, truth, cross_entropy = _random(0), _random(1), 3 * _random(2)
  predicted = (predicted + truth) / 2
  scores = _scores(predicted, truth, cross_entropy, pieces)
  error = predicted.astype(float) - truth
  assert scores.pixels == truth.size
  assert scores.pearson_r == pytest.approx(np.corrcoef(predicted.ravel(), truth.ravel())[0, 1])
  assert scores.mae == pytest.approx(np.abs(error).mean())
  assert scores.rmse == pytest.approx(np.sqrt((error**2).mean()))
  assert scores.cross_entropy == pytest.approx(cross_entropy.mean(dtype=float))


def test_pieces_of_any_shape():
  running = metrics.RunningScores()
  truth = _random(1)
  for rows in (slice(0, 5), slice(5, 6), slice(6, 37)):
    for columns in (slice(0, 20), slice(20, 23)):
      running.add(_random(0)[rows, columns], truth[rows, columns], truth[rows, columns])
  assert running.scores().pearson_r == pytest.approx(
    np.corrcoef(_random(0).ravel(), truth.ravel())[0, 1]
  )


def test_perfect_prediction():
  scores = _scores(_random(0), _random(0))
  assert scores.pearson_r == pytest.approx(1)
  assert (scores.mae, scores.rmse, scores.cross_entropy) == (0, 0, 0)


def test_inverted_prediction():
  assert _scores(1 - _random(0), _random(0)).pearson_r == pytest.approx(-1)


@pytest.mark.parametrize('value', [0, 0.1, 1 / 3, 1])
def test_constants_do_not_correlate(value):
  constant = np.full((37, 23), value, np.float32)
  for predicted, truth in ((constant, _random(0)), (_random(0), constant), (constant, constant)):
    scores = _scores(predicted, truth, pieces=7)
    assert math.isnan(scores.pearson_r)
    assert scores.mae == pytest.approx(np.abs(predicted.astype(float) - truth).mean())


def test_dim_image_with_a_bright_background_correlates():
  """A contrast of one 16-bit step in single pixels is no rounding error."""
  truth = np.full((100, 100), 0.5, np.float32)
  truth[3, 4] += 1 / 65535
  assert _scores(truth, truth, pieces=9).pearson_r == pytest.approx(1, abs=1e-3)
