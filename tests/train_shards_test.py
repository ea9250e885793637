"""Tests of TRAIN and the evaluations from shards: the same numbers as from folders, few errors."""

import pathlib

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from isl import command_line, launch
from isl.data import shard_examples, shard_reading, shard_writing
from isl.data.shard_examples import Place
from isl.data.shard_writing import Cut
from isl.images import finding, png_io
from isl.training import train
from isl.training.graph import TrainingGraph
from isl.training.start import find_start
from tests.support.program import (
  SHALLOW,
  InferRun,
  Outcome,
  TrainRun,
  TrainSetting,
  assert_same_values,
  events,
  files_in,
  make_fovea_shallow,
  run_in_process,
  write_field,
)

_CHANNELS = 'DAPI_CONFOCAL,MAP2_CONFOCAL,NFH_CONFOCAL'
_MARGIN = SHALLOW.margin
_SIDE = 68


class _Setting:
  """Shards of which no crop touches the padding, and their field of view in a folder.

  Attributes:
    images: folder of the field of view.
    pattern: pattern of the shards, of which the first has the field of view, as the tile of a
      larger one.
    checkpoint: folder of a narrow FOVEA with random weights.
  """

  def __init__(self, tmp_path_factory: pytest.TempPathFactory):
    from isl.programs import random_checkpoint

    folder = tmp_path_factory.mktemp('shards')
    self.images, self.checkpoint = folder / 'images', folder / 'checkpoint'
    write_field(self.images, rows=_SIDE, columns=_SIDE)
    random_checkpoint.write_random_checkpoint(
      self.checkpoint,
      model='FOVEA',
      base_depth=6,
      num_z_values=3,
      target_channels=_CHANNELS.split(','),
    )
    self.pattern = str(folder / 's-%d')
    (field,) = finding.find_all([self.images])
    shard_writing.write_shards([field], self.pattern, 2, Cut(overlap=0))
    full = max((folder / 's-0', folder / 's-1'), key=lambda path: path.stat().st_size)
    (tile,) = (record.decode() for record in shard_reading.records(full))
    inner = Place(
      field_size=(1000, 1000),
      offset=(300 + _MARGIN, 200 + _MARGIN),
      size=(_SIDE - 2 * _MARGIN, _SIDE - 2 * _MARGIN),
      image_offset=(300, 200),
      image_size=(_SIDE, _SIDE),
    )
    self._write(folder / 's-0', tile, inner)
    self._write(folder / 's-1', tile, tile.place)
    self.folder = folder

  def _write(self, path: pathlib.Path, tile: shard_examples.ShardTile, place: Place) -> None:
    import tensorflow.compat.v1 as tf

    assert tile.files.percentiles is not None
    data = shard_examples.encode(
      'field',
      place,
      {
        key: png_io.encode_plain_png(np.asarray(source.read()), 0)
        for key, source in tile.files.sources.items()
      },
      percentiles=tile.files.percentiles,
      pixel_size=None,
      record=(0, 1),
    )
    with tf.io.TFRecordWriter(str(path)) as writer:
      writer.write(data)

  def shards(self, pattern: str | None = None, count: int = 2) -> list[str]:
    """The flags that name them."""
    return [f'--dataset_pattern={pattern or self.pattern}', f'--dataset_num_shards={count}']


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    yield _Setting(tmp_path_factory)


def _evaluate(setting: _Setting, base: pathlib.Path, *flags: str) -> Outcome:
  return run_in_process(
    launch.run,
    '--mode=EVAL_EVAL',
    '--eval_once',
    f'--restore_directory={setting.checkpoint}',
    f'--base_directory={base}',
    '--loss_patch_stride=50',
    f'--loss_crop_size={_SIDE}',
    '--metric_num_examples=6',
    '--infer_size=4',
    '--stitch_crop_size=34',
    *flags,
  )


def test_evaluated_loss_is_that_of_the_folder(setting, tmp_path):
  """The crop is the whole image, so patches are the same ones: four, then the first again."""
  folder = ['--read_pngs', f'--dataset_eval_directory={setting.images}']
  losses = []
  for name, source in (('shards', setting.shards(count=1)), ('folder', folder)):
    # One that is stretched, and a range: of tiles, these are of the whole field of view.
    more = ['--stretch_targets=MAP2_CONFOCAL', '--input_range=auto']
    outcome = _evaluate(setting, tmp_path / name, '--metric=LOSS', *source, *more)
    assert outcome.status == 0, outcome.stderr
    losses.append(events(tmp_path / name / 'eval_eval_loss_CROSS_ENTROPY'))
  assert losses[0].keys() == losses[1].keys()
  assert len(losses[0]) == 3 + 3 + 3
  for tag, value in losses[0].items():
    assert value == pytest.approx(losses[1][tag], rel=1e-5)


