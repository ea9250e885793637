"""Command lines that cannot be run: one line that names the flag, its value, what is allowed."""

from __future__ import annotations

import json
import re

import pytest

from isl import launch
from tests.support.program import run_in_process

_ALLOWED = {
  'mode': ['TRAIN', 'EVAL_TRAIN', 'EVAL_EVAL', 'EXPORT', 'DESCRIBE', 'PS'],
  'metric': ['LOSS', 'JITTER_STITCH', 'STITCH', 'INFER_FULL'],
  'optimizer': ['ADAM', 'ADAGRAD', 'MOMENTUM'],
  'loss': ['CROSS_ENTROPY', 'RANKED_PROBABILITY_SCORE'],
  'model': ['CONCORDANCE', 'FOVEA'],
  'infer_method': ['DENSE', 'PATCHES'],
  'infer_panels': ['TARGET', 'INPUT'],
  'infer_statistics': [
    *('MODE', 'MEDIAN', 'MEAN', 'STANDARD_DEVIATION', 'PROBABILITY_NONZERO', 'ENTROPY'),
    *('QUANTILE_', 'DISTRIBUTION'),
  ],
  'infer_padding': ['NONE', 'REFLECT', 'ZERO'],
  'prediction_format': ['PNG', 'OME_TIFF', 'OME_ZARR'],
  'export_format': ['SAVED_MODEL', 'ONNX'],
}

_INFER = ('--mode=EVAL_EVAL', '--metric=INFER_FULL', '--read_pngs')


def _run(*arguments):
  return run_in_process(launch.run, *arguments)


@pytest.mark.parametrize('flag', _ALLOWED)
def test_unknown_value_says_what_is_allowed(flag):
  error = _run(f'--{flag}=SIDEWAYS').error
  assert f'--{flag}' in error
  assert 'SIDEWAYS' in error
  for allowed in _ALLOWED[flag]:
    assert allowed in error


