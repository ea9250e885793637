"""Tests of best_checkpoint.py: the lowest loss's checkpoint is there, whatever happens."""

from __future__ import annotations

import json
import math

import pytest

from isl.checkpoints import channels_file
from isl.checkpoints.channels_file import Channels
from isl.checkpoints.checkpoint import Checkpoint, find_newest
from isl.core.channels import TARGET_CHANNELS, TRANSMISSION
from isl.evaluation import best_checkpoint
from isl.evaluation.best_checkpoint import BestCheckpoint
from isl.programs import random_checkpoint
from tests.support.program import files_in, finish, make_fovea_shallow, python_process

_SETTINGS = {'loss': 'CROSS_ENTROPY', 'dataset_eval_directory': ['/a'], 'metric_num_examples': 4}
_FLAGS = {'mode': 'EVAL_EVAL', 'dataset_train_directory': None, 'infer_panels': ['TARGET']}


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
  """Checkpoints with a fifth of the variables."""
  make_fovea_shallow(monkeypatch)


@pytest.fixture
def train(tmp_path):
  """A folder with checkpoints of the steps 1 to 4."""
  for step in range(1, 5):
    random_checkpoint.write_random_checkpoint(
      tmp_path / 'train', model='FOVEA', base_depth=2, num_z_values=2, global_step=step, seed=step
    )
  return tmp_path / 'train'


def _offer(best, train, step, loss, settings=_SETTINGS):
  prefix = train / f'model.ckpt-{step}'
  with best_checkpoint.opened(prefix) as contents:
    return best.offer(prefix, contents, step, loss, settings)


def _kept(folder):
  """The step of the checkpoint that is found, which is whole."""
  checkpoint = Checkpoint(find_newest(folder))
  checkpoint.verify()
  return checkpoint.describe().global_step


def test_the_lowest_is_kept_alone(train, tmp_path):
  folder = tmp_path / 'best'
  best = BestCheckpoint(folder, _FLAGS)
  losses = {1: 0.5, 2: 0.7, 3: 0.5, 4: 0.3}
  assert [_offer(best, train, step, loss) for step, loss in losses.items()] == [
    True,
    False,
    False,
    True,
  ]
  assert _kept(folder) == 4
  parts = ('index', 'data-00000-of-00001')
  assert files_in(folder) == {
    'checkpoint',
    'model.ckpt-4.json',
    *(f'model.ckpt-4.{part}' for part in parts),
  }
  for part in parts:
    name = f'model.ckpt-4.{part}'
    assert (folder / name).read_bytes() == (train / name).read_bytes()


def test_channels_are_carried_along(train, tmp_path):
  best, folder = BestCheckpoint(tmp_path / 'best', _FLAGS), tmp_path / 'best'
  channels = Channels(inputs=(TRANSMISSION,), targets=TARGET_CHANNELS[::-1])
  channels_file.write(train, channels)
  assert _offer(best, train, 1, 0.5)
  assert channels_file.read(folder) == channels
  assert Checkpoint(find_newest(folder)).describe().targets.channels == channels.targets
  assert not _offer(best, train, 2, 0.6)
  assert _offer(best, train, 2, 0.4)
  assert channels_file.read(folder) == channels
  # As long as there are some.
  (train / 'channels.json').unlink()
  assert _offer(best, train, 3, 0.3)
  assert channels_file.read(folder) is None
  assert Checkpoint(find_newest(folder)).describe().targets.channels == TARGET_CHANNELS


def test_record(train, tmp_path):
  best = BestCheckpoint(tmp_path / 'best', _FLAGS)
  _offer(best, train, 2, 0.25)
  assert json.loads((tmp_path / 'best' / 'model.ckpt-2.json').read_text()) == {
    'global_step': 2,
    'total_loss': 0.25,
    'source': str(train / 'model.ckpt-2'),
    'settings': _SETTINGS,
    'flags': _FLAGS,
  }


def test_loss_is_remembered(train, tmp_path):
  _offer(BestCheckpoint(tmp_path / 'best', _FLAGS), train, 1, 0.5)
  again = BestCheckpoint(tmp_path / 'best', _FLAGS)
  assert not _offer(again, train, 1, 0.5)
  assert not _offer(again, train, 2, 0.6)
  assert _offer(again, train, 3, 0.4)
  assert _kept(tmp_path / 'best') == 3


@pytest.mark.parametrize('is_first', [False, True])
def test_settings_that_only_one_of_them_has(train, tmp_path, caplog, is_first):
  best, more = BestCheckpoint(tmp_path / 'best', _FLAGS), _SETTINGS | {'input_range': 'auto'}
  first, second = (more, _SETTINGS) if is_first else (_SETTINGS, more)
  assert _offer(best, train, 1, 0.5, first)
  with caplog.at_level('WARNING'):
    assert not _offer(best, train, 2, 0.4, second)
  (record,) = caplog.records
  shown = [f'--input_range={settings.get("input_range")}' for settings in (first, second)]
  assert f'by {shown[0]}, and stays: losses by {shown[1]} cannot be' in record.getMessage()


