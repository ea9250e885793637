"""Tests of controller.py, with the original's own numbers where the reference files are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from isl.checkpoints.checkpoint import Checkpoint, find_newest
from isl.core.channels import MAXPROJECT, ImageKey
from isl.core.statistic import NUM_CLASSES, PICTURE_STATISTICS, Statistic
from isl.data import data_provider
from isl.inference.controller import HeadGroup, Labeler
from isl.models import model_util, networks, towers
from isl.models.fovea import FOVEA
from isl.programs import random_checkpoint
from tests.support.program import (
  SHALLOW,
  make_fovea_shallow,
  original_fields,
  shared_path,
  write_reference_checkpoint,
)

# A class or the next one, where a sum is one half but for rounding.
_BY_EQUAL_PIXELS = (Statistic.MODE, Statistic.MEDIAN)

# All that is one number for a pixel.
_PICTURES = tuple(s for s in Statistic if s is not Statistic.DISTRIBUTION)

# The reference's crops, in blocks, and the order of its statistics.
_DENSE = (4, 4)
_ORDER = (
  Statistic.MODE,
  Statistic.MEDIAN,
  Statistic.MEAN,
  Statistic.STANDARD_DEVIATION,
  Statistic.PROBABILITY_NONZERO,
  Statistic.ENTROPY,
)
_CONCORDANCE = 'variables_concordance.json', 7, 'concordance_seed7_row64_col40.npz', (64, 40)
_FOVEA = 'variables_fovea_d50_z13.json', 5, 'fovea_d50_z13_seed5_row100_col100.npz', (100, 100)


@pytest.fixture(scope='module', autouse=True)
def shallow():
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    yield


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  return Checkpoint(
    random_checkpoint.write_random_checkpoint(
      tmp_path_factory.mktemp('checkpoint'), model='FOVEA', base_depth=6, num_z_values=2
    )
  )


@pytest.fixture(scope='module')
def crops():
  """Crops of 1 x 2 blocks for a shallow FOVEA: [batch, row, column, z, channel, mask]."""
  crops = np.ones((3, SHALLOW.patch, SHALLOW.patch + 8, 2, 1, 2), np.float32)
  crops[..., 0] = np.random.default_rng(0).random(crops.shape[:-1], np.float32)
  return crops


def _labeler(checkpoint, *, batch=3, blocks=(1, 2), **kwargs):
  description = checkpoint.describe()
  group = HeadGroup(**{'heads': description.heads, 'statistics': _PICTURES, **kwargs})
  return Labeler(description.plan(), checkpoint, groups=[group], batch=batch, blocks=blocks)


def _labels(num_heads, batch=3):
  shape = (num_heads, batch, 8, 16)
  return np.random.default_rng(1).integers(0, NUM_CLASSES, shape).astype(np.uint8)


def _logits(checkpoint, crops, head):
  """[batch, row, column, class], from a graph of this head alone."""
  plan = checkpoint.describe().plan()
  config = tf.ConfigProto()
  config.graph_options.rewrite_options.disable_meta_optimizer = True
  with (
    tf.Graph().as_default(),
    tf.Session(config=config) as session,
    tf.variable_scope('', custom_getter=checkpoint.custom_getter),
  ):
    inputs = tf.placeholder(tf.float32, [*crops.shape[:3], plan.input_depth])
    variables = model_util.head_variables(plan.output_depth, head)
    logits = model_util.head_logits(towers.features(inputs, plan), variables)
    return session.run(logits, {inputs: crops.reshape(inputs.shape)})


def _log_softmax(logits):
  logits = logits.astype(np.float64)
  logits -= logits.max(axis=-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def _assert_close(found, expected, tolerance):
  """Asserts that statistics, by name, are as expected: classes equal, other values close."""
  for statistic, values in found.items():
    if statistic in _BY_EQUAL_PIXELS:
      # The same class, whatever the last bit of its value.
      equal = np.abs(values - expected[statistic]) < 1e-4
      assert equal.mean() >= 0.999, statistic
    else:
      assert np.abs(values - expected[statistic]).max() <= tolerance, statistic


@pytest.fixture(scope='module')
def whole(checkpoint, crops):
  """Every statistic of every head."""
  labels = _labels(len(checkpoint.describe().heads))
  labeler = _labeler(checkpoint)
  yield labeler(crops, [labels])[0]
  labeler.close()


def test_shapes(checkpoint, whole):
  assert tuple(whole) == _PICTURES
  for values in whole.values():
    assert values.shape == (len(checkpoint.describe().heads), 3, 8, 16)
    assert values.dtype == np.float32


def test_statistics_are_of_the_heads_logits(checkpoint, crops, whole):
  """The cross entropy is -ln p[true class] / ln K."""
  heads = checkpoint.describe().heads
  labels = _labels(len(heads))
  head = ImageKey(MAXPROJECT, 'NFH_CONFOCAL')
  i = heads.index(head)
  log_p = _log_softmax(_logits(checkpoint, crops, head))
  of_truth = np.take_along_axis(log_p, labels[i][..., np.newaxis].astype(int), axis=-1)[..., 0]
  expected = -of_truth / math.log(NUM_CLASSES)
  np.testing.assert_allclose(whole[Statistic.CROSS_ENTROPY][i], expected, atol=1e-5)
  mean = np.exp(log_p) @ (np.arange(NUM_CLASSES) / (NUM_CLASSES - 1))
  np.testing.assert_allclose(whole[Statistic.MEAN][i], mean, atol=1e-5)


def test_only_the_heads_and_statistics_asked_for_in_their_order(checkpoint, crops, whole):
  heads = checkpoint.describe().heads
  chosen = [5, 0, 9]
  statistics = (Statistic.ENTROPY, Statistic.CROSS_ENTROPY, Statistic.MEDIAN)
  labeler = _labeler(checkpoint, heads=[heads[i] for i in chosen], statistics=statistics)
  (found,) = labeler(crops, [_labels(len(heads))[chosen]])
  labeler.close()
  assert tuple(found) == statistics
  _assert_close(found, {s: whole[s][chosen] for s in statistics}, 1e-6)


def test_batch_is_its_crops_one_by_one(checkpoint, crops, whole):
  heads = checkpoint.describe().heads
  labels = _labels(len(heads))
  labeler = _labeler(checkpoint, batch=1)
  for i in range(len(crops)):
    (found,) = labeler(crops[i : i + 1], [labels[:, i : i + 1]])
    _assert_close(found, {s: values[:, i : i + 1] for s, values in whole.items()}, 1e-5)
  labeler.close()


def test_intensities_are_not_masks(checkpoint, crops, whole):
  """Another mask gives another prediction, as do the depths in another order."""
  labels = _labels(len(checkpoint.describe().heads))
  labeler = _labeler(checkpoint)
  for changed in (crops * [1, 0], crops[..., ::-1], crops[:, :, :, ::-1]):
    (found,) = labeler(changed, [labels])
    assert np.abs(found[Statistic.MEAN] - whole[Statistic.MEAN]).max() > 1e-3
  labeler.close()


@pytest.mark.parametrize('part', ['truncated', 'changed'])
def test_damaged_value_is_an_error(tmp_path, part):
  """Damage that only the reading of the values finds is an error."""
  prefix = random_checkpoint.write_random_checkpoint(
    tmp_path, model='FOVEA', base_depth=4, num_z_values=1
  )
  data = prefix.with_name(f'{prefix.name}.data-00000-of-00001')
  contents = bytearray(data.read_bytes())
  if part == 'truncated':
    contents = contents[: len(contents) // 2]
  else:
    contents[len(contents) // 2] ^= 1
  data.write_bytes(contents)
  damaged = Checkpoint(find_newest(tmp_path))
  with pytest.raises(ValueError, match=prefix.name):
    _labeler(damaged)


class _Reference:
  """The original's checkpoint, the crop that it read, and what it predicted."""

  def __init__(self, folder, variables, seed, numbers, corner):
    self.checkpoint = Checkpoint(write_reference_checkpoint(folder, variables, seed))
    self.description = self.checkpoint.describe()
    self.numbers = dict(np.load(shared_path('reference', numbers)))
    geometry = self.description.plan().spec.geometry
    (field,) = original_fields(shared_path('data', 'condition_b_sample'))
    self.window = [
      slice(start, start + geometry.input_size(n)) for start, n in zip(corner, _DENSE, strict=True)
    ]
    self.crop = data_provider.input_crop(field.read(), self.description.inputs, *self.window)
    # [head, row, column] of each statistic.
    predicted = [self.numbers[f'predict_{kind}_statistics'] for kind in ('input', 'target')]
    by_head = np.concatenate([p[0, :, :, z] for p in predicted for z in range(p.shape[3])], axis=2)
    self.expected = {s: by_head[..., i].transpose(2, 0, 1) for i, s in enumerate(_ORDER)}
    self._geometry = geometry

  def patches(self):
    """[batch, row, column, z, channel, mask], all single patches of the crop."""
    starts = np.ndindex(*_DENSE)
    step, size = self._geometry.output, self._geometry.patch
    return np.stack(
      [self.crop[step * i : step * i + size, step * j : step * j + size] for i, j in starts]
    )

  def joined(self, values):
    """[.., row, column] from the patches' [.., batch, row, column]."""
    side = self._geometry.output
    values = values.reshape(*values.shape[:-3], *_DENSE, side, side).swapaxes(-3, -2)
    return values.reshape(*values.shape[:-4], _DENSE[0] * side, _DENSE[1] * side)