@pytest.mark.parametrize(
  ('argument', 'words'),
  [
    ('--moed=TRAIN', "'moed'"),
    ('--nooptimizer', "'nooptimizer'"),
    ('images', "'images' is not a flag"),
    ('--infer_size=0', '--infer_size=0: 0 is not a positive integer'),
    ('--infer_size=-1', '--infer_size=-1'),
    ('--infer_size=16.5', '--infer_size=16.5'),
    ('--infer_size=many', '--infer_size=many'),
    ('--infer_size=', '--infer_size='),
    ('--stitch_crop_size=-1', '--stitch_crop_size=-1: -1 is not a non-negative integer'),
    ('--base_depth=0', '--base_depth=0'),
    ('--num_z_values=0', '--num_z_values=0'),
    ('--eval_interval_secs=-1', '--eval_interval_secs=-1'),
    ('--eval_delay_secs=-1', '--eval_delay_secs=-1'),
    ('--learning_rate=0', '--learning_rate=0'),
    ('--learning_rate=nan', '--learning_rate=nan'),
    ('--learning_rate=inf', '--learning_rate=inf'),
    ('--learning_rate=-1e-4', '--learning_rate=-1e-4'),
    ('--augment_noise_std=-1', '--augment_noise_std=-1'),
    ('--augment_offset_std=nan', '--augment_offset_std=nan'),
    ('--loss_output_size=16', '--loss_output_size=16'),
    ('--loss_output_size=16', '8 + 16 k'),
    ('--data_batch_size=0', '--data_batch_size=0'),
    ('--dataset_num_shards=0', '--dataset_num_shards=0'),
    ('--ps_tasks=-1', '--ps_tasks=-1'),
    ('--task=-1', '--task=-1'),
    ('--dask_workers=0', '--dask_workers=0: 0 is not a positive integer'),
    ('--ps_hosts=a:1,a:1', "--ps_hosts=['a:1', 'a:1']: names one of them twice"),
    ('--worker_hosts=a:1,a:1', "--worker_hosts=['a:1', 'a:1']: names one of them twice"),
    ('--read_pngs=maybe', '--read_pngs=maybe'),
    (
      '--infer_panels=TARGET,TARGET',
      "--infer_panels=['TARGET', 'TARGET']: names one of them twice",
    ),
    (
      '--infer_statistics=MEAN,MEAN',
      "--infer_statistics=['MEAN', 'MEAN']: names one of them twice",
    ),
    (
      '--infer_channel_whitelist=X,X',
      "--infer_channel_whitelist=['X', 'X']: names one of them twice",
    ),
    *(
      (f'--infer_statistics=MEAN,{name}', f"'{name}' is not one of")
      for name in ('QUANTILE_0', 'QUANTILE_100', 'QUANTILE_x', 'QUANTILE_nan', 'QUANTILE_05')
    ),
    ('--target_channels=GFP,GFP', 'names one of them twice'),
    ('--flagfile=/no/such/file', '/no/such/file'),
  ],
)
def test_bad_argument_is_named_with_its_value(argument, words):
  assert words in _run(argument).error


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ([], 'either --read_pngs is needed, .* or --dataset_pattern, for TFRecord shards'),
    (['--read_pngs'], '--dataset_train_directory is needed with --read_pngs and --mode TRAIN'),
    (['--mode=TRAIN', '--metric=STITCH'], '--mode TRAIN goes with --metric LOSS, not STITCH'),
    (['--mode=EXPORT'], '--mode EXPORT goes with --metric STITCH, not LOSS'),
    ([*_INFER, '--nois_recordio'], '--is_recordio must be true'),
    (_INFER[:2], 'either --read_pngs is needed, .* or --dataset_pattern'),
    (_INFER, '--dataset_eval_directory is needed with --read_pngs and --mode EVAL_EVAL'),
    ([*_INFER, '--dataset_train_directory=x'], '--dataset_eval_directory is needed'),
    ([*_INFER, '--mode=EVAL_TRAIN'], '--dataset_train_directory is needed'),
    ([*_INFER, '--dataset_eval_directory=x', '--master=grpc://a:1'], '--master'),
    ([*_INFER, '--dataset_eval_directory=x', '--ps_tasks=1'], '--ps_tasks'),
    ([*_INFER, '--dataset_eval_directory=x', '--task=1'], '--task'),
    ([*_INFER, '--dataset_eval_directory=x', '--norestore_logits'], '--norestore_logits'),
    ([*_INFER, '--dataset_eval_directory=x', '--norestore_inputs'], '--norestore_inputs'),
    *(
      ([*_INFER, '--dataset_eval_directory=x', f'--input_range={ends}'], f"LOW,HIGH.*'{ends}'")
      for ends in ('5', '5,1', '1,1', 'a,b', '1,2,3', 'nan,1', '0,inf', 'AUTO')
    ),
    ([*_INFER, '--calibrate', '--calibrated'], '--calibrate and --calibrated exclude'),
    ([*_INFER, '--calibrate', '--infer_continuously'], '--calibrate .* --infer_continuously'),
    (['--read_pngs', '--calibrated'], '--calibrated goes with --metric INFER_FULL'),
    (['--read_pngs', '--overwrite'], '--overwrite goes with --metric INFER_FULL'),
    ([*_INFER, '--infer_statistics=DISTRIBUTION'], 'OME_ZARR, not PNG'),
    ([*_INFER, '--target_channels=GFP'], '--target_channels goes with --mode TRAIN'),
    ([*_INFER, '--input_channels=GFP'], '--input_channels goes with --mode TRAIN'),
  ],
)
def test_contradictory_or_missing_flags(arguments, words):
  outcome = _run(*arguments)
  assert outcome.status == 1
  assert re.search(words, outcome.error)


_SHARDS = '--dataset_pattern=/no/such/shard-%d'


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    (['--dataset_pattern=shard'], "--dataset_pattern must have one %d .*'shard'"),
    (['--dataset_pattern=%s%d'], "--dataset_pattern must have one %d .*'%s%d'"),
    (['--dataset_pattern=5%'], "--dataset_pattern must have one %d .*'5%'"),
    (
      [_SHARDS, '--dataset_num_shards=1'],
      '--dataset_num_shards 1 leaves none for --mode TRAIN: of eight',
    ),
    (
      [_SHARDS, '--dataset_num_shards=1', '--mode=EVAL_TRAIN'],
      'leaves none for --mode EVAL_TRAIN: of eight',
    ),
    ([_SHARDS, '--nois_recordio'], '--is_recordio must be true: shards are TFRecord files'),
  ],
)
def test_shards_that_cannot_be(arguments, words):
  assert re.search(words, _run(*arguments).error)


