"""The original README's commands, to the letter, and its numbers; and those of our own pages."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import textwrap

import cv2
import numpy as np
import pytest
from absl.testing import flagsaver

from isl import command_line, launch
from isl.program_flags import FLAGS
from isl.programs import make_shards, random_checkpoint
from tests.support.program import (
  REPOSITORY,
  InferRun,
  Outcome,
  run_in_process,
  shared_path,
  write_field,
  write_reference_checkpoint,
)

_CONDITION_B = (
  'bazel run isl:launch -- --alsologtostderr --base_directory $BASE_DIRECTORY'
  ' --mode EVAL_EVAL --metric INFER_FULL --stitch_crop_size 1500'
  ' --restore_directory $(pwd)/checkpoints --read_pngs'
  ' --dataset_eval_directory $(pwd)/data_sample/condition_b_sample'
  ' --infer_channel_whitelist DAPI_CONFOCAL,MAP2_CONFOCAL,NFH_CONFOCAL'
)
_CONDITION_E = (
  'bazel run isl:launch -- --alsologtostderr --base_directory $BASE_DIRECTORY'
  ' --mode EVAL_EVAL --metric INFER_FULL --stitch_crop_size 1500'
  ' --restore_directory $(pwd)/checkpoints --read_pngs'
  ' --dataset_eval_directory $(pwd)/data_sample/condition_e_sample_B3'
  ' --infer_channel_whitelist DAPI_CONFOCAL,CELLMASK_CONFOCAL --noinfer_simplify_error_panels'
)
_TRAINING = (
  'bazel run isl:launch -- --alsologtostderr --base_directory $BASE_DIRECTORY --mode TRAIN'
  ' --metric LOSS --master "" --restore_directory $(pwd)/checkpoints --read_pngs'
  ' --dataset_train_directory $(pwd)/data_sample/condition_e_sample_B2'
)
_BOTH = pytest.mark.parametrize(
  ('command', 'channels', 'num_columns'),
  [
    (_CONDITION_B, ['DAPI_CONFOCAL', 'MAP2_CONFOCAL', 'NFH_CONFOCAL'], 3),
    (_CONDITION_E, ['DAPI_CONFOCAL', 'CELLMASK_CONFOCAL'], 12),
  ],
)

# 1 x 2 blocks.
_ROWS, _COLUMNS = 252, 260
_SIZE = (8, 16)


def _write_folders(work: pathlib.Path) -> None:
  """Writes the folders that the commands name: a slim network of 26 depths, small images."""
  random_checkpoint.write_random_checkpoint(work / 'checkpoints', base_depth=5, num_z_values=26)
  write_field(work / 'data_sample' / 'condition_b_sample', rows=_ROWS, columns=_COLUMNS, depths=13)
  write_field(
    work / 'data_sample' / 'condition_e_sample_B3',
    rows=_ROWS,
    columns=_COLUMNS,
    depths=26,
    transmitted_light='DIC',
    channels=('CELLMASK_CONFOCAL', 'DAPI_CONFOCAL'),
    wells=('B3',),
  )


def _shell(command: str, work: pathlib.Path, base: str, **environment: str) -> Outcome:
  """Types a command in the folder `work`."""
  done = subprocess.run(
    ['bash', '-c', command],
    cwd=work,
    env={**os.environ, 'BASE_DIRECTORY': base, **environment},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  return Outcome(status=done.returncode, stdout=done.stdout, stderr=done.stderr)


def _check(base: pathlib.Path, outcome: Outcome, channels: list[str], num_columns: int) -> None:
  assert outcome.status == 0, outcome.stderr
  run = InferRun(base / 'eval_eval_infer' / '00001000', outcome)
  assert [row['channel'] for row in run.metrics] == channels
  (record,) = run.record['fields']
  assert record['output_size'] == list(_SIZE)
  assert record['output_offset'] == [121, 121]
  width = num_columns * (_SIZE[1] + 8)
  assert run.panel('target').shape == (len(channels) * (_SIZE[0] + 8), width, 3)
  assert run.panel('input').shape == (26 * (_SIZE[0] + 8), width, 3)
  for channel in channels:
    assert run.prediction(record['field'], channel).shape == _SIZE


@pytest.fixture(scope='module')
def user_folder(tmp_path_factory):
  """The folder of a user who has the checkpoint and the images, and isl installed."""
  work = tmp_path_factory.mktemp('user')
  _write_folders(work)
  return work


@_BOTH
def test_by_python_from_any_folder(user_folder, command, channels, num_columns):
  program = shlex.join([sys.executable, '-m', 'isl.launch'])
  # Relative paths count from where the user stands.
  command = command.replace('bazel run isl:launch --', program).replace('$(pwd)/', '')
  path = os.pathsep.join(filter(None, sys.path))
  base = f'base_{num_columns}'
  outcome = _shell(command, user_folder, base, PYTHONPATH=path)
  _check(user_folder / base, outcome, channels, num_columns)
  assert not outcome.error_lines


def _repository() -> pathlib.Path:
  # Under Bazel this file is a link into the repository.
  return REPOSITORY


@pytest.fixture(scope='module')
def workspace(tmp_path_factory):
  """A clone of the repository with the two folders; Bazel leaves nothing outside it."""
  if 'TEST_SRCDIR' in os.environ:
    pytest.skip('Bazel does not run within Bazel')
  if not shutil.which('bazel'):
    if os.environ.get('ISL_REQUIRE_SHARED') == '1':
      pytest.fail('there is no bazel, and ISL_REQUIRE_SHARED=1 asks for it')
    pytest.skip('there is no bazel')
  work = tmp_path_factory.mktemp('clone') / 'isl'
  work.mkdir()
  for name in ('WORKSPACE', 'WORKSPACE.bzlmod', 'MODULE.bazel', 'BUILD', 'pyproject.toml'):
    shutil.copy(_repository() / name, work)
  for name in ('isl', 'tools'):
    shutil.copytree(_repository() / name, work / name, ignore=shutil.ignore_patterns('__pycache__'))
  options = (_repository() / '.bazelrc').read_text()
  cache = tmp_path_factory.mktemp('bazel')
  (work / '.bazelrc').write_text(f'startup --output_user_root={cache}\n{options}')
  _write_folders(work)
  yield work
  _shell('bazel shutdown', work, '')
  # Bazel makes its files read-only.
  _shell(f'chmod -R u+w {cache} && rm -rf {cache}', work, '')


@pytest.mark.bazel
@_BOTH
def test_by_bazel_to_the_letter(workspace, tmp_path, command, channels, num_columns):
  environment = {}
  if sys.prefix != sys.base_prefix:
    # As in an activated virtual environment.
    environment['PATH'] = f'{sys.prefix}/bin{os.pathsep}{os.environ["PATH"]}'
  outcome = _shell(command, workspace, str(tmp_path / 'base'), **environment)
  _check(tmp_path / 'base', outcome, channels, num_columns)


def _page(name: str) -> str:
  return (_repository() / name).read_text(encoding='utf-8')


@pytest.mark.parametrize(
  ('command', 'page'),
  [
    (_CONDITION_B, 'README.md'),
    (_TRAINING, 'README.md'),
    (_CONDITION_B, 'docs/inference.md'),
    (_CONDITION_E, 'docs/inference.md'),
    (_TRAINING, 'docs/training.md'),
  ],
)
def test_this_is_what_the_pages_say(command, page):
  """They stand there to be copied; variables name the folders, of which this project has some."""
  text = ' '.join(_page(page).replace('\\\n', ' ').split())
  for variable, folder in (
    ('$EVALUATION', 'condition_b_sample'),
    ('$TRAINING', 'condition_e_sample_B2'),
  ):
    text = text.replace(variable, folder)
  assert command in text


_TOPICS = [
  'images',
  'inference',
  'quality',
  'training',
  'shards',
  'export',
  'machines',
  'performance',
]
_PAGES = (
  *('README.md', 'checkpoints/README.md', 'data_sample/README.md'),
  *(f'docs/{topic}.md' for topic in _TOPICS),
)
# In place of the programs: they print TF_CONFIG and their command line.
_STAND_INS = """
  python() { local config=${TF_CONFIG//[[:space:]]}; echo "${config@Q}" "${@@Q}"; }
  isl-launch() { python -m isl.launch "$@"; }
  bazel() { [[ "$1 $2 $3" == 'run isl:launch --' ]] && isl-launch "${@:4}"; }
  tensorboard() { :; }
  sbatch() { :; }
  TF_CONFIG=
"""


def _command_blocks(page: str) -> list[str]:
  """The indented parts of a page that have a command of ours in them."""
  blocks = re.findall(r'(?:^ {4,}\S.*\n(?:\n(?= {4}))?)+', page, re.M)
  ours = r'^ *(isl-launch|bazel run isl:launch|(\.venv/bin/)?python) '
  return [block for block in blocks if re.search(ours, block, re.M)]


def _check_is_understood(command: list[str]) -> None:
  """Has the flags or options of a command of Python read by the program that it names."""
  match command:
    case ['-m', 'isl.launch', *arguments]:
      with flagsaver.flagsaver():
        assert FLAGS(['isl-launch', *arguments]) == ['isl-launch']
        command_line.make_experiment()
    case ['-m', 'isl.programs.make_shards', *arguments]:
      make_shards.make_parser().parse_args(arguments)
    case ['-m', module, *_]:
      assert importlib.util.find_spec(module), module
    case [script, *_]:
      assert (_repository() / script).is_file(), script


@pytest.mark.parametrize('name', _PAGES)
def test_commands_of_the_pages_are_understood(name, monkeypatch):
  blocks = _command_blocks(_page(name))
  assert blocks
  for block in blocks:
    code = textwrap.dedent(block).replace('.venv/bin/python', 'python')
    done = subprocess.run(
      ['bash', '-euc', f'{_STAND_INS}\n{code}\nwait'],
      env={'BASE_DIRECTORY': '/base', 'EVALUATION': 'a', 'TRAINING': 'b'},
      capture_output=True,
      text=True,
      check=False,
    )
    assert (done.returncode, done.stderr) == (0, ''), block
    for line in done.stdout.splitlines():
      tf_config, *command = shlex.split(line)
      monkeypatch.setenv('TF_CONFIG', tf_config)
      _check_is_understood(command)


def test_error_panel_is_the_originals(tmp_path):
  """At full width, on the real sample; see the reference's README."""
  images = shared_path('data', 'condition_b_sample')
  expected = cv2.imread(
    str(shared_path('reference', 'target_error_panel_seed7_crop306.png')),
    cv2.IMREAD_UNCHANGED,
  )
  checkpoint = write_reference_checkpoint(tmp_path, 'variables_concordance.json', seed=7)
  outcome = run_in_process(
    launch.run,
    '--mode=EVAL_EVAL',
    '--metric=INFER_FULL',
    '--read_pngs',
    '--stitch_crop_size=306',
    '--infer_channel_whitelist=DAPI_CONFOCAL,MAP2_CONFOCAL,NFH_CONFOCAL',
    '--infer_panels=TARGET',
    f'--restore_directory={checkpoint.parent}',
    f'--dataset_eval_directory={images}',
    f'--base_directory={tmp_path / "base"}',
  )
  assert outcome.status == 0, outcome.stderr
  found = InferRun(tmp_path / 'base' / 'eval_eval_infer' / '00375000', outcome).panel('target')
  assert expected is not None
  assert found.shape == expected.shape
  difference = np.abs(found.astype(int) - expected[..., ::-1])
  assert np.mean((difference <= 1).all(axis=-1)) >= 0.999
