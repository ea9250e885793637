"""Tests of flags whose effects do not change results, or show only below the command line.

The others' effects are observed where their mode is tested; that none is dead, in
flags_reach_the_experiment_test.py.
"""

from __future__ import annotations

import itertools
import pathlib
import threading

import pytest
import tensorflow.compat.v1 as tf
from absl import flags
from absl.testing import flagsaver

from isl import command_line, launch
from isl.checkpoints.checkpoint import Checkpoint, find_newest
from isl.data import shard_patches, shard_reading, shard_writing
from isl.data.patches import Patches
from isl.data.shard_writing import Cut
from isl.images import finding
from isl.inference import controller, field_labeling
from isl.training import train
from isl.training.start import find_start
from tests.support.program import (
  InferSetting,
  TrainSetting,
  make_fovea_shallow,
  run_in_process,
  write_field,
)

_WELLS = ('A1', 'A2', 'A3', 'A4', 'B1', 'B2', 'B3', 'B4')


@pytest.fixture(scope='module', autouse=True)
def shallow():
  """FOVEA with patches of 18 pixels."""
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    yield


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  """A folder of eight fields of view."""
  folder = tmp_path_factory.mktemp('images')
  write_field(folder, rows=60, columns=60, wells=_WELLS)
  return folder


@pytest.fixture(scope='module')
def shards(images, tmp_path_factory):
  """The flags that name two shards of them."""
  pattern = str(tmp_path_factory.mktemp('shards') / 's-%d')
  shard_writing.write_shards(finding.find_all([images]), pattern, 2, Cut(overlap=0))
  return (f'--dataset_pattern={pattern}', '--dataset_num_shards=2', '--train_on_full_dataset')


def _patches(*more):
  """The Experiment that further flags of a training make, and the patches that it would read."""
  given = ['--mode=TRAIN', *TrainSetting.network, '--base_directory=/nowhere', *more]
  with flagsaver.flagsaver():
    flags.FLAGS(['isl-launch', *given, '--loss_crop_size=60'])
    experiment = command_line.make_experiment()
  return experiment, train.training_patches(experiment, find_start(experiment), seed=1)


def _read(experiment, patches, count):
  """Reads so many batches of one patch, with the threads that are asked for."""
  with tf.Graph().as_default(), tf.Session() as session:
    batches = patches.dataset(0, 1, experiment.sampling.num_threads)
    iterator = tf.data.make_initializable_iterator(batches)
    batch = iterator.get_next()
    session.run(iterator.initializer)
    for _ in range(count):
      session.run(batch)


def _most_at_once(monkeypatch, owner, name, expected):
  """Makes a method wait until as many are in it as expected; notes how many there were."""
  inner, inside, most = getattr(owner, name), [], []
  together = threading.Barrier(expected)
  calls = itertools.count()

  def noting(*arguments):
    inside.append(arguments)
    most.append(len(inside))
    if next(calls) < expected:
      together.wait(timeout=60)  # Breaks, which is an error, unless as many come here.
    inside.remove(arguments)
    return inner(*arguments)

  monkeypatch.setattr(owner, name, noting)
  return most


@pytest.mark.parametrize('count', [1, 3])
def test_threads_that_make_batches(images, count, monkeypatch):
  experiment, patches = _patches(
    '--read_pngs',
    f'--dataset_train_directory={images}',
    f'--preprocess_shuffle_batch_num_threads={count}',
  )
  assert isinstance(patches, Patches)
  most = _most_at_once(monkeypatch, patches, 'patch', count)
  _read(experiment, patches, 4)
  assert max(most) == count


@pytest.mark.parametrize('count', [1, 3])
def test_examples_that_are_decoded_at_once(shards, count, monkeypatch):
  experiment, patches = _patches(*shards, f'--data_batch_size={count}')
  assert isinstance(patches, shard_patches.ShardPatches)
  most = _most_at_once(monkeypatch, patches, '_crop', count)
  _read(experiment, patches, 2)
  assert max(most) == count