_HOSTS = ('--ps_hosts=a:1', '--worker_hosts=b:1,c:1')


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    (['--mode=PS'], '--mode PS needs --ps_hosts and --worker_hosts .*, or TF_CONFIG'),
    *(
      ([flag], '--ps_tasks, --task and --sync_replicas needs --ps_hosts and --worker_hosts')
      for flag in ('--ps_tasks=1', '--task=1', '--sync_replicas')
    ),
    ([*_HOSTS, '--task=2'], '--task must be 0 to 1, one of --worker_hosts, got 2'),
    ([*_HOSTS, '--mode=PS', '--task=1'], '--task must be 0 to 0, one of --ps_hosts, got 1'),
    ([*_HOSTS, '--ps_hosts=a'], "'a' is no address; expected host:port"),
    ([_HOSTS[1]], r'must name a parameter server \(ps\)'),
    ([*_HOSTS, '--ps_tasks=2'], '--ps_tasks must be 1, the number of parameter servers, got 2'),
    (
      [*_HOSTS, '--master=grpc://c:1'],
      "--master must be '', local or grpc://b:1, as the cluster says; got 'grpc://c:1'",
    ),
    (['--master=grpc://b:1'], "--master must be '' or local, without --ps_hosts; got 'grpc://b:1'"),
    *(
      ([*_INFER, '--dataset_eval_directory=x', flag], f'{name} goes with --mode TRAIN or PS')
      for flag, name in (
        ('--ps_hosts=a:1', '--ps_hosts'),
        ('--worker_hosts=a:1', '--worker_hosts'),
        ('--sync_replicas', '--sync_replicas'),
      )
    ),
    (['--mode=PS', *_HOSTS, '--master=grpc://a:1'], '--master goes with --mode TRAIN, not PS; got'),
    (['--mode=PS', *_HOSTS, '--dry_run'], '--dry_run does not go with --mode PS'),
    (['--export_format=ONNX'], '--export_format goes with --mode EXPORT, not TRAIN'),
    (['--dask_workers=2'], '--dask_workers goes with --metric INFER_FULL and --mode EVAL_EVAL'),
    (['--dask_scheduler=tcp://a:1'], '--dask_scheduler goes with --metric INFER_FULL and'),
    ([*_INFER, '--dask_workers=2', '--calibrate'], '--dask_workers spreads predictions; --calib'),
    (
      [*_INFER, '--dask_workers=2', '--dask_scheduler=tcp://a:1'],
      '--dask_scheduler and --dask_workers exclude each other',
    ),
  ],
)
def test_machines_that_cannot_be(arguments, words):
  # There are no such images: a run that is started by mistake ends all the same.
  images = ['--read_pngs', '--dataset_train_directory=/no/such/folder']
  assert re.search(words, _run(*images, *arguments).error)


@pytest.mark.parametrize(
  ('mode', 'config', 'words'),
  [
    ('TRAIN', '{', 'TF_CONFIG is not JSON'),
    (
      'PS',
      {'cluster': {'worker': ['b:1']}, 'task': {'type': 'worker', 'index': 0}},
      '--mode PS is for parameter servers; TF_CONFIG makes this process none',
    ),
    (
      'PS',
      {'cluster': {'worker': ['b:1'], 'ps': ['a:1']}, 'task': {'type': 'worker', 'index': 0}},
      '--mode PS is for parameter servers; TF_CONFIG makes this process none',
    ),
    (
      'TRAIN',
      {'cluster': {'worker': ['b:1'], 'ps': ['a:1']}, 'task': {'type': 'evaluator', 'index': 0}},
      'which does not train; give it --mode EVAL_EVAL or EVAL_TRAIN',
    ),
    (
      'TRAIN --task=1',
      {
        'cluster': {'worker': ['b:1', 'c:1'], 'ps': ['a:1']},
        'task': {'type': 'worker', 'index': 0},
      },
      '--task 1 is not what TF_CONFIG says: worker 0; leave it out',
    ),
    (
      'TRAIN --master=grpc://a:1',
      {'cluster': {'worker': ['b:1']}, 'task': {'type': 'worker', 'index': 0}},
      "--master must be '' or local, without --ps_hosts; got 'grpc://a:1'",
    ),
  ],
)
def test_environment_that_cannot_be(mode, config, words, monkeypatch):
  monkeypatch.setenv('TF_CONFIG', config if isinstance(config, str) else json.dumps(config))
  images = ['--read_pngs', '--dataset_train_directory=/no/such/folder']
  assert words in _run(*f'--mode={mode}'.split(), *images).error


def test_flagfile_that_is_no_text(tmp_path):
  (tmp_path / 'flags').write_bytes(b'\xc0\xff')
  assert '--flagfile is not text' in _run(f'--flagfile={tmp_path / "flags"}').error


def test_home_of_nobody():
  assert "'~no one/train'" in _run('--mode=DESCRIBE', '--restore_directory=~no one/train').error
