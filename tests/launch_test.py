"""Tests of launch.py: the command line."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from isl import command_line, launch, program_flags
from isl.core.experiment import InferMethod, Metric, Mode, Panel
from isl.core.statistic import Statistic
from isl.programs import random_checkpoint
from tests.support.program import Outcome, finish, python_process, run_in_process

_DEFAULTS = {
  'mode': 'TRAIN',
  'metric': 'LOSS',
  'master': 'local',
  'base_directory': '/tmp/minception/',
  'export_directory': '/tmp/minception_export/',
  'save_summaries_secs': 180,
  'save_interval_secs': 180,
  'eval_interval_secs': 15,
  'eval_delay_secs': 0,
  'metric_num_examples': 1024,
  'ps_tasks': 0,
  'task': 0,
  'restore_directory': '',
  'restore_logits': True,
  'restore_inputs': True,
  'optimizer': 'ADAM',
  'learning_decay_steps': 4096,
  'learning_rate': 1e-4,
  'loss': 'CROSS_ENTROPY',
  'model': 'CONCORDANCE',
  'base_depth': 400,
  'num_z_values': 26,
  'read_pngs': False,
  'dataset_train_directory': None,
  'dataset_eval_directory': None,
  'dataset_pattern': None,
  'dataset_num_shards': 1024,
  'is_recordio': True,
  'data_batch_size': 4,
  'data_batch_num_threads': 4,
  'data_batch_capacity': 8,
  'loss_crop_size': 520,
  'loss_patch_stride': 256,
  'loss_output_size': 8,
  'stitch_crop_size': 500,
  'infer_size': 16,
  'infer_continuously': False,
  'infer_channel_whitelist': None,
  'infer_simplify_error_panels': True,
  'augment_offset_std': 0,
  'augment_multiplier_std': 0,
  'augment_noise_std': 0,
  'preprocess_batch_size': 16,
  'preprocess_shuffle_batch_num_threads': 16,
  'preprocess_batch_capacity': 64,
  'train_on_full_dataset': False,
  'tensorcheck_enable_checks': False,
  # Not the original's:
  'eval_once': False,
  'number_of_steps': None,
  'random_seed': None,
  'stretch_targets': [],
  'infer_method': 'DENSE',
  'infer_panels': ['TARGET', 'INPUT'],
  'infer_statistics': ['MEDIAN'],
  'infer_padding': 'NONE',
  'prediction_format': 'PNG',
  'calibrate': False,
  'calibrated': False,
  'overwrite': False,
  'dry_run': False,
  'input_range': None,
  'input_channels': None,
  'target_channels': None,
  'export_format': 'SAVED_MODEL',
  'skip_corrupt_shards': False,
  'ps_hosts': None,
  'worker_hosts': None,
  'sync_replicas': False,
  'dask_scheduler': None,
  'dask_workers': None,
}

_INFER = ('--mode=EVAL_EVAL', '--metric=INFER_FULL', '--read_pngs')


def _run(*arguments):
  return run_in_process(launch.run, *arguments)


def _experiment(*arguments):
  with flagsaver.flagsaver():
    flags.FLAGS(['isl-launch', *arguments])
    return command_line.make_experiment()


@pytest.mark.parametrize('name', _DEFAULTS)
def test_default(name):
  assert flags.FLAGS[name].default == _DEFAULTS[name]


def test_there_are_no_other_flags():
  assert {flag.name for flag in program_flags.own_flags()} == _DEFAULTS.keys()


def test_helpfull_has_every_flag_in_a_group():
  shown = _run('--helpfull').stdout
  titles = re.findall('^isl: (.*):$', shown, re.M)
  assert len(set(titles)) == len(titles) >= 5
  groups = dict(zip(titles, re.split('^isl: .*:$', shown, flags=re.M)[1:], strict=True))
  for name, words in (('infer_size', 'inference'), ('optimizer', 'training'), ('task', 'machines')):
    (title,) = (t for t, text in groups.items() if re.search(rf'^  --(\[no\])?{name}:', text, re.M))
    assert words in title
  for name in _DEFAULTS:
    assert len(re.findall(rf'^  --(?:\[no\])?{name}: \S', shown, re.M)) == 1, name


def test_inference_flags_make_an_experiment():
  run = _experiment(
    *_INFER,
    '--base_directory=/base',
    '--restore_directory=/model',
    '--dataset_eval_directory=/images',
    '--eval_interval_secs=3',
    '--eval_delay_secs=4',
    '--stitch_crop_size=700',
    '--infer_size=5',
    '--infer_method=PATCHES',
    '--infer_panels=INPUT',
    '--infer_statistics=MODE,ENTROPY',
    '--infer_channel_whitelist=NFH_CONFOCAL,DAPI_CONFOCAL',
    '--noinfer_simplify_error_panels',
    '--infer_continuously',
  )
  assert (run.mode, run.metric) == (Mode.EVAL_EVAL, Metric.INFER_FULL)
  assert run.base_directory == pathlib.Path('/base')
  assert run.checkpoint_directory == pathlib.Path('/model')
  assert run.image_directories == (pathlib.Path('/images'),)
  assert (run.evaluation.interval_secs, run.evaluation.delay_secs) == (3, 4)
  assert (run.model, run.base_depth, run.num_z_values) == (None, None, None)
  assert (run.inference.crop_size, run.inference.tile_size) == (700, 5)
  assert run.inference.method is InferMethod.PATCHES
  assert run.inference.panels == (Panel.INPUT,)
  assert run.inference.statistics == (Statistic.MODE, Statistic.ENTROPY)
  assert run.inference.channels == ('NFH_CONFOCAL', 'DAPI_CONFOCAL')
  assert not run.evaluation.once
  assert not run.inference.simplify_panels


def test_network_flags_count_only_where_given():
  """Otherwise the checkpoint decides, even against the defaults."""
  run = _experiment(*_INFER, '--dataset_eval_directory=x', '--base_depth=400', '--model=FOVEA')
  assert (run.model, run.base_depth, run.num_z_values) == ('FOVEA', 400, None)


@pytest.mark.parametrize(
  ('mode', 'folder'), [('EVAL_EVAL', '/evaluation'), ('EVAL_TRAIN', '/training')]
)
def test_each_mode_reads_its_folder(mode, folder):
  both = ('--dataset_train_directory=/training', '--dataset_eval_directory=/evaluation')
  run = _experiment(*_INFER[1:], f'--mode={mode}', *both)
  assert run.image_directories == (pathlib.Path(folder),)


@pytest.mark.parametrize('flag', ['--infer_panels=', '--infer_statistics='])
def test_empty_list_is_none(flag):
  inference = _experiment(*_INFER, '--dataset_eval_directory=x', flag).inference
  lists = {'--infer_panels=': inference.panels, '--infer_statistics=': inference.statistics}
  assert [name for name, values in lists.items() if not values] == [flag]


def test_empty_whitelist_is_all():
  run = _experiment(*_INFER, '--dataset_eval_directory=x', '--infer_channel_whitelist=')
  assert run.inference.channels is None


def test_flags_are_on_record():
  run = _experiment(*_INFER, '--dataset_eval_directory=x')
  assert dict(run.flags).keys() == _DEFAULTS.keys()
  assert dict(run.flags)['dataset_eval_directory'] == 'x'


@pytest.fixture(scope='module')
def checkpoint_folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('work') / 'train'
  random_checkpoint.write_random_checkpoint(folder, model='FOVEA', base_depth=5, num_z_values=3)
  return folder


def _describes_fovea(outcome):
  assert outcome.status == 0, outcome.stderr
  assert 'model: FOVEA' in outcome.stdout
  return True


def test_paths_count_from_where_the_user_stands(checkpoint_folder, tmp_path, monkeypatch):
  monkeypatch.chdir(checkpoint_folder.parent)
  assert _describes_fovea(_run('--mode=DESCRIBE', '--restore_directory=train'))
  assert _describes_fovea(_run('--mode=DESCRIBE', '--base_directory=.'))
  monkeypatch.chdir(tmp_path)
  assert 'is not a folder' in _run('--mode=DESCRIBE', '--restore_directory=train').error


def test_home_is_known(checkpoint_folder, monkeypatch):
  monkeypatch.setenv('HOME', str(checkpoint_folder.parent))
  assert _describes_fovea(_run('--mode=DESCRIBE', '--restore_directory=~/train'))


def test_under_bazel_paths_count_from_its_users_folder(checkpoint_folder, tmp_path, monkeypatch):
  (checkpoint_folder.parent / 'flags').write_text('--restore_directory=train\n')
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('BUILD_WORKING_DIRECTORY', str(checkpoint_folder.parent))
  assert _describes_fovea(_run('--mode=DESCRIBE', '--restore_directory=train'))
  assert _describes_fovea(_run('--mode=DESCRIBE', '--base_directory=.'))
  assert _describes_fovea(_run('--mode=DESCRIBE', f'--restore_directory={checkpoint_folder}'))
  assert _describes_fovea(_run('--mode=DESCRIBE', '--flagfile=flags'))


def test_flagfile(checkpoint_folder, tmp_path):
  (tmp_path / 'flags').write_text(
    f'# What is described.\n--mode=DESCRIBE\n--restore_directory={checkpoint_folder}\n'
  )
  assert _describes_fovea(_run(f'--flagfile={tmp_path / "flags"}'))


def test_describe_says_what_a_checkpoint_holds(checkpoint_folder):
  outcome = _run('--mode=DESCRIBE', f'--restore_directory={checkpoint_folder}')
  prefix = checkpoint_folder / 'model.ckpt-1000'
  assert outcome.stdout.startswith(f'checkpoint: {prefix}\nmodel: FOVEA\nbase_depth: ')
  for line in ('num_z_values: 3', 'global step: 1000', 'target channels: DAPI_CONFOCAL, '):
    assert f'\n{line}' in outcome.stdout
  assert not outcome.error_lines


def _process(*arguments, code='from isl import launch; launch.run()'):
  return finish(python_process(code, *arguments))


def test_process_describes_and_says_nothing_else(checkpoint_folder):
  """TensorFlow's own chatter, which comes from native code, included."""
  outcome = _process('--mode=DESCRIBE', f'--restore_directory={checkpoint_folder}')
  assert _describes_fovea(outcome)
  assert not outcome.stderr


