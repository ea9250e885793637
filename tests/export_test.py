"""EXPORT, as programs see it that know nothing of isl."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest

import isl
from isl import launch
from isl.checkpoints.checkpoint import find_newest
from isl.core import statistic
from isl.programs import random_checkpoint
from tests.support.program import SHALLOW, files_in, make_fovea_shallow, run_in_process

_LABELS = ['MAP2_CONFOCAL', 'DAPI_CONFOCAL']
_STATISTICS = ['MODE', 'MEDIAN', 'MEAN', 'STANDARD_DEVIATION', 'PROBABILITY_NONZERO', 'ENTROPY']
_STATISTICS += ['QUANTILE_2.5']
# Of the shallow FOVEA: one block; two by three; several tiles of 4 blocks, of an
# odd number and some pixels that make none.
_SIZES = [(1, 18, 18), (2, 26, 34), (1, 61, 111)]
_FRESH = """
import contextlib, io, sys
import numpy as np, tensorflow as tf
from tensorflow.python.tools import saved_model_cli

def command_line(*arguments):
  sys.argv = ['saved_model_cli', *arguments]
  out = io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
    saved_model_cli.main()
  return out.getvalue()

folder, stacks, output, images = sys.argv[1:]
model = tf.saved_model.load(folder)
found = {}
for name, of_name in np.load(stacks).items():
  predicted = model.signatures['predict'](transmission=tf.constant(of_name))
  found |= {f'{name}/{output}': value.numpy() for output, value in predicted.items()}
described = model.signatures['describe']()
found |= {f'describe/{n}': np.asarray(v.numpy()) for n, v in described.items()}
try:
  model.signatures['predict'](transmission=tf.zeros([1, 18, 17, 3]))
except tf.errors.InvalidArgumentError as e:
  found['too small'] = np.array(str(e))
which = ['--dir', folder, '--tag_set', 'serve', '--signature_def', 'predict']
found['shown'] = np.array(command_line('show', *which))
command_line('run', *which, f'--inputs=transmission={stacks}[0]', f'--outdir={images}')
assert not any(name.split('.')[0] == 'isl' for name in sys.modules)
np.savez(output, **found)
"""


def _export(checkpoint, folder, *flags):
  outcome = run_in_process(
    launch.run,
    '--mode=EXPORT',
    '--metric=STITCH',
    f'--restore_directory={checkpoint}',
    f'--export_directory={folder}',
    f'--infer_statistics={",".join(_STATISTICS)}',
    f'--infer_channel_whitelist={",".join(_LABELS)}',
    '--infer_size=4',
    *flags,
  )
  assert outcome.status == 0, outcome.stderr
  assert not outcome.error_lines
  return pathlib.Path(folder) / '1000'


def _stacks(sizes, depth=3):
  rng = np.random.default_rng(1)
  return {str(i): rng.random((*size, depth), np.float32) for i, size in enumerate(sizes)}


def _predicted(checkpoint, stacks):
  """INFER_FULL's numbers, by way of the Predictor: for each stack its name, number and these."""
  with isl.Predictor(checkpoint, tile_size=4) as predictor:
    return [
      (name, i, predictor.predict(np.moveaxis(s, -1, 0), statistics=_STATISTICS, labels=_LABELS))
      for name, of_name in stacks.items()
      for i, s in enumerate(of_name)
    ]


def _assert_same(found, predicted, tolerance):
  for name, i, expected in predicted:
    for label in _LABELS:
      for kind in _STATISTICS:
        value = found[f'{name}/{label}_{kind}'][i]
        close = np.abs(value - expected[label][kind]) <= tolerance
        # A class may be the other of two that are about equally likely.
        share = 0.999 if statistic.is_class(statistic.parse(kind)) else 1
        assert value.shape == close.shape and close.mean() >= share, (name, label, kind)


@pytest.fixture(scope='module', autouse=True)
def shallow():
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    yield


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  folder = tmp_path_factory.mktemp('checkpoint')
  random_checkpoint.write_random_checkpoint(folder, model='FOVEA', base_depth=8, num_z_values=3)
  return folder


@pytest.fixture(scope='module')
def predicted(checkpoint):
  return _predicted(checkpoint, _stacks(_SIZES))


