"""Tests of make_shards.py: its command line."""

import pathlib

import pytest

from isl.core.experiment import ShardReading
from isl.data import shard_reading
from isl.images import finding
from isl.images.fields_of_view import FieldFiles
from isl.programs import make_shards
from tests.support.program import Outcome, run_in_process, write_field

_CHANNELS = ('GFP', 'MAP2_CONFOCAL', 'NFH_CONFOCAL')


def _images(folder: pathlib.Path, rows=40, columns=30, **arguments) -> list[FieldFiles]:
  write_field(folder, rows=rows, columns=columns, channels=_CHANNELS, **arguments)
  return finding.find_all([folder])


def _read(paths: list[pathlib.Path]) -> list[FieldFiles]:
  return shard_reading.read_tiles(
    ShardReading(paths=tuple(paths), num_threads=1, batch_size=1, capacity=1, skip_corrupt=False)
  )


def _run(*arguments: object) -> Outcome:
  return run_in_process(make_shards.main, *arguments)


def test_program_writes_fields_of_several_folders_and_says_so(tmp_path):
  for name in ('a', 'b'):
    _images(tmp_path / name)
  folders = f'{tmp_path / "a"},{tmp_path / "b"}'
  outcome = _run(f'--dataset_directory={folders}', f'--output={tmp_path}/s-%05d', '--num_shards=3')
  assert outcome.status == 0, outcome.stderr
  assert outcome.stdout.startswith('3 shards (1 for evaluation), ')
  assert 'make_shards: 2 of 2 fields done' in outcome.stderr
  found = _read([tmp_path / f's-{i:05d}' for i in range(3)])
  assert [field.name.rpartition(',')[2] for field in found] == ['folder-a', 'folder-b']
  assert all(
    field.channels == ('GFP', 'MAP2_CONFOCAL', 'NFH_CONFOCAL', 'PHASE_CONTRAST') for field in found
  )


def test_program_writes_the_channels_that_are_asked_for(tmp_path):
  _images(tmp_path / 'a', further_inputs=('DAPI_WIDEFIELD',))
  flags = ('--num_shards=1', '--input_channels=TRANSMISSION', '--target_channels=GFP')
  outcome = _run(f'--dataset_directory={tmp_path / "a"}', f'--output={tmp_path}/s-%d', *flags)
  assert outcome.status == 0, outcome.stderr
  (field,) = _read([tmp_path / 's-0'])
  assert field.channels == ('GFP', 'PHASE_CONTRAST')


@pytest.mark.parametrize(
  ('flag', 'channels'),
  [
    ('--target_channels=GFP', ('GFP', 'PHASE_CONTRAST')),
    ('--input_channels=TRANSMISSION', ('GFP', 'MAP2_CONFOCAL', 'NFH_CONFOCAL', 'PHASE_CONTRAST')),
  ],
)
def test_channels_of_the_other_kind_are_all_written(tmp_path, flag, channels, monkeypatch):
  _images(tmp_path / 'a')
  monkeypatch.setenv('HOME', str(tmp_path))
  outcome = _run('--dataset_directory=~/a', '--output=~/s-%d', '--num_shards=1', flag)
  assert outcome.status == 0, outcome.stderr
  (field,) = _read([tmp_path / 's-0'])
  assert field.channels == channels


@pytest.mark.parametrize(
  ('flags', 'what'),
  [
    (
      ('--output={}/s-%d', '--target_channels=GFP,MAP2'),
      'no field of view has an image of MAP2, which --target_channels names; the labels there are:'
      ' GFP, MAP2_CONFOCAL, NFH_CONFOCAL',
    ),
    ((), "--output must have one %d (or %05d) for the number of the shard, got 'shards'"),
    (('--output={}/s-%d-%d',), '--output must have one %d'),
    (('--output={}/s-%s',), '--output must have one %d'),
    (('--dataset_directory={}/none',), "none' does not exist"),
    (('--output={}/images', '--dataset_directory={}'), 'has no PNG in it'),
    (('--output={}/s-%d', '--input_channels=DIC'), 'has no image of DIC'),
  ],
)
def test_bad_flags_are_said_in_a_line(tmp_path, flags, what):
  _images(tmp_path / 'images')
  given = (f'--dataset_directory={tmp_path}/images', '--output=shards', '--num_shards=1')
  outcome = _run(*given, *(flag.replace('{}', str(tmp_path)) for flag in flags))
  assert outcome.error.startswith('make_shards: ') and what in outcome.error
  assert not list(tmp_path.glob('s-*'))


@pytest.mark.parametrize(
  'flag', ['--num_shards=0', '--tile_size=x', '--png_compression=10', '--dataset_directory=a,']
)
def test_numbers_out_of_range_are_refused(tmp_path, flag):
  outcome = _run('--dataset_directory=a', '--output=s-%d', '--num_shards=1', flag)
  assert outcome.status == 2 and flag.partition('=')[0] in outcome.stderr
