"""Tests of graph.py: what a few steps do, against formulas on what they fetched."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from typing import Any

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from isl import command_line
from isl.core.experiment import Geometry, Loss, Optimizer
from isl.models import networks, training_layers
from isl.models.concordance import CONCORDANCE
from isl.programs import random_checkpoint
from isl.training import train
from isl.training.start import find_start
from tests.support.program import make_fovea_shallow, write_field

_STEPS = 3
_BATCH = 2
_SEED = 1
_CHANNELS = ('DAPI_CONFOCAL', 'MAP2_CONFOCAL', 'NFH_CONFOCAL')
# And what is made of two of these.
_PRESENT = (*_CHANNELS, 'NEURITE_CONFOCAL')
# Two scales, of which each has one recursion.
_SHALLOW = dataclasses.replace(
  CONCORDANCE,
  geometry=Geometry(patch=34, output=8),
  crops=(22, 34),
  lower_recursions=(1, 1),
  upper_recursions=6,
)
_FOVEA = ('--model=FOVEA', '--base_depth=6', '--loss_crop_size=60')
# Trainings by name, with flags. --norestore_logits says that all but the heads is restored.
_KINDS = {
  'Adam': (*_FOVEA, '--optimizer=ADAM', '--learning_rate=0.01'),
  'momentum': (
    *_FOVEA,
    '--optimizer=MOMENTUM',
    '--learning_rate=0.5',
    '--learning_decay_steps=2',
    '--loss=RANKED_PROBABILITY_SCORE',
    '--loss_output_size=24',
    '--norestore_logits',
  ),
  'Adagrad': (
    '--model=CONCORDANCE',
    '--base_depth=5',
    '--loss_crop_size=37',
    '--optimizer=ADAGRAD',
    '--learning_rate=0.01',
  ),
}


class _Trained:
  """A training of three steps.

  Attributes:
    experiment: the run.
    start: where the training began.
    patches: the patches that the training read.
    graph: graph of the training.
    session: session of the training, after these steps.
    states: values of variables by name, before the first step and after each.
    steps: what each step found, by the graph's attributes; also the `seconds` that it took, and the
      statistics that batch norm `collected`.
  """

  def __init__(self, folders: dict[str, Any], kind: str):
    """Trains for three steps."""
    arguments = [
      '--mode=TRAIN',
      '--read_pngs',
      f'--dataset_train_directory={folders["images"]}',
      f'--base_directory={folders["base"]}',
      '--num_z_values=2',
      f'--preprocess_batch_size={_BATCH}',
      '--preprocess_shuffle_batch_num_threads=2',
      *_KINDS[kind],
    ]
    if '--norestore_logits' in arguments:
      arguments.append(f'--restore_directory={folders["checkpoint"]}')
    with flagsaver.flagsaver():
      flags.FLAGS(['isl-launch', *arguments])
      self.experiment = command_line.make_experiment()
    self.start = find_start(self.experiment)
    self.patches = train.training_patches(self.experiment, self.start, _SEED)
    collecting: list[training_layers.BatchStatistics] = []

    class Statistics(training_layers.BatchStatistics):
      def __init__(self):
        super().__init__()
        collecting.append(self)

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(training_layers, 'BatchStatistics', Statistics)
      self.graph, self.session = train.make_session(self.experiment, self.start, _SEED)
    graph = self.graph
    self._read = {
      'weights': graph.variables.parts[0].variable,
      'averages': graph.variables.averages,
      'global_step': graph.global_step,
    }
    self._found = {
      name: getattr(graph, name)
      for name in (
        *('inputs', 'logits', 'classes', 'masks', 'loss_by_head', 'input_loss', 'target_loss'),
        *('total_loss', 'gradients', 'seconds_waiting', 'train', 'step'),
      )
    } | {'collected': collecting[0].collected}
    self.states = [self.session.run(self._read)]
    self.steps: list[dict[str, Any]] = []
    for _ in range(_STEPS):
      began = time.monotonic()
      self.steps.append(self.session.run(self._found))
      (self.steps[-1]['gradients'],) = self.steps[-1]['gradients']
      self.steps[-1]['seconds'] = time.monotonic() - began
      self.states.append(self.session.run(self._read))

  def changes(self, name):
    """(step, what it found, the variable before it and after it) of each step."""
    vectors = [state[name].astype(np.float64) for state in self.states]
    return list(zip(range(_STEPS), self.steps, vectors[:-1], vectors[1:], strict=True))

  def batch(self, index=-1):
    """A step's batch, to be fed."""
    return {getattr(self.graph, n): self.steps[index][n] for n in ('inputs', 'classes', 'masks')}


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """Folders by their contents. The networks lack most of their towers, in all of this file."""
  made = {name: tmp_path_factory.mktemp(name) for name in ('images', 'base', 'checkpoint')}
  write_field(made['images'], rows=110, columns=120, channels=_CHANNELS)
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    monkeypatch.setitem(networks.NETWORKS, 'CONCORDANCE', _SHALLOW)
    random_checkpoint.write_random_checkpoint(
      made['checkpoint'], model='FOVEA', base_depth=6, num_z_values=2
    )
    yield made


