"""Tests of infer.py through the command line: which files a run writes, from what, and when."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from absl import logging

from isl import launch
from isl.checkpoints import watching
from isl.core.channels import MAXPROJECT
from isl.images import png_io
from isl.programs import random_checkpoint
from tests.support.program import (
  PUBLISHED,
  InferRun,
  InferSetting,
  files_in,
  image_name,
  make_fovea_shallow,
  panel_boxes,
  run_in_process,
  write_field,
)

_SIZE, _MARGIN = InferSetting.size, InferSetting.margin


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    yield InferSetting(launch.run, tmp_path_factory)


@pytest.mark.parametrize('panel', ['TARGET', 'INPUT'])
def test_panel_asked_for(setting, panel):
  run = setting.run(f'--infer_panels={panel}', '--infer_channel_whitelist=DAPI_CONFOCAL')
  drawn = [name for name in files_in(run.folder) if 'panel' in name]
  assert drawn == [f'{panel.lower()}_error_panel.png']
  # A label, or the stack that the network reads.
  count = {'TARGET': 1, 'INPUT': 3}[panel]
  simplified = (count * (_SIZE[0] + 8), 3 * (_SIZE[1] + 8), 3)
  assert run.panel(panel.lower()).shape == simplified


def test_no_statistics_and_no_panels_leave_the_metrics(setting):
  run = setting.run('--infer_statistics=', '--infer_panels=')
  assert {'metrics.csv', 'run.json', 'field.json'} <= files_in(run.folder)
  assert not [
    name
    for name in files_in(run.folder)
    if 'panel' in name or ('predict' in name and 'thumb' not in name)
  ]
  assert len(run.metrics) == 4


def test_8_bit_images_are_read(setting):
  images = setting.new_folder()
  (field,) = write_field(
    images, rows=setting.rows, columns=setting.columns, bits=8, dialect=PUBLISHED
  )
  run = setting.run('--infer_channel_whitelist=DAPI_CONFOCAL', images=images)
  name = image_name('A4', MAXPROJECT, 'DAPI_CONFOCAL', dialect=PUBLISHED)
  truth = (
    png_io.read_png(images / name)[*(slice(_MARGIN, _MARGIN + n) for n in _SIZE)].astype(int) * 257
  )
  _, drawn, _ = panel_boxes(run.panel('target'), 3)
  assert np.abs(drawn - truth[..., np.newaxis]).max() <= 1
  assert run.prediction(field, 'DAPI_CONFOCAL').shape == _SIZE


def test_several_fields_of_view(setting):
  images = setting.new_folder()
  fields = write_field(images, rows=34, columns=26, wells=('B2', 'A1'))
  # The next is of another size, which needs a network for other tiles.
  fields += write_field(images, rows=18, columns=34, wells=('C3',), channels=())
  run = setting.run('--infer_channel_whitelist=DAPI_CONFOCAL,MAP2_CONFOCAL', images=images)
  assert [record['field'] for record in run.record['fields']] == sorted(fields)
  sizes = dict(zip(fields, [[24, 16], [24, 16], [8, 24]], strict=True))
  files = set()
  for record in run.record['fields']:
    field = record['field']
    assert record['output_size'] == sizes[field]
    assert run.prediction(field, 'MAP2_CONFOCAL').shape == tuple(sizes[field])
    assert {name.split('/')[0] for name in record['files']} == {field}
    assert f'{field}/target_error_panel.png' in record['files']
    files |= set(record['files'])
  assert files_in(run.folder) == files | set(run.record['tables'])
  scored = [(row['field'], row['channel']) for row in run.metrics]
  labels = ('DAPI_CONFOCAL', 'MAP2_CONFOCAL')
  assert scored == [(field, label) for field in sorted(fields[:2]) for label in labels]
  medians = [run.prediction(field, 'DAPI_CONFOCAL') for field in fields[:2]]
  assert (medians[0] != medians[1]).any()
  assert 'Field 3 of 3' in run.outcome.stderr
  assert 'field 2 of 3: 6 of 6 blocks done' in run.outcome.stderr


def test_evaluation_of_the_training_set(setting):
  """Reads the training's folder and, not told where, its newest checkpoint; writes beside it."""
  base = setting.new_folder()
  for step, channel in ((5, 'DAPI_CONFOCAL'), (20, 'NFH_CONFOCAL')):
    random_checkpoint.write_random_checkpoint(
      base / 'train',
      model='FOVEA',
      base_depth=5,
      num_z_values=2,
      target_channels=[channel],
      global_step=step,
    )
  outcome = run_in_process(
    launch.run,
    '--mode=EVAL_TRAIN',
    '--metric=INFER_FULL',
    '--read_pngs',
    f'--dataset_train_directory={setting.images}',
    '--dataset_eval_directory=/no/such/folder',
    f'--base_directory={base}',
    '--infer_panels=',
  )
  assert outcome.status == 0, outcome.stderr
  run = InferRun(base / 'eval_train_infer' / '00000020', outcome)
  assert [row['channel'] for row in run.metrics] == ['NFH_CONFOCAL']
  assert run.record['checkpoint'] == str(base / 'train' / 'model.ckpt-20')
  assert {name.split('/')[0] for name in files_in(base)} == {'train', 'eval_train_infer'}


