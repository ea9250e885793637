"""Predicts the sample data's labels by a regression on intensities, to compare a network with.

    python benchmarks/demo_baseline.py
    python benchmarks/demo_baseline.py --predictions BASE/eval_eval_infer/00001000

Every label is predicted by ridge regression (Hoerl & Kennard, Technometrics 12, 55-67, 1970) from
the z-stack's intensities at a pixel and their means over squares around it: what can be known
without shapes, textures and context. With features x and labels y of the training folder, the
weights are w = (mean(x x^T) + penalty)^-1 mean(x y), in closed form.

It prints Pearson's correlation with the evaluation folder's labels, the median over its fields of
view, on the pixels that a network's output covers, and last one JSON line. For each label, the best
of several penalties on the evaluation folder itself is taken, which favours the regression.
--predictions names a folder that `isl-launch --mode EVAL_EVAL --metric INFER_FULL` wrote; the
network's correlations (of its medians) on the same pixels are then printed beside.
"""

from __future__ import annotations

import argparse
import collections
import csv
import json
import pathlib
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np

from isl.core.channels import MAXPROJECT, TARGET_CHANNELS, TRANSMISSION, ImageKey
from isl.images import finding
from isl.images.fields_of_view import FieldOfView
from isl.models.networks import NETWORKS

_DATA = pathlib.Path(__file__).resolve().parents[1] / 'data_sample'
_PENALTIES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
# Number of rows computed at a time, so that memory stays small.
_STRIP = 64

Window = tuple[slice, slice]
# Correlations by field of view and label.
Correlations = dict[str, dict[str, float]]


def parse_arguments() -> argparse.Namespace:
  """Parses the command line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--train', default=_DATA / 'synthetic_training', help='folder to fit on')
  parser.add_argument(
    '--evaluate', default=_DATA / 'synthetic_evaluation', help='folder to predict'
  )
  parser.add_argument(
    '--predictions', type=pathlib.Path, help='a folder of INFER_FULL, with tables'
  )
  parser.add_argument(
    '--channels', default='DAPI_CONFOCAL,MAP2_CONFOCAL,NFH_CONFOCAL', help='labels, a comma list'
  )
  parser.add_argument(
    '--windows', default='3,7,15,31,61', help='sides of the squares in pixels, a comma list'
  )
  return parser.parse_args()


def _side(text: str) -> int:
  if not text.isdecimal() or not int(text):
    raise ValueError(f'--windows must be whole numbers from 1 on, a comma list, got {text!r}')
  return int(text)


def features(field_of_view: FieldOfView, windows: Sequence[int]) -> np.ndarray:
  """Computes the regression's features of each pixel.

  These are 1, the intensities at all depths, and their means over squares.

  Args:
    field_of_view: the z-stack.
    windows: sides of the squares, in pixels.

  Returns:
    float32 [row, column, feature].
  """
  keys = [ImageKey(z, field_of_view.transmitted_light) for z in range(field_of_view.num_depths())]
  depths = [_intensities(field_of_view.images[key][:, :]) for key in keys]
  means = [cv2.blur(depth, (side, side)) for side in windows for depth in depths]
  return np.stack([np.ones_like(depths[0]), *depths, *means], axis=-1)


def _intensities(image: np.ndarray) -> np.ndarray:
  """Converts pixels of an integer type to intensities in [0, 1], float32."""
  return image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)


def _labels(field_of_view: FieldOfView, channels: Sequence[str]) -> np.ndarray:
  """The labels' intensities in [0, 1], float32 [row, column, channel].

  Raises:
    ValueError: the field of view lacks a label.
  """
  keys = [ImageKey(MAXPROJECT, channel) for channel in channels]
  missing = [key.channel for key in keys if key not in field_of_view.images]
  if missing:
    raise ValueError(f'field of view {field_of_view.name!r} has no label {", ".join(missing)}')
  return np.stack([_intensities(field_of_view.images[key][:, :]) for key in keys], axis=-1)


def _strips(array: np.ndarray) -> Iterator[np.ndarray]:
  """Yields [row, column, value] some rows at a time, as float64 [pixel, value]."""
  for first in range(0, len(array), _STRIP):
    strip = array[first : first + _STRIP]
    yield strip.reshape(-1, strip.shape[-1]).astype(np.float64)


def fit(
  directory: str | pathlib.Path, channels: Sequence[str], windows: Sequence[int]
) -> np.ndarray:
  """Fits the regression to all pixels of a folder: weights, float64 [penalty, feature, channel]."""
  square, product, pixels = 0.0, 0.0, 0
  for files in finding.find_fields(directory):
    field_of_view = files.select((TRANSMISSION,), TARGET_CHANNELS).read()
    inputs, labels = features(field_of_view, windows), _labels(field_of_view, channels)
    for x, y in zip(_strips(inputs), _strips(labels), strict=True):
      square, product, pixels = square + x.T @ x, product + x.T @ y, pixels + len(x)
  mean_square, mean_product = np.asarray(square) / pixels, np.asarray(product) / pixels
  unit = np.eye(len(mean_square))
  return np.stack([np.linalg.solve(mean_square + p * unit, mean_product) for p in _PENALTIES])


def correlations(
  directory: str | pathlib.Path,
  weights: np.ndarray,
  channels: Sequence[str],
  windows: Sequence[int],
  outputs: Mapping[str, Window],
) -> Correlations:
  """Computes Pearson's correlations of the regression's predictions, for the best penalty.

  Args:
    directory: folder of the fields of view to predict.
    weights: the regression's weights, float64 [penalty, feature, channel].
    channels: the labels.
    windows: sides of the squares, in pixels.
    outputs: by field of view, the pixels that count; for others, those that CONCORDANCE predicts.
  """
  found: Correlations = {}
  for files in finding.find_fields(directory):
    field_of_view = files.select((TRANSMISSION,), TARGET_CHANNELS).read()
    window = outputs.get(field_of_view.name) or output_window(field_of_view.size)
    x, y = features(field_of_view, windows)[window], _labels(field_of_view, channels)[window]
    every = np.concatenate(list(weights), axis=-1)
    predicted = np.concatenate([strip @ every for strip in _strips(x)])
    truth = np.tile(y.reshape(-1, len(channels)), len(weights))
    scores = [np.corrcoef(a, b)[0, 1] for a, b in zip(predicted.T, truth.T, strict=True)]
    best = np.max(np.reshape(scores, (len(weights), len(channels))), axis=0)
    found[field_of_view.name] = dict(zip(channels, best.tolist(), strict=True))
  return found


def output_window(size: tuple[int, int]) -> Window:
  """The pixels that CONCORDANCE predicts of an image of `size` (rows, columns).

  Raises:
    ValueError: the image is smaller than a patch.
  """
  geometry = NETWORKS['CONCORDANCE'].geometry
  if min(size) < geometry.patch:
    raise ValueError(f'images must have {geometry.patch} pixels a side at least, got {size}')
  ends = [geometry.margin + geometry.num_blocks(n) * geometry.output for n in size]
  return slice(geometry.margin, ends[0]), slice(geometry.margin, ends[1])


def read_windows(predictions: pathlib.Path) -> dict[str, Window]:
  """Reads from run.json which pixels of each field of view were predicted."""
  run = json.loads((predictions / 'run.json').read_text(encoding='utf-8'))
  windows = {}
  for field in run['fields']:
    (row, column), (rows, columns) = field['output_offset'], field['output_size']
    windows[field['field']] = slice(row, row + rows), slice(column, column + columns)
  return windows


def read_correlations(predictions: pathlib.Path) -> Correlations:
  """Reads the network's correlations from metrics.csv."""
  found: Correlations = collections.defaultdict(dict)
  with (predictions / 'metrics.csv').open(newline='', encoding='utf-8') as stream:
    for row in csv.DictReader(stream):
      found[row['field']][row['channel']] = float(row['pearson_r'])
  return found


