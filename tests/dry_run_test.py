"""Tests of --dry_run through the command line."""

from __future__ import annotations

import pytest

from isl import launch
from tests.support.program import (
  InferSetting,
  files_in,
  image_name,
  make_fovea_shallow,
  run_in_process,
  write_field,
)


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    yield InferSetting(launch.run, tmp_path_factory)


def _dry_run(*flags):
  return run_in_process(launch.run, '--dry_run', *flags)


def test_inference_says_what_it_found_and_would_write(setting, tmp_path):
  outcome = _dry_run(*setting.flags(tmp_path / 'base'), '--infer_channel_whitelist=DAPI_CONFOCAL')
  assert outcome.status == 0, outcome.stderr
  lines = outcome.stdout.splitlines()
  assert f'Checkpoint: {setting.checkpoint}/model.ckpt-1000, step 1000' in lines
  assert 'Network: FOVEA, reads 3 z positions of TRANSMISSION and predicts DAPI_CONFOCAL' in lines
  assert f'Field 1 of 1: {setting.field}' in lines
  assert f'  size: {setting.rows} rows x {setting.columns} columns' in lines
  assert '  TRANSMISSION (PHASE_CONTRAST): 5 depths' in lines
  filled = {
    line.split(' fills ')[0].strip(): line.split(' fills ')[1].split(': ')[0]
    for line in lines
    if ' fills ' in line
  }
  assert filled == {'z 0': '0.0', 'z 1': 'none', 'z 2': '0.5', 'z 3': 'none', 'z 4': '1.0'}
  assert '  labels: DAPI_CONFOCAL' in lines
  assert '  not used: MAP2_CONFOCAL, NFH_CONFOCAL' in lines
  assert '  prediction: 32 rows x 48 columns, from pixel (5, 5)' in lines
  assert not (tmp_path / 'base').exists()


def test_what_it_would_write_is_what_is_written(setting, tmp_path):
  flags = [*setting.flags(tmp_path / 'base'), '--infer_statistics=MEDIAN,QUANTILE_5']
  lines = _dry_run(*flags).stdout.splitlines()
  (files,) = (line.split(': ')[1].split('.png, ') for line in lines if 'would write:' in line)
  folder = tmp_path / 'base' / 'eval_eval_infer' / '00001000'
  tables = lines[lines.index(f'Would write to {folder}:') + 1 :]
  run = setting.run('--infer_statistics=MEDIAN,QUANTILE_5', base=tmp_path / 'base')
  written = files_in(run.folder)
  named = {f'{name}.png' for name in files[:-1]} | {files[-1]} | {line.strip() for line in tables}
  assert named <= written
  others = written - named
  assert all(name.startswith(('thumbnails/', 'reliability_')) for name in others), others


def test_missing_labels_and_padding(setting, tmp_path):
  outcome = _dry_run(
    *setting.flags(tmp_path / 'base'),
    '--infer_padding=REFLECT',
    '--infer_channel_whitelist=DEAD_CONFOCAL,NEURITE_CONFOCAL',
    '--prediction_format=OME_ZARR',
  )
  assert '  labels: NEURITE_CONFOCAL' in outcome.stdout
  assert '  missing labels: DEAD_CONFOCAL' in outcome.stdout
  assert (
    f'prediction: {setting.rows} rows x {setting.columns} columns, from pixel (0, 0)'
    in outcome.stdout
  )
  assert 'predictions.ome.zarr' in outcome.stdout


def test_bad_field_among_several_is_a_problem(setting, tmp_path):
  images = tmp_path / 'images'
  write_field(images, rows=34, columns=26, wells=('A1', 'B2'))
  (images / image_name('A1', 0, 'PHASE_CONTRAST')).unlink()
  outcome = _dry_run(*setting.flags(tmp_path / 'base', images))
  assert outcome.status == 3
  assert '  problem: ' in outcome.stdout
  assert 'z_depth-0' in outcome.error_lines[0]
  assert len(outcome.error_lines) == 1


def test_bad_field_alone_is_an_error(setting, tmp_path):
  images = tmp_path / 'images'
  write_field(images, rows=17, columns=26)
  assert 'at least 18 x 18 pixels' in _dry_run(*setting.flags(tmp_path / 'base', images)).error


def test_training(setting, tmp_path):
  base = tmp_path / 'base'
  outcome = _dry_run(
    '--mode=TRAIN',
    '--read_pngs',
    f'--dataset_train_directory={setting.images}',
    f'--base_directory={base}',
    '--model=FOVEA',
    '--base_depth=5',
    '--num_z_values=2',
    '--target_channels=MAP2_CONFOCAL,DAPI_CONFOCAL',
  )
  assert outcome.status == 0, outcome.stderr
  assert 'Checkpoint: none, random weights' in outcome.stdout
  assert 'predicts MAP2_CONFOCAL, DAPI_CONFOCAL' in outcome.stdout
  assert f'Would write to {base}/train:' in outcome.stdout
  assert not base.exists()


@pytest.mark.parametrize('metric', ['LOSS', 'STITCH'])
def test_evaluation(setting, tmp_path, metric):
  flags = [f for f in setting.flags(tmp_path / 'base') if 'metric' not in f]
  outcome = _dry_run(*flags, f'--metric={metric}')
  assert outcome.status == 0, outcome.stderr
  assert 'events.out.tfevents.*' in outcome.stdout
  assert not (tmp_path / 'base').exists()
