"""Tests of channels_file.py."""

from __future__ import annotations

import json

import pytest

from isl.checkpoints import channels_file
from isl.checkpoints.channels_file import Channels
from tests.support.program import files_in

_CHANNELS = Channels(inputs=('POLARIZATION', 'TRANSMISSION'), targets=('RFP', 'GFP', 'Zellkörper'))


def test_what_is_written_is_read(tmp_path):
  channels_file.write(tmp_path / 'made', _CHANNELS)
  assert channels_file.read(tmp_path / 'made') == _CHANNELS
  assert json.loads((tmp_path / 'made' / 'channels.json').read_text(encoding='utf-8')) == {
    'format': 1,
    'input_channels': list(_CHANNELS.inputs),
    'target_channels': list(_CHANNELS.targets),
  }
  assert files_in(tmp_path) == {'made/channels.json'}


def test_no_file(tmp_path):
  (tmp_path / 'file').touch()
  for folder in (tmp_path, tmp_path / 'missing', tmp_path / 'file'):
    assert channels_file.read(folder) is None


def test_file_is_carried_along_and_so_is_its_absence(tmp_path):
  channels_file.write(tmp_path / 'one', _CHANNELS)
  channels_file.carry(tmp_path / 'one', tmp_path / 'other')
  assert channels_file.read(tmp_path / 'other') == _CHANNELS
  for _ in range(2):
    channels_file.carry(tmp_path / 'none', tmp_path / 'other')
    assert channels_file.read(tmp_path / 'other') is None


@pytest.mark.parametrize(
  ('listed', 'labels', 'ordered'),
  [
    (None, {'ZEBRA', 'DEAD_CONFOCAL', 'ACTIN', 'DAPI_CONFOCAL'},
     ('DAPI_CONFOCAL', 'DEAD_CONFOCAL', 'ACTIN', 'ZEBRA')),
    (('RFP', 'GFP'), {'GFP', 'RFP'}, ('RFP', 'GFP')),
    (('X', 'RFP', 'Y', 'GFP'), {'GFP', 'RFP'}, ('RFP', 'GFP')),
  ],
)  # fmt: skip
def test_order_of_labels(tmp_path, listed, labels, ordered):
  if listed:
    channels_file.write(tmp_path, Channels(inputs=('B', 'A'), targets=listed))
  assert channels_file.ordered_targets(tmp_path / 'model-1', {'A', 'B'}, labels) == ordered


@pytest.mark.parametrize(
  ('inputs', 'labels', 'words'),
  [
    ({'A'}, {'GFP', 'RFP'}, 'reads A'),
    ({'A', 'B', 'C'}, {'GFP', 'RFP'}, 'reads A, B, C'),
    ({'A', 'B'}, {'GFP', 'CFP', 'DAPI_CONFOCAL'}, 'predicts DAPI_CONFOCAL, CFP, GFP'),
  ],
)
def test_file_of_another_checkpoint(tmp_path, inputs, labels, words):
  channels_file.write(tmp_path, Channels(inputs=('A', 'B'), targets=('GFP', 'RFP')))
  with pytest.raises(ValueError) as caught:
    channels_file.ordered_targets(tmp_path / 'model-1', inputs, labels)
  assert str(caught.value) == (
    f'{str(tmp_path / "channels.json")!r} is not of model-1, which {words}; delete it, or restore'
    ' it'
  )


def _with(**values):
  contents = {'format': 1, 'input_channels': ['TRANSMISSION'], 'target_channels': ['GFP', 'RFP']}
  return json.dumps(contents | values).encode()


@pytest.mark.parametrize('contents', [b'', b'{"format": 1', b'\xff\xfe\x00', b'[' * 100_000])
def test_damaged_file(tmp_path, contents):
  _assert_refused(tmp_path, contents, 'is not JSON; delete it, or restore it')


@pytest.mark.parametrize(
  'contents', [b'[]', b'"x"', b'null', b'{}', _with(format=2), _with(format='1'), _with(format=[])]
)
def test_foreign_file(tmp_path, contents):
  _assert_refused(tmp_path, contents, 'is not a file of channels of this version of isl')


@pytest.mark.parametrize('name', ['input_channels', 'target_channels'])
@pytest.mark.parametrize('value', [None, [], 'GFP', {'GFP': 1}, [3], ['A', ''], ['A', 'B', 'A']])
def test_channels_that_are_no_names(tmp_path, name, value):
  words = f"must have a list of different names as '{name}'"
  _assert_refused(tmp_path, _with(**{name: value}), words)


def _assert_refused(folder, contents, words):
  path = folder / 'channels.json'
  path.write_bytes(contents)
  with pytest.raises(ValueError) as caught:
    channels_file.read(folder)
  message = str(caught.value)
  assert message.startswith(f'{str(path)!r} ')
  assert words in message
  assert '\n' not in message