def test_misspelt_flag_does_not_wait_for_tensorflow():
  code = """if True:
    import sys
    from isl import launch
    try:
      launch.run()
    finally:
      print('tensorflow' in sys.modules)
  """
  outcome = _process('--mode=SIDEWAYS', code=code)
  assert outcome.stdout == 'False\n'
  assert '--mode=SIDEWAYS' in outcome.error


def test_interrupt_is_no_traceback(monkeypatch, checkpoint_folder):
  def interrupted(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(launch, 'make_experiment', interrupted)
  outcome = _run('--mode=DESCRIBE', f'--restore_directory={checkpoint_folder}')
  assert outcome.status == 130
  assert outcome.stderr == 'isl-launch: stopped\n'


def test_debugging_shows_where_it_happened(tmp_path):
  outcome = _run('--mode=DESCRIBE', f'--restore_directory={tmp_path}', '--verbosity=1')
  assert outcome.status == 1
  assert 'Traceback' in outcome.stderr
  assert 'Traceback' not in _run('--mode=DESCRIBE', f'--restore_directory={tmp_path}').stderr


def test_console_script_is_the_program():
  """The console script is tested where isl is installed, as `make test` does it."""
  script = pathlib.Path(sys.executable).with_name('isl-launch')
  if not os.access(script, os.X_OK):
    pytest.skip('isl is not installed beside this Python')
  done = subprocess.run([script, '--mode=SIDEWAYS'], capture_output=True, text=True, check=False)
  outcome = Outcome(status=done.returncode, stdout=done.stdout, stderr=done.stderr)
  assert '--mode=SIDEWAYS' in outcome.error