def _experiment(*sources: str):
  given = [
    *TrainSetting.network,
    '--mode=TRAIN',
    f'--target_channels={_CHANNELS}',
    '--base_directory=/nowhere',
    '--loss_crop_size=60',
    '--preprocess_batch_size=2',
  ]
  with flagsaver.flagsaver():
    flags.FLAGS(['isl-launch', *given, *sources])
    return command_line.make_experiment()


def _begin(*sources: str):
  """A training's graph, and its session before the first step."""
  experiment = _experiment(*sources)
  return train.make_session(experiment, find_start(experiment), seed=0)


@pytest.fixture(scope='module')
def begun(setting):
  graph, session = _begin(*setting.shards())
  with session:
    yield graph, session


def test_step_of_a_training_is_that_of_the_folder(setting, begun):
  """The same patches, whose mask is 1, give the same losses and gradients."""
  of_folder = _begin('--read_pngs', f'--dataset_train_directory={setting.images}')
  found = []
  for graph, session in (begun, of_folder):
    rng = np.random.default_rng(0)
    values = [
      rng.uniform(0, 1, t.shape).astype(np.float32)
      if t.dtype.is_floating
      else rng.integers(0, 256, t.shape, np.uint8)
      for t in graph.batch[:2]
    ]
    ones = [np.ones(t.shape, np.float32) for t in graph.batch[2:]]
    assert len(ones) == (1 if graph is of_folder[0] else 2)
    feed = dict(zip(graph.batch, [*values, *ones], strict=True))
    found.append(session.run([graph.loss_by_head, *graph.gradients], feed))
  of_folder[1].close()
  for ours, theirs in zip(*found, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())
  np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)


def test_mask_of_the_padding_reaches_the_network(begun):
  """A network sees whether it is dark there, or whether nothing is known."""
  graph, session = begun
  assert isinstance(graph, TrainingGraph)
  batch = session.run(graph.batch)
  # Not 0 everywhere: batch norm takes away what is the same everywhere.
  half = np.ones_like(batch[3])
  half[:, :10] = 0
  losses = [
    session.run(graph.loss_by_head, dict(zip(graph.batch, [*batch[:3], mask], strict=True)))
    for mask in (np.ones_like(half), half)
  ]
  assert not np.allclose(losses[0], losses[1])


def _train(base: pathlib.Path, *flags: str) -> Outcome:
  return run_in_process(
    launch.run,
    '--mode=TRAIN',
    *TrainSetting.network,
    f'--target_channels={_CHANNELS}',
    f'--base_directory={base}',
    '--loss_crop_size=60',
    '--preprocess_batch_size=2',
    '--preprocess_batch_capacity=4',
    '--random_seed=1',
    *flags,
  )


def test_training_goes_on_where_it_was(setting, tmp_path):
  """With the same seed, another training is the same up to where this one was stopped."""
  more = [*setting.shards(), '--tensorcheck_enable_checks', '--augment_noise_std=0.1']
  runs = []
  for name, steps in (('one', 2), ('other', 2), ('one', 4)):
    outcome = _train(tmp_path / name, *more, f'--number_of_steps={steps}')
    assert outcome.status == 0 and not outcome.error_lines, outcome.stderr
    runs.append(TrainRun(tmp_path / name / 'train', outcome))
  one, other, _ = runs
  assert one.steps == [0, 2, 4]
  assert 'crops' in {tag for _, tag in events(one.folder)}
  assert_same_values(one.values(2), other.values(2))


def test_evaluation_shards_are_trained_on_only_if_asked_for(setting, tmp_path):
  """The first of eight is held out: it is missing here."""
  only = tmp_path / 's-1'
  only.write_bytes((setting.folder / 's-1').read_bytes())
  flags = setting.shards(str(tmp_path / 's-%d'))
  outcome = _train(tmp_path / 'base', *flags, '--number_of_steps=1')
  assert outcome.status == 0, outcome.stderr
  outcome = _train(tmp_path / 'other', *flags, '--train_on_full_dataset')
  assert "1 of 2 shards are missing, the first is '" in outcome.error and "s-0'" in outcome.error


def test_panels_and_predictions_of_tiles(setting, tmp_path):
  outcome = _evaluate(setting, tmp_path, '--metric=STITCH', *setting.shards())
  assert outcome.status == 0, outcome.stderr
  tags = {tag for _, tag in events(tmp_path / 'eval_eval_stitch')}
  assert tags == {'target_error_panel', 'input_error_panel'}
  for _ in range(2):
    outcome = _evaluate(setting, tmp_path, '--metric=INFER_FULL', *setting.shards())
    assert outcome.status == 0, outcome.stderr
  # Found by what is in the shard.
  assert 'is done already' in outcome.stderr
  run = InferRun(next((tmp_path / 'eval_eval_infer').iterdir()), outcome)
  name = f'field,tile-{300 + _MARGIN}-{200 + _MARGIN}'
  assert run.record_of(name)['image_size'] == [_SIDE, _SIDE]
  assert len(run.metrics) == 3


