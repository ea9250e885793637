"""Tests of summary_hook.py: what TensorBoard's own reader finds, and full disks."""

from __future__ import annotations

import contextlib
import resource
import types
from collections import Counter

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from absl import flags, logging
from absl.testing import flagsaver

from isl import command_line
from isl.core.channels import input_stack, target_stack
from isl.core.statistic import Statistic
from isl.report import visualize
from isl.report.event_files import SummaryWriter
from isl.report.visualize import Layout, Target
from isl.training import summary_hook, train
from isl.training.start import find_start
from isl.training.summary_hook import SummaryHook
from tests.support.program import (
  SHALLOW,
  event_picture,
  events,
  make_fovea_shallow,
  panel_boxes,
  write_field,
)

_BATCH = 5
_NUM_Z_VALUES = 3
_PATCH, _CROP = SHALLOW.patch, 50
_SECONDS = 180.0
_KEYS = (*input_stack(_NUM_Z_VALUES).keys, *target_stack().keys)
_SCALARS = {'total_loss', 'loss/input', 'loss/target', *(f'loss/{key}' for key in _KEYS)}
_PICTURES = {'crops', 'patches', 'input_error_panel', 'target_error_panel'}


class _Clock:
  """Stands in for the module `time`: goes on when it is told to."""

  def __init__(self) -> None:
    self.now = 1000.0

  def monotonic(self) -> float:
    return self.now


class _Training:
  """A small network in training, of which hooks can be tried one after the other."""

  def __init__(self, tmp_path_factory):
    images = tmp_path_factory.mktemp('images')
    write_field(images, rows=60, columns=70)
    with flagsaver.flagsaver():
      flags.FLAGS(
        [
          'isl-launch',
          '--mode=TRAIN',
          '--read_pngs',
          f'--dataset_train_directory={images}',
          f'--base_directory={tmp_path_factory.mktemp("base")}',
          '--model=FOVEA',
          '--base_depth=3',
          f'--num_z_values={_NUM_Z_VALUES}',
          f'--preprocess_batch_size={_BATCH}',
          f'--loss_crop_size={_CROP}',
        ]
      )
      experiment = command_line.make_experiment()
    start = find_start(experiment)
    self.patches = train.training_patches(experiment, start, seed=0)
    self.graph, self.session = train.make_session(experiment, start, seed=0)

  def hook(self, folder):
    """Makes a hook whose session has begun."""
    with self.session.graph.as_default():
      hook = SummaryHook(folder, _SECONDS, self.graph, self.patches)
    hook.after_create_session(self.session, None)
    return hook

  def step(self, hook, after=contextlib.nullcontext):
    """Does a step; runs the hook's part after it in a context; gives what the hook asked for."""
    asked = hook.before_run(None)
    fetches = asked.fetches if asked else {}
    _, results = self.session.run([self.graph.train, fetches])
    values = tf.train.SessionRunValues(results=results, options=None, run_metadata=None)
    with after():
      hook.after_run(None, values)
    return results


@pytest.fixture(scope='module')
def training(tmp_path_factory):
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    made = _Training(tmp_path_factory)
  yield made
  made.session.close()


@pytest.fixture
def clock(monkeypatch):
  clock = _Clock()
  stand_in = types.SimpleNamespace(monotonic=clock.monotonic)
  monkeypatch.setattr(summary_hook, 'time', stand_in)
  return clock


@pytest.fixture
def logged(monkeypatch):
  """The errors that are logged."""
  lines: list[str] = []
  monkeypatch.setattr(logging, 'error', lambda text, *values: lines.append(text % values))
  return lines


@pytest.fixture(scope='module')
def written(training, tmp_path_factory):
  """(the events of a folder by tag, what they were made from), of one step."""
  folder = tmp_path_factory.mktemp('events')
  hook = training.hook(folder)
  assert not training.step(hook)
  found = training.step(hook)
  hook.end(training.session)
  found_events = events(folder)
  assert {step for step, _ in found_events} == {found['step']}
  return {tag: value for (_, tag), value in found_events.items()}, found