@pytest.fixture(scope='module')
def trainings(folders):
  """All of _KINDS, each made when it is asked for."""
  made: dict[str, _Trained] = {}
  with contextlib.ExitStack() as stack:

    def make(name):
      if name not in made:
        made[name] = _Trained(folders, name)
        stack.callback(made[name].session.close)
      return made[name]

    yield make


@pytest.fixture(params=_KINDS)
def trained(request, trainings):
  return trainings(request.param)


# What a step reads.


def test_batches_are_the_patches_in_order(trained):
  for index, step in enumerate(trained.steps):
    patches = [trained.patches.patch(index * _BATCH + i) for i in range(_BATCH)]
    np.testing.assert_array_equal(step['inputs'], [patch.input for patch in patches])
    margin = trained.start.plan.spec.geometry.margin
    centre = step['inputs'][:, margin:-margin, margin:-margin]
    targets = np.stack([patch.target_classes for patch in patches])
    classes = np.concatenate([np.rint(255 * centre), targets], axis=-1)
    num_heads = 2 + 9
    expected = np.moveaxis(classes, -1, 0).reshape(num_heads, -1)
    np.testing.assert_array_equal(step['classes'], expected)
    assert expected.shape[1] == _BATCH * trained.experiment.sampling.output_size**2


def test_heads_and_masks(trained):
  graph = trained.graph
  assert graph.heads == trained.start.inputs.keys + trained.start.targets.keys
  assert (len(graph.heads), graph.num_targets) == (2 + 9, 9)
  expected = [float(key.channel in ('TRANSMISSION', *_PRESENT)) for key in graph.heads]
  assert sum(expected) == 2 + 4
  for step in trained.steps:
    masks = np.broadcast_to(np.array(expected)[:, np.newaxis], step['masks'].shape)
    np.testing.assert_array_equal(step['masks'], masks)


def test_steps_are_counted(trained):
  assert [state['global_step'] for state in trained.states] == [0, 1, 2, 3]
  assert [step['step'] for step in trained.steps] == [1, 2, 3]


def test_waiting_is_a_part_of_the_step(trained):
  for step in trained.steps:
    assert 0 <= step['seconds_waiting'] < step['seconds']


# Losses.


def _losses(loss, logits, classes):
  """[head, pixel], by the specification, in double precision."""
  logits = logits.astype(np.float64)
  p = np.exp(logits - logits.max(axis=-1, keepdims=True))
  p /= p.sum(axis=-1, keepdims=True)
  if loss is Loss.CROSS_ENTROPY:
    return -np.log(np.take_along_axis(p, classes[..., None], -1)[..., 0]) / np.log(256)
  return ((p.cumsum(-1) - (np.arange(256) >= classes[..., None])) ** 2).sum(-1) / 255


def test_losses_are_the_specifications(trained):
  for step in trained.steps:
    by_pixel = _losses(trained.experiment.loss, step['logits'], step['classes'])
    counts = (step['masks'] != 0).sum(axis=1)
    by_head = (step['masks'] * by_pixel).sum(axis=1) / np.maximum(counts, 1)
    np.testing.assert_allclose(step['loss_by_head'], by_head, rtol=1e-5)
    of_inputs, of_targets = by_head[:2].mean(), by_head[2:].mean()
    assert step['input_loss'] == pytest.approx(of_inputs, rel=1e-5)
    assert step['target_loss'] == pytest.approx(of_targets, rel=1e-5)
    assert step['total_loss'] == pytest.approx((of_inputs + of_targets) / 2, rel=1e-5)


def test_absent_labels_contribute_nothing(trained):
  packing = trained.graph.variables.parts[0].packing
  for index, step, before, after in trained.changes('weights'):
    del index
    gradients = packing.unpack_array(step['gradients'])
    changes = packing.unpack_array(after - before)
    for key, loss in zip(trained.graph.heads, step['loss_by_head'], strict=True):
      weights = f'head/{key}/residual_v2_conv/Conv/weights'
      is_there = key.channel in ('TRANSMISSION', *_PRESENT)
      assert (loss > 0) == is_there, key
      assert np.any(gradients[weights]) == is_there, key
      assert np.any(changes[weights]) == is_there, key