def test_loss_of_other_patches_is_not_compared(train, tmp_path, caplog):
  folder = tmp_path / 'best'
  _offer(BestCheckpoint(folder, _FLAGS), train, 1, 0.5)
  other = {**_SETTINGS, 'dataset_eval_directory': ['/b', '/c'], 'metric_num_examples': 8}
  with caplog.at_level('WARNING'):
    assert not _offer(BestCheckpoint(folder, _FLAGS), train, 2, 0.4, other)
  (record,) = caplog.records
  assert record.getMessage().startswith(
    f'{folder} keeps the best checkpoint by --dataset_eval_directory=/a --metric_num_examples=4,'
    ' and stays: losses by --dataset_eval_directory=/b,/c --metric_num_examples=8 cannot be'
    ' compared with its.'
  )
  assert _kept(folder) == 1


def test_two_evaluations_at_once(train, tmp_path):
  """Each of two evaluations sees the checkpoint that the other kept."""
  first, second = (BestCheckpoint(tmp_path / 'best', _FLAGS) for _ in range(2))
  assert _offer(first, train, 1, 0.5)
  assert not _offer(second, train, 2, 0.6)
  assert _offer(second, train, 3, 0.4)
  assert not _offer(first, train, 2, 0.45)
  assert _kept(tmp_path / 'best') == 3


def test_same_step_of_another_training(train, tmp_path):
  """Files of checkpoints of the same step have the same names, but never replace half of a copy."""
  folder = tmp_path / 'best'
  best = BestCheckpoint(folder, _FLAGS)
  contents = {}
  for seed, loss in ((7, 0.5), (8, 0.4), (9, 0.3)):
    random_checkpoint.write_random_checkpoint(
      train, model='FOVEA', base_depth=2, num_z_values=2, global_step=1, seed=seed
    )
    assert _offer(best, train, 1, loss)
    assert _kept(folder) == 1
    assert len(files_in(folder)) == 4
    (data,) = folder.glob('*.data*')
    contents[seed] = data.read_bytes()
    assert contents[seed] == (train / 'model.ckpt-1.data-00000-of-00001').read_bytes()
  assert len(set(contents.values())) == 3


@pytest.mark.parametrize('loss', [math.nan, math.inf])
def test_training_that_diverged(train, tmp_path, loss):
  best = BestCheckpoint(tmp_path / 'best', _FLAGS)
  assert not _offer(best, train, 1, loss)
  assert _offer(best, train, 2, 1e9)
  assert not _offer(best, train, 3, loss)


def test_checkpoint_that_is_deleted_after_it_was_opened(train, tmp_path):
  best = BestCheckpoint(tmp_path / 'best', _FLAGS)
  prefix = train / 'model.ckpt-2'
  with best_checkpoint.opened(prefix) as contents:
    assert contents
    for path in train.iterdir():
      path.unlink()
    assert best.offer(prefix, contents, 2, 0.5, _SETTINGS)
  assert _kept(tmp_path / 'best') == 2


@pytest.mark.parametrize('ending', ['index', 'data-00000-of-00001'])
def test_checkpoint_that_was_deleted_before(train, ending):
  (train / f'model.ckpt-2.{ending}').unlink()
  with best_checkpoint.opened(train / 'model.ckpt-2') as contents:
    assert contents is None


def test_nothing_else_in_the_folder_is_touched(train, tmp_path):
  folder = tmp_path / 'best'
  folder.mkdir()
  others = {'notes.txt', 'model.ckpt-1.png', 'events.out.tfevents.1'}
  for name in others:
    (folder / name).touch()
  best = BestCheckpoint(folder, _FLAGS)
  _offer(best, train, 1, 0.5)
  _offer(best, train, 2, 0.4)
  assert others < files_in(folder)


# Of data, record, index, state file; after the state file, at the first deletion, the newer counts.
_RENAMINGS = range(1, 6)

# A child for each folder, which kills itself before the n-th renaming, or, if there is none, at the
# first deletion. TensorFlow is loaded only once.
_KILLED_AT = """if True:
  import os, pathlib, signal, sys
  from isl.evaluation import best_checkpoint
  train = pathlib.Path(sys.argv[1])
  for wanted, folder in enumerate(map(pathlib.Path, sys.argv[2:]), start=1):
    child = os.fork()
    if not child:
      break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
  else:
    sys.exit()
  renames = 0
  replace = pathlib.Path.replace
  def kill(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
  def killing_replace(self, target):
    global renames
    renames += 1
    if renames == wanted:
      kill()
    return replace(self, target)
  best = best_checkpoint.BestCheckpoint(folder, FLAGS)
  pathlib.Path.replace = killing_replace
  prefix = train / 'model.ckpt-2'
  with best_checkpoint.opened(prefix) as contents:
    if wanted > 4:
      best._delete_all_but = kill
    best.offer(prefix, contents, 2, 0.4, SETTINGS)
"""


def test_kills(train, tmp_path):
  folders = [tmp_path / f'best{renaming}' for renaming in _RENAMINGS]
  for folder in folders:
    _offer(BestCheckpoint(folder, _FLAGS), train, 1, 0.5)
  code = _KILLED_AT.replace('SETTINGS', repr(_SETTINGS)).replace('FLAGS', repr(_FLAGS))
  outcome = finish(python_process(code, train, *folders))
  assert outcome.stdout.split() == ['-9'] * len(folders), outcome.stderr
  for renaming, folder in zip(_RENAMINGS, folders, strict=True):
    step, loss = (1, 0.5) if renaming <= 4 else (2, 0.4)
    assert _kept(folder) == step, renaming
    again = BestCheckpoint(folder, _FLAGS)
    assert not _offer(again, train, 3, loss)
    assert _offer(again, train, 4, 0.3)
    assert _kept(folder) == 4
    assert len(files_in(folder)) == 4