def test_tags(training, written):
  values, _ = written
  weights = training.graph.variables.parts[0].packing.shapes
  modules = [module.name for module in training.graph.plan.modules()]
  histograms = {f'logits/{key}' for key in _KEYS}
  histograms |= {f'activations/{module}' for module in modules}
  histograms |= {f'{kind}/{name}' for kind in ('variables', 'gradients') for name in weights}
  assert values.keys() == _SCALARS | histograms | _PICTURES
  assert all(values[tag].shape[1:] == (3,) for tag in histograms)


def test_curves_are_the_losses(written):
  values, found = written
  by_head = [float(values[f'loss/{key}']) for key in _KEYS]
  np.testing.assert_array_equal(by_head, found['loss_by_head'])
  of_inputs, of_targets = by_head[:_NUM_Z_VALUES], by_head[_NUM_Z_VALUES:]
  assert values['loss/input'] == pytest.approx(np.mean(of_inputs))
  assert values['loss/target'] == pytest.approx(np.mean(of_targets))
  assert values['total_loss'] == pytest.approx((np.mean(of_inputs) + np.mean(of_targets)) / 2)


def test_histograms_count_every_number(training, written):
  values, found = written
  packing = training.graph.variables.parts[0].packing
  for kind, vector in (('variables', found['weights'][0]), ('gradients', found['gradients'][0])):
    for name, array in packing.unpack_array(vector).items():
      buckets = values[f'{kind}/{name}']
      assert buckets[:, 2].sum() == array.size, name
      ends = [buckets[0, 0], buckets[-1, 1]]
      np.testing.assert_allclose(ends, [array.min(), array.max()], rtol=1e-5)
  for key, logits in zip(_KEYS, found['logits'], strict=True):
    buckets = values[f'logits/{key}']
    assert buckets[:, 2].sum() == logits.size == _BATCH * 8 * 8 * 256
    np.testing.assert_allclose([buckets[0, 0], buckets[-1, 1]], [logits.min(), logits.max()], 1e-5)
  for module in training.graph.plan.modules():
    size = training.graph.activations[module.name].shape.num_elements()
    assert values[f'activations/{module.name}'][:, 2].sum() == pytest.approx(size)