class TestSavedModel:
  @pytest.fixture(scope='class')
  def folder(self, checkpoint, tmp_path_factory):
    return _export(checkpoint, tmp_path_factory.mktemp('export'))

  @pytest.fixture(scope='class')
  def found(self, folder, tmp_path_factory):
    """The predictions of a process that cannot import isl, and what saved_model_cli says there."""
    tmp_path = tmp_path_factory.mktemp('fresh')
    np.savez(tmp_path / 'stacks.npz', **_stacks(_SIZES))
    arguments = [folder, tmp_path / 'stacks.npz', tmp_path / 'found.npz', tmp_path / 'images']
    # Where isl is, and what else this process was given, is not on this path.
    path = [place for place in sys.path if place.endswith('site-packages')]
    code = f'import sys; sys.path[:0] = {path!r}\n{_FRESH}'
    subprocess.run([sys.executable, '-I', '-c', code, *map(str, arguments)], check=True)
    # Strings are objects.
    found = dict(np.load(tmp_path / 'found.npz', allow_pickle=True))
    return found | {f'run/{path.stem}': np.load(path) for path in (tmp_path / 'images').iterdir()}

  def test_equals_inference(self, found, predicted):
    _assert_same(found, predicted, 1e-5)

  def test_describes_itself(self, found):
    described = {
      name.removeprefix('describe/'): found[name].tolist()
      for name in found
      if name.startswith('describe/')
    }
    assert described == {
      'labels': [label.encode() for label in _LABELS],
      'statistics': [kind.encode() for kind in _STATISTICS],
      'input_channels': [b'TRANSMISSION'],
      'z_positions': [0, 0.5, 1],
      'patch': SHALLOW.patch,
      'output': 8,
      'margin': SHALLOW.margin,
      'global_step': 1000,
      'model': b'FOVEA',
    }

  def test_says_what_is_too_small(self, found):
    text = 'transmission must have at least 18 rows and columns, got the shape'
    assert text in str(found['too small'])

  def test_saved_model_cli(self, found):
    shown = str(found['shown'])
    assert "inputs['transmission']" in shown and 'shape: (-1, -1, -1, 3)' in shown
    assert found['run/DAPI_CONFOCAL_MEDIAN'].shape == (1, 8, 8)

  def test_is_written_whole_and_replaced(self, folder, checkpoint, tmp_path):
    """An export of the newest checkpoint in BASE replaces the older one."""
    record = json.loads((folder / 'run.json').read_text())
    assert record['checkpoint'] == str(checkpoint / 'model.ckpt-1000')
    (tmp_path / 'train').symlink_to(checkpoint)
    outcome = run_in_process(
      launch.run,
      '--mode=EXPORT',
      '--metric=STITCH',
      f'--base_directory={tmp_path}',
      f'--export_directory={folder.parent}',
      '--infer_channel_whitelist=DAPI_CONFOCAL',
      '--infer_statistics=MEDIAN',
    )
    assert outcome.status == 0 and find_newest(checkpoint).name in outcome.stderr
    flags = json.loads((folder / 'run.json').read_text())['flags']
    assert flags['infer_statistics'] == ['MEDIAN']
    assert (folder / 'saved_model.pb').is_file()
    assert [path.name for path in folder.parent.iterdir()] == ['1000']


@pytest.mark.parametrize(
  ('model', 'sizes'),
  [
    ('FOVEA', _SIZES),
    pytest.param('CONCORDANCE', [(1, 250, 250), (1, 267, 274)], marks=pytest.mark.soak),
  ],
)
def test_onnx_equals_inference(request, model, sizes, tmp_path):
  stacks = _stacks(sizes)
  if model == 'FOVEA':
    checkpoint, predicted = map(request.getfixturevalue, ('checkpoint', 'predicted'))
  else:
    checkpoint = tmp_path / 'checkpoint'
    random_checkpoint.write_random_checkpoint(checkpoint, model=model, base_depth=6, num_z_values=3)
    predicted = _predicted(checkpoint, stacks)
  folder = _export(checkpoint, tmp_path / 'export', '--export_format=ONNX')
  assert files_in(folder) == {'model.onnx', 'run.json'}
  session = onnxruntime.InferenceSession(folder / 'model.onnx')
  names = [output.name for output in session.get_outputs()]
  found: dict[str, np.ndarray] = {}
  for name, stack in stacks.items():
    outputs = session.run(names, {'transmission': stack})
    found |= {f'{name}/{n}': value for n, value in zip(names, outputs, strict=True)}
  _assert_same(found, predicted, 1e-4)
  properties = onnx.load(folder / 'model.onnx').metadata_props
  described = {entry.key: json.loads(entry.value) for entry in properties}
  assert described['labels'] == _LABELS and described['model'] == model


def _error(*flags):
  return run_in_process(launch.run, '--mode=EXPORT', '--metric=STITCH', *flags).error


def test_bad_input(checkpoint, tmp_path):
  from_checkpoint = f'--restore_directory={checkpoint}'
  to = f'--export_directory={tmp_path / "export"}'
  assert '--infer_channel_whitelist has GFP' in _error(
    from_checkpoint, to, '--infer_channel_whitelist=GFP'
  )
  assert '--infer_statistics must name a statistic' in _error(
    from_checkpoint, to, '--infer_statistics='
  )
  assert str(tmp_path) in _error(f'--restore_directory={tmp_path}', to)
  assert not (tmp_path / 'export').exists()
  (tmp_path / 'export' / '1000').mkdir(parents=True)
  (tmp_path / 'export' / '1000' / 'thesis.txt').write_text('mine')
  assert 'will not be replaced' in _error(from_checkpoint, to)
  assert files_in(tmp_path / 'export') == {'1000/thesis.txt'}
