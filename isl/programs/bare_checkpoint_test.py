"""Tests of bare_checkpoint.py."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from isl.checkpoints import saving
from isl.checkpoints.checkpoint import Checkpoint, find_newest
from isl.core.channels import input_stack, target_stack
from isl.models.plan import variable_shapes
from isl.programs import bare_checkpoint, random_checkpoint
from isl.programs.bare_checkpoint import copy_bare
from tests.support.program import files_in, make_fovea_shallow, small_disk

# In their canonical order.
_LABELS = ('DAPI_CONFOCAL', 'NFH_CONFOCAL', 'MAP2_CONFOCAL')


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
  """Checkpoints of few variables."""
  make_fovea_shallow(monkeypatch)


@pytest.fixture
def train(tmp_path):
  """A folder with a checkpoint of three labels, and an optimizer's state in it."""
  folder = tmp_path / 'train'
  prefix = random_checkpoint.write_random_checkpoint(
    folder, model='FOVEA', base_depth=6, num_z_values=2, target_channels=_LABELS
  )
  checkpoint = Checkpoint(prefix)
  values = {name: checkpoint.value(name) for name in checkpoint.shapes}
  slots = {f'{name}/Adam': value for name, value in values.items()}
  saving.write_values(prefix, values | slots)
  return folder


def _main(monkeypatch, *arguments):
  monkeypatch.setattr(sys, 'argv', ['bare_checkpoint', *map(str, arguments)])
  with pytest.raises(SystemExit) as caught:
    bare_checkpoint.main()
  return caught.value.code


@pytest.mark.parametrize(
  'labels', [None, ('NFH_CONFOCAL',), ('MAP2_CONFOCAL', 'DAPI_CONFOCAL', 'NFH_CONFOCAL')]
)
def test_the_network_alone_is_copied(train, tmp_path, labels):
  prefix = copy_bare(train, tmp_path / 'made' / 'copy', labels)
  assert find_newest(tmp_path / 'made' / 'copy') == prefix
  copy, original = Checkpoint(prefix), Checkpoint(find_newest(train))
  description = copy.describe()
  assert description.global_step == original.describe().global_step
  assert description.targets.channels == (labels or _LABELS)
  heads = input_stack(2).keys + target_stack(labels or _LABELS).keys
  assert dict(copy.shapes) == dict(variable_shapes(description.plan(), heads)) | {'global_step': ()}
  for name in copy.shapes:
    np.testing.assert_array_equal(copy.value(name), original.value(name), err_msg=name)


def test_copy_of_another_network_in_the_same_folder(train, tmp_path):
  """channels.json beside several copies is that of the newest."""
  copy_bare(train, tmp_path / 'copy', ('NFH_CONFOCAL',))
  random_checkpoint.write_random_checkpoint(
    tmp_path / 'other', model='FOVEA', base_depth=6, num_z_values=2, input_channels=('DIC', 'X')
  )
  description = Checkpoint(copy_bare(tmp_path / 'other', tmp_path / 'copy')).describe()
  assert description.inputs == input_stack(2, ('DIC', 'X'))
  assert description.targets == target_stack()


def test_command_line(train, tmp_path, monkeypatch, capsys):
  arguments = ['--from', train, '--to', tmp_path / 'copy', '--target_channels', 'DAPI_CONFOCAL']
  monkeypatch.setattr(sys, 'argv', ['bare_checkpoint', *map(str, arguments)])
  bare_checkpoint.main()
  assert capsys.readouterr().out == f'{tmp_path / "copy" / "model.ckpt-1000"}\n'


def test_label_that_is_not_predicted(train, tmp_path, monkeypatch):
  arguments = ['--from', train, '--to', tmp_path / 'copy', '--target_channels']
  assert _main(monkeypatch, *arguments, 'DAPI_CONFOCAL,TUJ1_WIDEFIELD') == (
    f"bare_checkpoint: --target_channels has TUJ1_WIDEFIELD, which '{train / 'model.ckpt-1000'}'"
    f' does not predict; it predicts {", ".join(_LABELS)}'
  )
  assert not (tmp_path / 'copy').exists()


def test_no_checkpoint(tmp_path, monkeypatch):
  line = _main(monkeypatch, '--from', tmp_path, '--to', tmp_path / 'copy')
  assert (
    line == f'bare_checkpoint: {str(tmp_path)!r} holds no checkpoint: it has no file named *.index'
  )


def test_folder_of_the_training_itself(train, tmp_path, monkeypatch):
  (tmp_path / 'link').symlink_to(train)
  before = {name: (train / name).read_bytes() for name in files_in(train)}
  for folder in (train, tmp_path / 'link'):
    line = _main(monkeypatch, '--from', train, '--to', folder)
    assert f'--to must be another folder than --from, got {str(folder)!r}' in line
  assert {name: (train / name).read_bytes() for name in files_in(train)} == before


def test_full_disk(train, tmp_path, monkeypatch):
  with small_disk(1000):
    line = _main(monkeypatch, '--from', train, '--to', tmp_path / 'copy')
  assert f'bare_checkpoint: {tmp_path / "copy" / "model.ckpt-1000"} cannot be written' in line
  assert '\n' not in line
  assert not files_in(tmp_path / 'copy')