def test_crops_are_what_patches_are_cut_from(training, written):
  values, found = written
  picture = event_picture(values['crops'])
  labels = np.flatnonzero(found['masks'][_NUM_Z_VALUES:, 0])
  # Three that are recorded, and the one that is made of two of them.
  assert len(labels) == 4
  assert picture.shape == (_CROP + 8, 5 * (_CROP + 8), 3)
  light, *drawn = (box[..., 0].astype(int) for box in panel_boxes(picture, 5))
  # A crop has room for one patch, at its top left.
  assert training.patches.per_crop == 1
  inputs = visualize.to_uint16(found['inputs'][0, ..., _NUM_Z_VALUES // 2])
  np.testing.assert_array_equal(light[:_PATCH, :_PATCH], inputs >> 8)
  assert light[_PATCH:].any()
  centre = slice((_PATCH - 8) // 2, (_PATCH + 8) // 2)
  classes = found['classes'][_NUM_Z_VALUES:].reshape(-1, _BATCH, 8, 8)[:, 0]
  for label, box in zip(labels, drawn, strict=True):
    np.testing.assert_allclose(box[centre, centre], classes[label], atol=1)


def test_patches_are_the_input_at_the_middle_depth(written):
  values, found = written
  picture = event_picture(values['patches'])
  expected = visualize.grey_boxes(found['inputs'][..., _NUM_Z_VALUES // 2])
  assert picture.shape == (_PATCH + 8, _BATCH * (_PATCH + 8), 3)
  np.testing.assert_array_equal(picture, expected >> 8)


@pytest.mark.parametrize(
  ('tag', 'heads'),
  [
    ('input_error_panel', slice(0, _NUM_Z_VALUES)),
    ('target_error_panel', slice(_NUM_Z_VALUES, None)),
  ],
)
def test_panels_show_the_patches(written, tag, heads):
  values, found = written
  picture = event_picture(values[tag])
  keys = _KEYS[heads]
  # Five patches, in two rows of three.
  mosaic = (2 * 8, 3 * 8)
  assert picture.shape[:2] == visualize.panel_size(len(keys), *mosaic, Layout.STITCH)
  columns = [column.image for column in Layout.STITCH.columns]
  classes, masks = (found[name][heads].reshape(-1, _BATCH, 8, 8) for name in ('classes', 'masks'))
  p = np.exp(found['logits'][heads].astype(float))
  p /= p.sum(axis=-1, keepdims=True)
  shown = {
    Target.TRUTH: classes / 255,
    Target.MASK: masks,
    Statistic.MEAN: (p @ np.arange(256) / 255).reshape(classes.shape),
    Statistic.ENTROPY: (-(p * np.log(p + 1e-7)).sum(axis=-1) / np.log(256)).reshape(classes.shape),
  }
  for head, strip in enumerate(np.split(picture, len(keys))):
    boxes = panel_boxes(strip, len(columns))
    for name, images in shown.items():
      (box,) = (
        box
        for column, box in zip(Layout.STITCH.columns, boxes, strict=True)
        if column.image is name and column.draw is visualize.as_is
      )
      expected = 255 * visualize.mosaic(images[head])
      # Eight bits hold the classes themselves.
      allowed = 1e-4 if isinstance(name, Target) else 1.1
      assert np.abs(box[..., 0].astype(float) - expected).max() <= allowed, (head, name)


def test_every_so_many_seconds_from_the_second_step_on(training, clock, tmp_path):
  hook = training.hook(tmp_path)
  due = []
  for seconds in (0, 0, 0, _SECONDS - 1, 1, 0, 2 * _SECONDS, _SECONDS - 1):
    clock.now += seconds
    due.append(bool(training.step(hook)))
  assert due == [False, True, False, False, True, False, True, False]
  hook.end(training.session)
  per_step = Counter(step for step, _ in events(tmp_path))
  assert len(per_step) == 3
  assert len(set(per_step.values())) == 1


@contextlib.contextmanager
def _full_disk(size=20_000):
  """No file grows beyond so many bytes."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_full_disk_does_not_stop_the_steps(training, clock, logged, tmp_path):
  """A full disk is logged once a minute; when there is room again, summaries are written again."""
  hook = training.hook(tmp_path)
  training.step(hook)
  complaints = []
  for _ in range(4):
    step = training.step(hook, _full_disk)['step']
    complaints.append(len(logged))
    clock.now += _SECONDS
  assert complaints == [1, 2, 3, 4]
  assert step == training.session.run(training.graph.global_step)
  for line in logged:
    assert 'training goes on' in line
    assert str(tmp_path) in line
  found = [training.step(hook)['step']]
  clock.now += _SECONDS
  found.append(training.step(hook)['step'])
  hook.end(training.session)
  tags = list(events(tmp_path))
  for step in found:
    assert {tag for n, tag in tags if n == step} >= _SCALARS | _PICTURES
  # What was cut short, and what came after it.
  assert len(list(tmp_path.iterdir())) == 1 + 3 + 1


def test_complaints_are_a_minute_apart(training, clock, logged, monkeypatch, tmp_path):
  hook = training.hook(tmp_path)
  hook._seconds = 10.0
  training.step(hook)

  def fails(*_):
    raise OSError('no room')

  with monkeypatch.context() as patch:
    patch.setattr(SummaryWriter, 'scalars', fails)
    counts = []
    for _ in range(13):
      assert training.step(hook)
      counts.append(len(logged))
      clock.now += 10
  assert counts == [1] * 6 + [2] * 6 + [3]
  assert logged[0] == 'Summaries could not be written, training goes on without: no room'
  hook.end(training.session)
  assert len(logged) == 3
