"""Tests of field_labeling.py: which parts reach which sinks, beside a network that is made up."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import pytest

from isl.checkpoints.checkpoint import Checkpoint
from isl.core.channels import input_stack, target_stack
from isl.core.experiment import Inference, InferMethod, Padding, Panel, PredictionFormat
from isl.core.parts import Part
from isl.core.statistic import Statistic
from isl.data import data_provider
from isl.inference import field_labeling
from isl.inference.controller import HeadGroup
from isl.inference.field_labeling import FieldLabeler
from isl.programs import random_checkpoint
from tests.support.program import SHALLOW, make_fovea_shallow, original_fields, write_field

_MARGIN = SHALLOW.margin
_INPUTS = input_stack(2)
# DEAD_CONFOCAL is not among the images.
_TARGETS = target_stack(('NFH_CONFOCAL', 'DEAD_CONFOCAL', 'NEURITE_CONFOCAL'))
_SETTINGS = Inference(
  crop_size=0,
  tile_size=3,
  method=InferMethod.DENSE,
  panels=(),
  simplify_panels=True,
  statistics=(),
  channels=_TARGETS.channels,
  padding=Padding.NONE,
  prediction_format=PredictionFormat.PNG,
  calibrate=False,
  calibrated=False,
  overwrite=False,
)


@pytest.fixture(scope='module', autouse=True)
def shallow():
  """Leaves FOVEA a few modules."""
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    yield


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  folder = tmp_path_factory.mktemp('checkpoint')
  prefix = random_checkpoint.write_random_checkpoint(
    folder, model='FOVEA', base_depth=5, num_z_values=2
  )
  return Checkpoint(prefix)


@pytest.fixture(scope='module')
def field_of_view(tmp_path_factory):
  images = tmp_path_factory.mktemp('images')
  write_field(images, rows=79, columns=93, depths=3)
  (field,) = original_fields(images)
  return field.read()


class _Network:
  """Stands in for the Labeler: all that it computes of a pixel is the true class."""

  made: ClassVar[list[_Network]] = []

  def __init__(self, plan, checkpoint, *, groups, batch, blocks):
    del plan, checkpoint
    self.groups: tuple[HeadGroup, ...] = tuple(groups)
    self.batch = batch
    self.blocks = blocks
    self.is_open = True
    self.made.append(self)

  def __call__(self, inputs, true_classes):
    side = [SHALLOW.input_size(n) for n in self.blocks]
    assert inputs.shape == (self.batch, *side, 2, 1, 2)
    assert all(classes.dtype == np.uint8 for classes in true_classes)
    return [
      {statistic: classes.astype(np.float32) for statistic in group.statistics}
      for group, classes in zip(self.groups, true_classes, strict=True)
    ]

  def close(self):
    self.is_open = False


@pytest.fixture
def networks(monkeypatch):
  """Lists the networks that were made."""
  monkeypatch.setattr(_Network, 'made', [])
  monkeypatch.setattr(field_labeling, 'Labeler', _Network)
  return _Network.made


class _Parts:
  """A sink that keeps what it takes."""

  def __init__(self, keys, *statistics):
    self.keys = keys
    self.statistics = statistics
    self.parts: list[Part] = []

  def add(self, part: Part) -> None:
    assert part.key in self.keys
    assert set(self.statistics) <= set(part.predicted)
    self.parts.append(part)

  def image(self, key, size, values):
    """What the parts have of an image; they cover each pixel once, with nan where none does."""
    image = np.full(size, np.nan)
    for part in self.parts:
      if part.key == key:
        assert np.isnan(image[part.rows, part.columns]).all()
        image[part.rows, part.columns] = values(part)
    return image


def _labeler(checkpoint, **changed):
  plan = checkpoint.describe().plan()
  return FieldLabeler(checkpoint, plan, dataclasses.replace(_SETTINGS, **changed))


@pytest.mark.parametrize('padding', Padding)
@pytest.mark.parametrize('method', InferMethod)
def test_parts_hold_the_truth_whose_classes_the_network_was_given(
  networks, checkpoint, field_of_view, padding, method
):
  labeler = _labeler(checkpoint, padding=padding, method=method)
  grid = labeler.grid(field_of_view.name, field_of_view.size)
  sinks = [_Parts(stack.keys, Statistic.CROSS_ENTROPY) for stack in (_TARGETS, _INPUTS)]
  labeler.compute(field_of_view, sinks, None)
  assert len(networks) == 1
  window = [slice(grid.offset, grid.offset + n) for n in grid.output_size]
  known = {key: key.channel != 'DEAD_CONFOCAL' for key in _TARGETS.keys}
  for sink, crop in zip(sinks, (data_provider.target_crop, data_provider.input_crop), strict=True):
    stack = _TARGETS if sink is sinks[0] else _INPUTS
    images = crop(field_of_view, stack, *window)[..., 0].reshape(*grid.output_size, -1)
    for i, key in enumerate(stack.keys):
      classes = sink.image(key, grid.output_size, lambda p: p.predicted[Statistic.CROSS_ENTROPY])
      # In single precision, as the targets of training are rounded.
      np.testing.assert_array_equal(classes, np.rint(images[..., i] * np.float32(255)))
      if known.get(key, True):
        truth = sink.image(key, grid.output_size, lambda p: p.truth)
        np.testing.assert_array_equal(truth, images[..., i])
      else:
        assert not classes.any()
        assert all(part.truth is None for part in sink.parts if part.key == key)


def test_parts_come_row_by_row_from_left_to_right(networks, checkpoint, field_of_view):
  del networks
  sink = _Parts(_TARGETS.keys, Statistic.MEDIAN)
  _labeler(checkpoint, padding=Padding.REFLECT).compute(field_of_view, [sink], None)
  for key in _TARGETS.keys:
    places = [(part.rows.start, part.columns.start) for part in sink.parts if part.key == key]
    assert places == sorted(places)
    assert len(places) > 4


def test_the_network_computes_what_sinks_need_of_their_images(networks, checkpoint, field_of_view):
  labeler = _labeler(checkpoint)
  labels = _Parts(_TARGETS.keys, Statistic.MEDIAN, Statistic.ENTROPY)
  one = _Parts(_TARGETS.keys[:1], Statistic.MODE, Statistic.MEDIAN)
  light = _Parts(_INPUTS.keys, Statistic.MEAN)
  labeler.compute(field_of_view, [labels, one, light], None)
  (network,) = networks
  assert [group.heads for group in network.groups] == [_TARGETS.keys, _INPUTS.keys]
  needed = {Statistic.MEDIAN, Statistic.ENTROPY, Statistic.MODE}
  assert [set(group.statistics) for group in network.groups] == [needed, {Statistic.MEAN}]
  assert {part.key for part in one.parts} == {_TARGETS.keys[0]}
  assert {part.key for part in labels.parts} == set(_TARGETS.keys)
  # The same network for the same needs, another for others.
  labeler.compute(field_of_view, [light, one, labels], None)
  assert networks == [network]
  labeler.compute(field_of_view, [light], None)
  assert [group.heads for group in networks[1].groups] == [_INPUTS.keys]
  assert [made.is_open for made in networks] == [False, True]
  labeler.close()
  assert not networks[1].is_open


def test_stacks_of_panels(checkpoint):
  labeler = _labeler(checkpoint)
  assert labeler.stack(Panel.TARGET) == _TARGETS
  assert labeler.stack(Panel.INPUT) == _INPUTS
