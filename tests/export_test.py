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
import sys
import numpy as np, tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
found = {}
for name, stacks in np.load(sys.argv[2]).items():
  predicted = model.signatures['predict'](transmission=tf.constant(stacks))
  found |= {f'{name}/{output}': value.numpy() for output, value in predicted.items()}
described = model.signatures['describe']()
found |= {f'describe/{n}': np.asarray(v.numpy()) for n, v in described.items()}
try:
  model.signatures['predict'](transmission=tf.zeros([1, 18, 17, 3]))
except tf.errors.InvalidArgumentError as e:
  found['too small'] = np.array(str(e))
assert not any(name.split('.')[0] == 'isl' for name in sys.modules)
np.savez(sys.argv[3], **found)
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


def _assert_same(found, checkpoint, stacks, tolerance):
  """Compares with INFER_FULL's numbers, by way of the Predictor."""
  with isl.Predictor(checkpoint, tile_size=4) as predictor:
    for name, of_name in stacks.items():
      for i, stack in enumerate(of_name):
        expected = predictor.predict(
          np.moveaxis(stack, -1, 0), statistics=_STATISTICS, labels=_LABELS
        )
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


class TestSavedModel:
  @pytest.fixture(scope='class')
  def folder(self, checkpoint, tmp_path_factory):
    return _export(checkpoint, tmp_path_factory.mktemp('export'))

  @pytest.fixture(scope='class')
  def found(self, folder, tmp_path_factory):
    """The predictions of a process that cannot import isl."""
    tmp_path = tmp_path_factory.mktemp('fresh')
    np.savez(tmp_path / 'stacks.npz', **_stacks(_SIZES))
    arguments = [folder, tmp_path / 'stacks.npz', tmp_path / 'found.npz']
    # Where isl is, and what else this process was given, is not on this path.
    path = [place for place in sys.path if place.endswith('site-packages')]
    code = f'import sys; sys.path[:0] = {path!r}\n{_FRESH}'
    subprocess.run([sys.executable, '-I', '-c', code, *map(str, arguments)], check=True)
    # Strings are objects.
    return np.load(tmp_path / 'found.npz', allow_pickle=True)

  def test_equals_inference(self, found, checkpoint):
    _assert_same(found, checkpoint, _stacks(_SIZES), 1e-5)

  def test_describes_itself(self, found):
    described = {
      name.removeprefix('describe/'): found[name].tolist()
      for name in found.files
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

  def test_saved_model_cli(self, folder, tmp_path):
    np.save(tmp_path / 'stacks.npy', _stacks(_SIZES)['0'])
    program = 'from tensorflow.python.tools.saved_model_cli import main; main()'
    common = [sys.executable, '-c', program]
    which = ['--dir', str(folder), '--tag_set', 'serve', '--signature_def', 'predict']
    shown = subprocess.run(
      [*common, 'show', *which], check=True, capture_output=True, text=True
    ).stdout
    assert "inputs['transmission']" in shown and 'shape: (-1, -1, -1, 3)' in shown
    files = [f'--inputs=transmission={tmp_path / "stacks.npy"}', f'--outdir={tmp_path / "out"}']
    subprocess.run([*common, 'run', *which, *files], check=True, capture_output=True)
    assert np.load(tmp_path / 'out' / 'DAPI_CONFOCAL_MEDIAN.npy').shape == (1, 8, 8)

  def test_is_written_whole_and_replaced(self, folder, checkpoint):
    record = json.loads((folder / 'run.json').read_text())
    assert record['checkpoint'] == str(checkpoint / 'model.ckpt-1000')
    again = _export(checkpoint, folder.parent, '--infer_statistics=MEDIAN')
    flags = json.loads((again / 'run.json').read_text())['flags']
    assert flags['infer_statistics'] == ['MEDIAN']
    assert [path.name for path in folder.parent.iterdir()] == ['1000']


@pytest.mark.parametrize(
  ('model', 'base_depth', 'sizes'),
  [
    ('FOVEA', 8, _SIZES),
    pytest.param('CONCORDANCE', 6, [(1, 250, 250), (1, 267, 274)], marks=pytest.mark.soak),
  ],
)
def test_onnx_equals_inference(model, base_depth, sizes, tmp_path):
  random_checkpoint.write_random_checkpoint(
    tmp_path / 'checkpoint', model=model, base_depth=base_depth, num_z_values=3
  )
  folder = _export(tmp_path / 'checkpoint', tmp_path / 'export', '--export_format=ONNX')
  assert files_in(folder) == {'model.onnx', 'run.json'}
  session = onnxruntime.InferenceSession(folder / 'model.onnx')
  names = [output.name for output in session.get_outputs()]
  stacks = _stacks(sizes)
  found: dict[str, np.ndarray] = {}
  for name, stack in stacks.items():
    predicted = session.run(names, {'transmission': stack})
    found |= {f'{name}/{n}': value for n, value in zip(names, predicted, strict=True)}
  _assert_same(found, tmp_path / 'checkpoint', stacks, 1e-4)
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


def test_newest_checkpoint_of_base(checkpoint, tmp_path):
  (tmp_path / 'base').mkdir()
  (tmp_path / 'base' / 'train').symlink_to(checkpoint)
  newest = find_newest(checkpoint).name
  outcome = run_in_process(
    launch.run,
    '--mode=EXPORT',
    '--metric=STITCH',
    f'--base_directory={tmp_path / "base"}',
    f'--export_directory={tmp_path / "export"}',
    '--infer_channel_whitelist=DAPI_CONFOCAL',
  )
  assert outcome.status == 0 and newest in outcome.stderr
  assert (tmp_path / 'export' / '1000' / 'saved_model.pb').is_file()