def test_second_run_replaces_the_files_of_the_first(setting):
  base = setting.new_folder()
  whitelist = '--infer_channel_whitelist=DAPI_CONFOCAL'
  first = setting.run('--stitch_crop_size=18', whitelist, base=base)
  files = files_in(first.folder)
  second = setting.run(whitelist, base=base)
  assert files_in(second.folder) == files
  assert second.prediction(setting.field, 'DAPI_CONFOCAL').shape == _SIZE
  assert second.panel('input').shape[0] == 3 * (_SIZE[0] + 8)
  assert second.record['flags']['stitch_crop_size'] == 500


class _Waits:
  """Stands in for the clock: lets something happen while the program waits."""

  def __init__(self, *events):
    self._events = list(events)
    self.seconds = []

  def sleep(self, seconds):
    self.seconds.append(seconds)
    if not self._events:
      raise KeyboardInterrupt
    self._events.pop(0)()


def test_continuously_takes_up_each_new_checkpoint(setting, monkeypatch):
  base = setting.new_folder()

  def write(step):
    random_checkpoint.write_random_checkpoint(
      base / 'train', model='FOVEA', base_depth=5, num_z_values=2, global_step=step, seed=step
    )

  waits = _Waits(
    lambda: None,  # The delay before the first: there is no folder yet.
    lambda: None,
    lambda: write(3),
    lambda: None,
    lambda: write(8),
    lambda: None,
  )
  monkeypatch.setattr(watching, 'time', waits)
  outcome = run_in_process(
    launch.run,
    '--mode=EVAL_EVAL',
    '--metric=INFER_FULL',
    '--read_pngs',
    f'--dataset_eval_directory={setting.images}',
    f'--base_directory={base}',
    '--infer_panels=',
    '--infer_channel_whitelist=DAPI_CONFOCAL',
    '--infer_continuously',
    '--eval_delay_secs=7',
    '--eval_interval_secs=2',
  )
  assert outcome.status == 130, outcome.stderr
  assert waits.seconds == [7, 2, 2, 2, 2, 2, 2]
  runs = [InferRun(base / 'eval_eval_infer' / step, outcome) for step in ('00000003', '00000008')]
  assert [run.record['global_step'] for run in runs] == [3, 8]
  one, other = (run.prediction(setting.field, 'DAPI_CONFOCAL') for run in runs)
  assert (one != other).any()


def test_names_of_odd_bytes_and_of_nothing(setting, tmp_path, monkeypatch):
  # pytest keeps the log, and cannot send such names from one of its processes to another.
  monkeypatch.setattr(logging.get_absl_logger(), 'propagate', False)
  images = tmp_path / 'images'
  images.mkdir()
  for path in setting.images.iterdir():
    said = path.name[path.name.index('tile_computation-STITCHED,') :].partition(',')[2]
    shutil.copy(path, images / said)
    shutil.copy(path, images / os.fsdecode(b'well-\xff,' + said.encode()))
  run = setting.run('--infer_panels=', images=images)
  folders = {path.name for path in run.folder.iterdir() if path.is_dir()}
  assert folders == {'unnamed', os.fsdecode(b'well-\xff')}
  assert r'well-\udcff,DAPI_CONFOCAL' in (run.folder / 'metrics.csv').read_text()