@pytest.fixture(scope='module', params=[_CONCORDANCE, _FOVEA], ids=['CONCORDANCE', 'FOVEA'])
def reference(request, tmp_path_factory):
  with pytest.MonkeyPatch.context() as monkeypatch:
    # Whole, unlike above.
    monkeypatch.setitem(networks.NETWORKS, 'FOVEA', FOVEA)
    yield _Reference(tmp_path_factory.mktemp('checkpoint'), *request.param)


def test_reference_input(reference):
  margin = reference.description.plan().spec.geometry.margin
  center = reference.crop[margin:-margin, margin:-margin]
  np.testing.assert_allclose(center, reference.numbers['input'][0], atol=1e-7)


# That both are the same, towers_test.py shows.
@pytest.mark.parametrize(
  'dense',
  [pytest.param(True, id='DENSE'), pytest.param(False, id='PATCHES', marks=pytest.mark.soak)],
)
def test_reference_numbers(reference, dense):
  crops = reference.crop[np.newaxis] if dense else reference.patches()
  description = reference.description
  # The one label whose distributions are known, of one network.
  key = ImageKey(MAXPROJECT, 'DAPI_CONFOCAL')
  labeler = Labeler(
    description.plan(),
    reference.checkpoint,
    groups=[
      HeadGroup(heads=description.heads, statistics=PICTURE_STATISTICS),
      HeadGroup(heads=(key,), statistics=(Statistic.DISTRIBUTION,)),
    ],
    batch=len(crops),
    blocks=_DENSE if dense else (1, 1),
  )
  side = (32, 32) if dense else (8, 8)
  classes = [np.zeros((len(group.heads), len(crops), *side), np.uint8) for group in labeler.groups]
  found, of_label = labeler(crops, classes)
  labeler.close()
  joined = {s: v[:, 0] if dense else reference.joined(v) for s, v in found.items()}
  _assert_close(joined, reference.expected, 2e-5)
  if description.model == 'CONCORDANCE':
    (p,) = of_label[Statistic.DISTRIBUTION]
    p = p[0] if dense else np.moveaxis(reference.joined(np.moveaxis(p, -1, 0)), 0, -1)
    assert np.abs(p - reference.numbers['distribution_DAPI_CONFOCAL'][0]).max() <= 2e-5