def median_by_channel(
  found: Correlations, fields: Sequence[str], channels: Sequence[str]
) -> dict[str, float]:
  """The median correlation of each label over fields of view."""
  return {c: statistics.median(found[field][c] for field in fields) for c in channels}


def main() -> None:
  """Fits, predicts and prints the correlations."""
  arguments = parse_arguments()
  channels = arguments.channels.split(',')
  try:
    windows = [_side(text) for text in arguments.windows.split(',')]
    outputs = read_windows(arguments.predictions) if arguments.predictions else {}
    network = read_correlations(arguments.predictions) if arguments.predictions else {}
    weights = fit(arguments.train, channels, windows)
    baseline = correlations(arguments.evaluate, weights, channels, windows, outputs)
    fields = [f for f in baseline if f in network] if network else list(baseline)
    if not fields:
      raise ValueError(f'{arguments.predictions} is not of the fields of view in the folder')
    channels = [c for c in channels if not network or all(c in network[f] for f in fields)]
  except (OSError, ValueError) as error:
    sys.exit(f'demo_baseline: {error}')
  scores = {'baseline': median_by_channel(baseline, fields, channels)}
  if network:
    scores['network'] = median_by_channel(network, fields, channels)
    scores['difference'] = {c: scores['network'][c] - scores['baseline'][c] for c in channels}
  print(f'Pearson r, {len(fields)} field(s) of view'.ljust(34), *(f'{name:>10}' for name in scores))
  for channel in channels:
    print(channel.ljust(34), *(f'{values[channel]:10.3f}' for values in scores.values()))
  print(json.dumps({'fields': len(fields), **scores}))


if __name__ == '__main__':
  main()
