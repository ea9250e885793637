"""Tests of predictor.py: it gives what INFER_FULL writes, and leaves TensorFlow as it found it."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import tifffile

import isl
from isl import launch
from isl.checkpoints import saving
from isl.checkpoints.checkpoint import Checkpoint, find_newest
from isl.core.channels import TARGET_CHANNELS
from isl.core.statistic import PICTURE_STATISTICS
from isl.images import png_folders
from isl.inference import calibration
from isl.programs import random_checkpoint
from tests.support.program import (
  MAKE_FOVEA_SHALLOW,
  InferSetting,
  finish,
  make_fovea_shallow,
  python_process,
  write_field,
)

_NAMES = (*(s.name for s in PICTURE_STATISTICS), 'QUANTILE_5', 'QUANTILE_97.5')
_LABELS = ('NFH_CONFOCAL', 'DAPI_CONFOCAL')
_SIZE = InferSetting.size
_ROWS, _COLUMNS = InferSetting.rows, InferSetting.columns


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    yield InferSetting(launch.run, tmp_path_factory)


def _stack_of(images, channel='PHASE_CONTRAST'):
  """[z, row, column] as on disk."""
  (field,) = png_folders.find_png_fields(images)
  field_of_view = field.read()
  return np.stack(
    [field_of_view.images[k][:, :] for k in field_of_view.input_keys if k.channel == channel]
  )


@pytest.fixture(scope='module')
def stack(setting):
  """uint16."""
  return _stack_of(setting.images)


@pytest.fixture(scope='module')
def predictor(setting):
  with isl.Predictor(setting.checkpoint) as predictor:
    yield predictor


def _written(setting, *flags, names=_NAMES, labels=_LABELS, images=None):
  """What INFER_FULL writes: float32 [label, statistic, row, column]."""
  run = setting.run(
    f'--infer_channel_whitelist={",".join(labels)}',
    f'--infer_statistics={",".join(names)}',
    '--prediction_format=OME_TIFF',
    '--infer_panels=',
    *flags,
    images=images,
  )
  image = tifffile.imread(run.folder / 'predictions.ome.tif')
  return image.reshape(len(labels), len(names), *image.shape[-2:])


def _array(predicted):
  """Stacks predictions by label and statistic: [label, statistic, row, column]."""
  return np.stack([list(of_label.values()) for of_label in predicted.values()])


@pytest.fixture(scope='module')
def written(setting):
  return _written(setting)


@pytest.fixture(scope='module')
def predicted(predictor, stack):
  return predictor.predict(stack, statistics=_NAMES, labels=_LABELS)


def test_predictions_are_those_that_are_written_to_the_bit(predicted, written):
  assert list(predicted) == list(_LABELS)
  assert all(list(of_label) == list(_NAMES) for of_label in predicted.values())
  assert written.shape[2:] == _SIZE
  np.testing.assert_array_equal(_array(predicted), written)
  assert _array(predicted).dtype == np.float32


def test_what_is_known_of_the_network(predictor):
  assert predictor.labels == TARGET_CHANNELS
  assert predictor.input_channels == ('TRANSMISSION',)
  assert predictor.margin == InferSetting.margin


def test_some_labels_and_statistics(predictor, stack, predicted):
  """Labels and statistics come in the order in which they are asked for."""
  some = predictor.predict(stack, statistics=['QUANTILE_5', 'MEAN'], labels=_LABELS[1:])
  assert list(some) == ['DAPI_CONFOCAL']
  assert list(some['DAPI_CONFOCAL']) == ['QUANTILE_5', 'MEAN']
  for name, image in some['DAPI_CONFOCAL'].items():
    np.testing.assert_array_equal(image, predicted['DAPI_CONFOCAL'][name])


def test_medians_of_all_labels_are_what_is_usual(predictor, stack, predicted):
  usual = predictor.predict(stack)
  assert list(usual) == list(TARGET_CHANNELS)
  for label in _LABELS:
    assert list(usual[label]) == ['MEDIAN']
    np.testing.assert_array_equal(usual[label]['MEDIAN'], predicted[label]['MEDIAN'])


def test_stacks_of_other_types(predictor, stack):
  """Integers are shares of their type's largest; floats are intensities, of any precision."""

  def median(stack, **arguments):
    return predictor.predict(stack, labels=_LABELS[:1], **arguments)['NFH_CONFOCAL']['MEDIAN']

  coarse = (stack // 257).astype(np.uint8)
  as_8_bit = median(coarse)
  np.testing.assert_array_equal(median(coarse.astype(np.uint16) * 257), as_8_bit)
  floats = coarse * np.float32(1 / 255)
  for dtype in (np.float32, np.float64):
    assert np.mean(median(floats.astype(dtype)) == as_8_bit) >= 0.999
  # Of any unit, if its range is given.
  dark = (coarse.astype(np.uint16) + 100) * 2
  assert np.mean(median(dark, input_range=(200, 710)) == as_8_bit) >= 0.999
  assert np.mean(median(dark) == as_8_bit) < 0.9
  automatic = median(stack, input_range='auto')
  assert np.mean(median(stack // 2, input_range='auto') == automatic) >= 0.99


@pytest.mark.parametrize('padding', ['REFLECT', 'ZERO'])
def test_padded(setting, predictor, stack, padding):
  names = ('MEDIAN', 'ENTROPY')
  predicted = predictor.predict(stack, statistics=names, labels=_LABELS, padding=padding)
  written = _written(setting, f'--infer_padding={padding}', names=names)
  assert written.shape[2:] == (_ROWS, _COLUMNS)
  np.testing.assert_array_equal(_array(predicted), written)


def test_distributions(predictor, stack, predicted):
  statistics = ['DISTRIBUTION', 'MEAN']
  distribution, mean = predictor.predict(stack, statistics=statistics, labels=_LABELS[:1])[
    'NFH_CONFOCAL'
  ].values()
  assert distribution.shape == (*_SIZE, 256)
  np.testing.assert_allclose(distribution.sum(-1), 1, atol=1e-5)
  np.testing.assert_allclose(distribution @ (np.arange(256) / 255), mean, atol=1e-5)
  np.testing.assert_array_equal(mean, predicted['NFH_CONFOCAL']['MEAN'])


def test_used_again_for_other_sizes_and_after_closing(setting, predictor, stack, predicted):
  small = predictor.predict(stack[:, :28, :18], labels=_LABELS)
  for label in _LABELS:
    median = small[label]['MEDIAN']
    assert median.shape == (16, 8)
    assert np.mean(median == predicted[label]['MEDIAN'][:16, :8]) > 0.98
  predictor.close()
  again = predictor.predict(stack, statistics=_NAMES, labels=_LABELS)
  np.testing.assert_array_equal(_array(again), _array(predicted))
  predictor.close()
  predictor.close()


def test_two_input_channels(tmp_path, setting):
  """Given by name, in any order."""
  random_checkpoint.write_random_checkpoint(
    tmp_path / 'c',
    model='FOVEA',
    base_depth=6,
    num_z_values=2,
    input_channels=('TRANSMISSION', 'ACTIN'),
    target_channels=['GFP'],
  )
  images = tmp_path / 'images'
  write_field(images, rows=26, columns=20, depths=2, further_inputs=['ACTIN'], channels=())
  written = _written(
    setting,
    f'--restore_directory={tmp_path / "c"}',
    labels=['GFP'],
    images=images,
  )
  stacks = {'ACTIN': _stack_of(images, 'ACTIN'), 'TRANSMISSION': _stack_of(images)}
  with isl.Predictor(tmp_path / 'c') as predictor:
    assert predictor.input_channels == ('ACTIN', 'TRANSMISSION')
    predicted = predictor.predict(stacks, statistics=_NAMES)
    np.testing.assert_array_equal(_array(predicted), written)
    for given, words in (
      (stacks['ACTIN'], 'ACTIN, TRANSMISSION'),
      ({'ACTIN': stacks['ACTIN']}, 'ACTIN, TRANSMISSION'),
      (stacks | {'GFP': stacks['ACTIN']}, 'GFP'),
      (stacks | {'ACTIN': stacks['ACTIN'][:, :-1]}, 'same rows and columns'),
    ):
      with pytest.raises(ValueError, match=words) as error:
        predictor.predict(given)
      assert '\n' not in str(error.value)


def test_calibrated(setting, stack, tmp_path):
  folder = shutil.copytree(setting.checkpoint, tmp_path / 'c')
  prefix = find_newest(folder)
  fit = calibration.Fit(temperature=3, pixels=1, nll_before=1, nll_after=0)
  calibration.Calibration(
    checkpoint=prefix.name,
    step=1000,
    fingerprint=Checkpoint(prefix).fingerprint(),
    folders=(),
    fields={},
    fits={'DAPI_CONFOCAL': fit},
  ).save(folder)
  written = _written(setting, '--calibrated', f'--restore_directory={folder}')
  with isl.Predictor(folder, calibrated=True) as predictor:
    predicted = _array(predictor.predict(stack, statistics=_NAMES, labels=_LABELS))
  np.testing.assert_array_equal(predicted, written)
  with isl.Predictor(folder) as predictor:
    without = _array(predictor.predict(stack, statistics=_NAMES, labels=_LABELS))
  np.testing.assert_array_equal(without[0], predicted[0])
  assert (without[1] != predicted[1]).any()
  with pytest.raises(ValueError, match='--calibrate'):
    isl.Predictor(setting.checkpoint, calibrated=True)


def test_network_that_is_certain(setting, stack, tmp_path):
  """Its distributions are at the ends of what statistics can be."""
  source = Checkpoint(find_newest(setting.checkpoint))
  values = {name: source.value(name) for name in source.shapes}
  (biases,) = (name for name in values if '/DAPI_CONFOCAL/' in name and name.endswith('biases'))
  values[biases] = np.where(np.arange(256) == 200, 1e4, 0).astype(np.float32)
  saving.write_values(tmp_path / source.prefix.name, values)
  saving.write_state(tmp_path, source.prefix.name)
  with isl.Predictor(tmp_path) as predictor:
    predicted = predictor.predict(stack, statistics=_NAMES, labels=_LABELS[1:])
  of_label = predicted['DAPI_CONFOCAL']
  assert (np.rint(of_label['MODE'] * 255) == 200).all()
  for name, value in (('ENTROPY', 0), ('STANDARD_DEVIATION', 0), ('PROBABILITY_NONZERO', 1)):
    np.testing.assert_allclose(of_label[name], value, rtol=0, atol=1e-6)
  written = _written(setting, f'--restore_directory={tmp_path}', labels=_LABELS[1:])
  np.testing.assert_array_equal(_array(predicted), written)


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'stack': lambda s: s[0]}, r'\[z, row, column\]'),
    ({'stack': lambda s: s[:0]}, r'\[z, row, column\]'),
    ({'stack': lambda s: s.astype(np.int32)}, 'int32'),
    ({'stack': lambda s: s[:, :17]}, '17 rows'),
    ({'stack': lambda s: s / 65535 + 0.5}, 'input_range'),
    ({'stack': lambda s: np.full(s.shape, np.nan)}, 'nan'),
    ({'stack': lambda s: np.full(s.shape, np.inf), 'input_range': (0, 2)}, 'finite'),
    ({'stack': lambda s: {'DIC': s}}, 'DIC'),
    ({'statistics': ['MEDIAN', 'MAXIMUM']}, "'MAXIMUM'"),
    ({'statistics': 'MEDIAN'}, 'MEDIAN'),
    ({'labels': ['DAPI_CONFOCAL', 'GFP']}, 'GFP'),
    ({'labels': 'DAPI_CONFOCAL'}, 'DAPI_CONFOCAL'),
    ({'padding': 'SAME'}, "'SAME'"),
    ({'input_range': (1, 1)}, 'low < high'),
    ({'input_range': 'all'}, "'all'"),
    ({'input_range': (1, 2, 3)}, 'low < high'),
    ({'input_range': (0, math.inf)}, 'low < high'),
    ({'input_range': 255}, 'low < high'),
  ],
)
def test_errors_are_one_line(predictor, stack, change, words):
  change = dict(change)
  given = change.pop('stack', lambda s: s)(stack)
  with pytest.raises(ValueError, match=words) as error:
    predictor.predict(given, **change)
  assert '\n' not in str(error.value)
  assert '--' not in str(error.value), 'flags are of the command line'