def test_gradient_is_the_slope(trained):
  """The gradient is the loss's slope in the gradient's own direction, for each kind of weights."""
  graph, packing = trained.graph, trained.graph.variables.parts[0].packing
  weights, read = trained.states[-1]['weights'], graph.variables.parts[0].read
  feed = trained.batch()
  gradient = trained.session.run(graph.gradients[0], {**feed, read: weights}).astype(np.float64)

  def loss(moved):
    # Rounded less than their mean is.
    by_head = trained.session.run(graph.loss_by_head, {**feed, read: moved}).astype(np.float64)
    return (by_head[:2].mean() + by_head[2:].mean()) / 2

  kinds = {name: re.sub('.*/(?!weights)', '', f'/{name}') for name in packing.shapes}
  for kind in set(kinds.values()):
    direction = gradient * packing.repeat(lambda name, kind=kind: float(kinds[name] == kind))
    expected = float(np.linalg.norm(direction))
    # Hardly more than what rounding leaves of the loss, because corners of relu are everywhere.
    step = max(1e-4, 2e-6 / expected)
    move = step / expected * direction
    slope = (loss(weights + move) - loss(weights - move)) / (2 * step)
    assert slope == pytest.approx(expected, rel=0.1), kind


# Moving averages.


def test_averages_follow_the_batch(trained):
  packing = trained.graph.variables.average_packing
  fresh = trained.start.fresh
  if trained.start.checkpoint is None:
    assert packing.shapes.keys() <= fresh.keys()
  else:
    assert {name for name in packing.shapes if name in fresh} == {
      name for name in packing.shapes if name.startswith('head/')
    }
  for n, step, before, after in trained.changes('averages'):
    assert step['collected'].keys() == packing.shapes.keys()
    befores, afters = packing.unpack_array(before), packing.unpack_array(after)
    for name, found in step['collected'].items():
      decay = min(0.999, (1 + n) / (10 + n)) if name in fresh else 0.999
      expected = decay * befores[name] + (1 - decay) * found
      np.testing.assert_allclose(afters[name], expected, rtol=1e-6, atol=1e-7, err_msg=name)
      assert not np.array_equal(befores[name], afters[name]), name


def test_training_starts_where_it_should(trained):
  variables = trained.graph.variables
  for packing, vector in (
    (variables.parts[0].packing, trained.states[0]['weights']),
    (variables.average_packing, trained.states[0]['averages']),
  ):
    for name, array in packing.unpack_array(vector).items():
      kind = name.rsplit('/', 1)[-1]
      if name not in trained.start.fresh:
        np.testing.assert_array_equal(array, trained.start.checkpoint.value(name), err_msg=name)
      elif kind != 'weights':
        np.testing.assert_array_equal(array, float(kind in ('gamma', 'moving_variance')))
      else:
        assert array.std() > 0


# Optimizers.


def test_weights_follow_the_optimizers_formula(trained):
  training = trained.experiment.training
  first, second, accumulated = 0.0, 0.0, 0.1
  for index, step, before, after in trained.changes('weights'):
    gradient = step['gradients'].astype(np.float64)
    if training.optimizer is Optimizer.ADAM:
      # Kingma and Ba, Adam, 2015; epsilon is not corrected.
      first = 0.9 * first + 0.1 * gradient
      second = 0.999 * second + 0.001 * gradient**2
      t = index + 1
      rate = training.learning_rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
      expected = rate * first / (np.sqrt(second) + 1e-8)
    elif training.optimizer is Optimizer.ADAGRAD:
      accumulated = accumulated + gradient**2
      expected = training.learning_rate * gradient / np.sqrt(accumulated)
    else:
      first = 0.875 * first + gradient
      expected = training.learning_rate * 0.999 ** (index / 2) * first
    change = before - after
    np.testing.assert_allclose(change, expected, atol=1e-4 * np.abs(expected).max() + 1e-7)
    # On the average far more exactly: to less than a step's decay of the rate.
    assert change @ expected / (expected @ expected) == pytest.approx(1, abs=1e-5)


# Learning.


def test_one_batch_is_learnt(trainings):
  trained = trainings('Adam')
  feed = trained.batch()
  fetches = [trained.graph.train, trained.graph.total_loss]
  found = [trained.session.run(fetches, feed)[1] for _ in range(100)]
  assert found[-1] < 0.5 * found[0]