def test_dry_run_says_what_is_in_the_shards(setting, tmp_path):
  outcome = _evaluate(setting, tmp_path, '--metric=INFER_FULL', *setting.shards(), '--dry_run')
  assert outcome.status == 0, outcome.stderr
  assert f'size: {_SIDE} rows x {_SIDE} columns' in outcome.stdout
  assert str(setting.folder / 's-0') in outcome.stdout
  assert not files_in(tmp_path)


@pytest.mark.parametrize(
  ('flags', 'what'),
  [
    (['--dataset_num_shards=9'], '6 of 7 shards are missing, the first is'),
    (['--dataset_pattern=shard'], '--dataset_pattern must have one %d'),
    (['--dataset_pattern=%d-%d'], '--dataset_pattern must have one %d'),
    (['--dataset_num_shards=1'], '--dataset_num_shards 1 leaves none for --mode TRAIN'),
    (['--nois_recordio'], '--is_recordio must be true'),
    (['--loss_crop_size=500'], 'too small for --loss_crop_size 500; expected at most 78'),
    (['--num_z_values=3', '--input_channels=GFP'], 'has no image of GFP'),
    (['--target_channels=DAPI_CONFOCAL,GFP', '--stretch_targets=GFP2'], 'does not predict'),
  ],
)
def test_bad_flags_are_said_in_a_line(setting, tmp_path, flags, what):
  outcome = _train(tmp_path, *setting.shards(), *flags)
  assert what in outcome.error
  assert not files_in(tmp_path)


def test_damage_is_said_in_a_line_and_left_out_if_asked_for(setting, tmp_path):
  whole = (setting.folder / 's-1').read_bytes()
  kinds = {'cut': [whole[:-9]], 'empty': [b''], 'both': [whole[:-9], b'']}
  shards, more = {}, {}
  for kind, damaged in kinds.items():
    (tmp_path / kind).mkdir()
    contents = [*damaged, whole]
    # The first of eight is held out: it may be missing.
    shards[kind] = [tmp_path / kind / f's-{i + 1}' for i in range(len(contents))]
    for path, data in zip(shards[kind], contents, strict=True):
      path.write_bytes(data)
    more[kind] = setting.shards(str(tmp_path / kind / 's-%d'), len(contents) + 1)
    # Of several shards, so that it is read in whatever order.
    more[kind] += ['--number_of_steps=3', '--data_batch_num_threads=2']
  for kind in ('cut', 'empty'):
    outcome = _train(tmp_path / 'one', *more[kind])
    assert f"isl-launch: shard '{shards[kind][0]}' is " in outcome.error
  outcome = _train(tmp_path / 'other', *more['both'], '--skip_corrupt_shards')
  assert outcome.status == 0, outcome.stderr
  left_out = [x for x in outcome.stderr.splitlines() if '--skip_corrupt_shards left out' in x]
  for path in shards['both'][:-1]:
    (line,) = (x for x in left_out if str(path) in x)
    assert 'left out all after 0 examples' in line


def test_damage_behind_the_first_example_ends_a_training(setting, tmp_path):
  """It shows only when steps have been done: the error is not TensorFlow's."""
  images = tmp_path / 'images'
  wells = [f'A{i}' for i in range(4)]
  write_field(images, rows=60, columns=60, wells=wells)
  found = finding.find_all([images])
  (path,) = shard_writing.write_shards(found, str(tmp_path / 's-%d'), 1, Cut(overlap=0))
  path.write_bytes(path.read_bytes()[:-20])
  flags = [*setting.shards(str(tmp_path / 's-%d'), 1), '--train_on_full_dataset']
  outcome = _train(tmp_path / 'base', *flags, '--data_batch_capacity=1')
  assert f"isl-launch: shard '{path}' is damaged or cut off after 3 examples" in outcome.error
  outcome = _train(tmp_path / 'base', *flags, '--skip_corrupt_shards', '--number_of_steps=30')
  assert outcome.status == 0, outcome.stderr
  assert 'left out all after 3 examples' in outcome.stderr


@pytest.mark.soak
def test_a_hundred_shards_whose_bits_are_flipped(setting, tmp_path):
  """Each ends a training with the line that names it, or is left out with one."""
  data = (setting.folder / 's-1').read_bytes()
  (tmp_path / 's-2').write_bytes(data)
  flags = [*setting.shards(str(tmp_path / 's-%d'), 3), '--number_of_steps=2']
  rng = np.random.default_rng(0)
  path = tmp_path / 's-1'
  for i in range(100):
    damaged = bytearray(data)
    # A third of them in the length and its checksum.
    damaged[int(rng.integers(12 if i % 3 == 0 else len(data)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(damaged)
    skip = i % 2 == 0
    outcome = _train(tmp_path / str(i), *flags, *['--skip_corrupt_shards'] * skip)
    if skip:
      assert outcome.status == 0, outcome.stderr
      assert 'Traceback' not in outcome.stderr
      assert str(path) in outcome.stderr
    else:
      assert str(path) in outcome.error