def test_predictor_that_cannot_be(setting, tmp_path):
  with pytest.raises(ValueError, match='tile_size'):
    isl.Predictor(setting.checkpoint, tile_size=0)
  with pytest.raises(ValueError, match='checkpoint'):
    isl.Predictor(tmp_path)


def test_default_graph_stays_empty(predictor, stack):
  with tf.Graph().as_default() as graph:
    predictor.predict(stack[:, :28, :28], labels=_LABELS[:1])
    assert not graph.get_operations()
    assert tf.get_default_session() is None


_EAGER = """
import sys, json
import isl
loaded = 'tensorflow' in sys.modules
import numpy as np
import tensorflow as tf
before = float(tf.reduce_sum(tf.constant([1.0, 2.0])))
was_eager = tf.executing_eagerly()
with isl.Predictor(sys.argv[1], tile_size=2) as predictor:
  predicted = predictor.predict(np.load(sys.argv[2]), labels=['DAPI_CONFOCAL'])
after = tf.Variable([3.0]) * tf.constant([2.0])
print(json.dumps({
  'loaded': loaded,
  'eager': [was_eager, tf.executing_eagerly()],
  'sums': [before, float(after[0])],
  'operations': len(tf.compat.v1.get_default_graph().get_operations()),
  'v2': tf.compat.v1.executing_eagerly_outside_functions(),
  'median': predicted['DAPI_CONFOCAL']['MEDIAN'].tolist(),
}))
"""


def test_eager_execution_stays(setting, stack, tmp_path):
  np.save(tmp_path / 'stack.npy', stack[:, :34, :26])
  process = python_process(
    f'{MAKE_FOVEA_SHALLOW}\n{_EAGER}', setting.checkpoint, tmp_path / 'stack.npy'
  )
  outcome = finish(process)
  assert outcome.status == 0, outcome.stderr
  said = json.loads(outcome.stdout.splitlines()[-1])
  assert np.array(said.pop('median')).shape == (24, 16)
  assert said == {
    'loaded': False,
    'eager': [True, True],
    'sums': [3, 6],
    'operations': 0,
    'v2': True,
  }


def test_package_has_nothing_else():
  with pytest.raises(AttributeError, match='Predictors'):
    getattr(isl, 'Predictors')  # noqa: B009
