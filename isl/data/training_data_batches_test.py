"""Tests of training_data.py: batches."""

import threading

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from isl.core.channels import MAXPROJECT, ImageKey, input_stack, target_stack
from isl.core.experiment import Corruption, Geometry, Sampling
from isl.data.patches import Patches, dataset
from isl.images.fields_of_view import ImageSet


def _patches(size=40) -> Patches:
  """Of one random field of view, so many pixels long and wide; 3 z, 2 labels."""
  rng = np.random.default_rng(0)
  keys = [*(ImageKey(z, 'DIC') for z in range(3)), ImageKey(MAXPROJECT, 'DAPI_CONFOCAL')]
  images = {key: rng.integers(0, 65535, (size, size), np.uint16) for key in keys}
  return Patches(
    [[ImageSet(name='made', images=images)]],
    sampling=Sampling(
      crop_size=26, patch_stride=6, output_size=4, batch_size=5, num_threads=2, capacity=7
    ),
    geometry=Geometry(patch=20, output=4),
    inputs=input_stack(3),
    targets=target_stack(['DEAD_CONFOCAL', 'DAPI_CONFOCAL']),
    seed=0,
    augment=True,
    corruption=Corruption(multiplier_std=0.1, offset_std=0.1, noise_std=0.1),
  )


def _batches(patches, count: int, *arguments, one_shot=False) -> list[list[np.ndarray]]:
  with tf.Graph().as_default():
    batches = dataset(patches, *arguments)
    if one_shot:
      iterator = tf.data.make_one_shot_iterator(batches)
    else:
      iterator = tf.data.make_initializable_iterator(batches)
    batch = iterator.get_next()
    size = arguments[1]
    assert [t.shape.as_list() for t in batch] == [
      [size, *patches.input_shape],
      [size, *patches.target_shape],
      [size, patches.target_shape[-1]],
    ]
    with tf.Session() as session:
      if not one_shot:
        session.run(iterator.initializer)
      return [session.run(batch) for _ in range(count)]


@pytest.mark.parametrize('one_shot', [False, True])
@pytest.mark.parametrize(('batch_size', 'num_threads'), [(1, 1), (5, 2), (3, 16)])
@pytest.mark.parametrize('first', [0, 11])
def test_batches_are_the_patches_in_order(first, batch_size, num_threads, one_shot):
  patches = _patches()
  batches = _batches(patches, 4, first, batch_size, num_threads, one_shot=one_shot)
  assert [[a.dtype for a in batch] for batch in batches] == [[np.float32, np.uint8, np.float32]] * 4
  flat = [np.concatenate(part) for part in zip(*batches, strict=True)]
  for i in range(4 * batch_size):
    patch = patches.patch(first + i)
    assert patch.input_mask is None
    values = patch.input, patch.target_classes, patch.target_mask
    for part, value in zip(flat, values, strict=True):
      np.testing.assert_array_equal(part[i], value)


def test_first_patch_may_be_known_to_the_graph_alone():
  patches = _patches()
  with tf.Graph().as_default():
    step = tf.get_variable('step', initializer=np.int64(7))
    iterator = tf.data.make_initializable_iterator(dataset(patches, 3 * step.read_value(), 2, 1))
    inputs, _, _ = iterator.get_next()
    with tf.Session() as session:
      session.run(step.initializer)
      session.run(iterator.initializer)
      np.testing.assert_array_equal(session.run(inputs)[0], patches.patch(21).input)


@pytest.mark.parametrize('num_threads', [1, 3])
def test_so_many_threads_read(num_threads, monkeypatch):
  patches = _patches()
  read, reading, most = patches.patch, [], []
  together = threading.Barrier(num_threads)

  def patch(number):
    reading.append(number)
    most.append(len(reading))
    if number < num_threads:
      together.wait(timeout=60)  # Breaks, which is an error, unless as many threads come here.
    reading.remove(number)
    return read(number)

  monkeypatch.setattr(patches, 'patch', patch)
  _batches(patches, 3, 0, 2, num_threads)
  assert max(most) == num_threads


def test_what_goes_wrong_in_a_patch_is_said(monkeypatch):
  patches = _patches()
  problem = "field of view 'made' has vanished"

  def patch(number):
    raise ValueError(problem)

  monkeypatch.setattr(patches, 'patch', patch)
  with pytest.raises(tf.errors.InvalidArgumentError, match=problem):
    _batches(patches, 1, 0, 2, 1)


def test_images_are_not_in_the_graph():
  patches = _patches(size=1000)
  with tf.Graph().as_default() as graph:
    tf.data.make_initializable_iterator(dataset(patches, 0, 2, 2)).get_next()
    assert graph.as_graph_def().ByteSize() < 20_000