def _order(monkeypatch, *more):
  """(shard, number in it) of the Examples of the first pass, as they are drawn."""
  experiment, patches = _patches(*more, '--data_batch_size=1')
  inner, drawn = patches._crop, []

  def noting(record, *number):
    drawn.append((record.path.name, record.number))
    return inner(record, *number)

  monkeypatch.setattr(patches, '_crop', noting)
  _read(experiment, patches, len(_WELLS))
  return drawn[: len(_WELLS)]


def test_capacity_and_threads_of_shards(shards, monkeypatch):
  pattern = shards[0].partition('=')[2]
  counts = {
    path.name: len(list(shard_reading.records(path)))
    for path in pathlib.Path(pattern).parent.iterdir()
  }
  assert all(count > 1 for count in counts.values())
  in_turn = [[(name, i) for i in range(count)] for name, count in counts.items()]
  one = _order(monkeypatch, *shards, '--data_batch_capacity=1', '--data_batch_num_threads=1')
  assert one in (in_turn[0] + in_turn[1], in_turn[1] + in_turn[0])
  both = _order(monkeypatch, *shards, '--data_batch_capacity=1', '--data_batch_num_threads=2')
  assert both != one and {name for name, _ in both[:3]} == counts.keys()
  # Within a shard, the order stays.
  for records in in_turn:
    assert [record for record in both if record in records] == records
  shuffled = _order(monkeypatch, *shards, '--data_batch_capacity=8', '--data_batch_num_threads=1')
  assert any([record for record in shuffled if record in records] != records for records in in_turn)


class _Infer(InferSetting):
  """Fields of view of 4 x 6 blocks of patches of 18 pixels."""

  rows, columns = 18 + 3 * 8, 18 + 5 * 8


@pytest.fixture(scope='module')
def infer(tmp_path_factory):
  return _Infer(launch.run, tmp_path_factory)


@pytest.mark.parametrize(
  ('flag', 'shapes'),
  [
    # At most 3 blocks: the four rows of blocks are in tiles of two, the six columns of three.
    ('--infer_size=3', {(1, 18 + 1 * 8, 18 + 2 * 8)}),
    ('--infer_size=16', {(1, 18 + 3 * 8, 18 + 5 * 8)}),
    ('--infer_method=PATCHES', {(field_labeling.PATCHES_AT_ONCE, 18, 18)}),
  ],
)
def test_what_is_computed_at_once(infer, flag, shapes, monkeypatch):
  inner, seen = controller.Labeler.__call__, set()

  def noting(labeler, inputs, labels):
    seen.add(inputs.shape[:3])
    return inner(labeler, inputs, labels)

  monkeypatch.setattr(controller.Labeler, '__call__', noting)
  infer.run(flag, '--infer_panels=', '--infer_channel_whitelist=DAPI_CONFOCAL')
  assert seen == shapes


def test_network_that_starts_from_nothing_is_as_asked_for(images, tmp_path):
  outcome = run_in_process(
    launch.run,
    '--model=FOVEA',
    '--base_depth=5',
    '--num_z_values=2',
    '--read_pngs',
    f'--dataset_train_directory={images}',
    '--loss_crop_size=60',
    '--preprocess_batch_size=2',
    '--number_of_steps=1',
    f'--base_directory={tmp_path}',
  )
  assert outcome.status == 0, outcome.stderr
  description = Checkpoint(find_newest(tmp_path / 'train')).describe()
  assert (description.model, description.global_step) == ('FOVEA', 1)
  assert 5 in description.base_depths
  assert description.inputs.z_values == (0.0, 1.0)


@pytest.mark.parametrize(
  'flag',
  [
    *('--target_channels=GFP', '--input_channels=GFP', '--norestore_logits', '--norestore_inputs'),
    *('--sync_replicas', '--optimizer=MOMENTUM', '--random_seed=3', '--number_of_steps=7'),
  ],
)
def test_parameter_server_takes_the_flags_of_its_training(flag):
  given = ['--mode=PS', '--ps_hosts=a:1', '--worker_hosts=b:1', flag]
  with flagsaver.flagsaver():
    flags.FLAGS(['isl-launch', *given])
    cluster = command_line.make_experiment().cluster
  assert cluster is not None and cluster.is_ps
