"""Tests of checkpoint.py."""

from __future__ import annotations

import os
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from isl.checkpoints import saving
from isl.checkpoints.checkpoint import Checkpoint, find_newest
from isl.core.channels import TRANSMISSION, ImageKey, target_stack
from isl.models.networks import NETWORKS
from isl.models.plan import make_plan, variable_shapes
from isl.programs import random_checkpoint
from isl.programs.random_checkpoint import write_random_checkpoint
from tests.support.program import make_concordance_shallow, make_fovea_shallow

_RIGHT: dict[str, Any] = {'model': 'CONCORDANCE', 'base_depth': 9, 'num_z_values': 3}


def _touch(folder: pathlib.Path, *names: str, state: str | None = None) -> pathlib.Path:
  """Empty files, which is enough to be found: an .index and a .data of each name."""
  for name in names:
    for ending in ('index', 'data-00000-of-00001'):
      (folder / f'{name}.{ending}').touch()
  if state is not None:
    (folder / 'checkpoint').write_text(
      f'model_checkpoint_path: "{state}"\nall_model_checkpoint_paths: "{state}"\n'
    )
  return folder


@pytest.mark.parametrize(
  'state',
  [
    'model.ckpt-20',
    '/home/somebody/else/model.ckpt-20',
    './model.ckpt-20',
    'C:\\\\runs\\\\model.ckpt-20',  # Backslashes are escaped in it.
    '/home/andr\\303\\251/model.ckpt-20',
  ],
)
def test_state_file_decides(tmp_path, state):
  folder = _touch(tmp_path, 'model.ckpt-3', 'model.ckpt-20', 'model.ckpt-100', state=state)
  assert find_newest(folder) == folder / 'model.ckpt-20'


@pytest.mark.parametrize('state', [None, '/gone/model.ckpt-2000', ''])
def test_largest_step_without_a_state_file_that_helps(tmp_path, state):
  folder = _touch(tmp_path, 'model.ckpt-9', 'model.ckpt-100', 'model.ckpt-20', state=state)
  assert find_newest(folder) == folder / 'model.ckpt-100'


@pytest.mark.parametrize('contents', [b'', b'\xff\x00\xfe', b'model_checkpoint_path', b'"'])
def test_damaged_state_file_is_as_none(tmp_path, contents):
  folder = _touch(tmp_path, 'model.ckpt-9', 'model.ckpt-20')
  (folder / 'checkpoint').write_bytes(contents)
  assert find_newest(str(folder)) == folder / 'model.ckpt-20'


def test_name_without_a_step(tmp_path):
  assert find_newest(_touch(tmp_path, 'inception')) == tmp_path / 'inception'
  assert find_newest(_touch(tmp_path, 'model.ckpt-0')) == tmp_path / 'model.ckpt-0'


@pytest.mark.parametrize('name', ['a*b?[c]-5', 'model [copy].ckpt-5', 'mödel-5'])
def test_odd_names(tmp_path, name):
  assert find_newest(_touch(tmp_path, name)) == tmp_path / name


@pytest.mark.parametrize('names', [[], ['readme.txt'], ['model.ckpt-5.meta', 'checkpoint']])
def test_no_checkpoint_in_the_folder(tmp_path, names):
  for name in names:
    (tmp_path / name).touch()
  with pytest.raises(ValueError, match=r'holds no checkpoint: it has no file named \*.index'):
    find_newest(tmp_path)


def test_no_folder(tmp_path):
  (tmp_path / 'file').touch()
  for path in (tmp_path / 'missing', tmp_path / 'file'):
    with pytest.raises(ValueError, match=f"'{path}' is not a folder"):
      find_newest(path)


def test_half_a_checkpoint(tmp_path):
  (tmp_path / 'model.ckpt-5.index').touch()
  with pytest.raises(ValueError, match=r"model.ckpt-5' is incomplete"):
    find_newest(tmp_path)


def test_data_without_an_index_are_no_reason_to_take_an_older_checkpoint(tmp_path):
  _touch(tmp_path, 'model.ckpt-5')
  (tmp_path / 'model.ckpt-50.data-00000-of-00001').touch()
  with pytest.raises(ValueError, match=r"model.ckpt-50' is incomplete"):
    find_newest(tmp_path)


def test_data_of_another_checkpoint_does_not_make_it_whole(tmp_path):
  _touch(tmp_path, 'model.ckpt-5')
  (tmp_path / 'model.ckpt-50.index').touch()
  with pytest.raises(ValueError, match=r"model.ckpt-50' is incomplete"):
    find_newest(tmp_path)


def _write(folder, **kwargs) -> pathlib.Path:
  kwargs = {'model': 'FOVEA', 'base_depth': 4, 'num_z_values': 2, **kwargs}
  return random_checkpoint.write_random_checkpoint(folder, **kwargs)


@pytest.fixture(scope='module')
def fovea(tmp_path_factory):
  """The prefix of a narrow one."""
  return _write(tmp_path_factory.mktemp('fovea'))


@pytest.fixture
def shallow(monkeypatch):
  """Networks of few variables, where it does not matter which there are."""
  make_fovea_shallow(monkeypatch)
  make_concordance_shallow(monkeypatch)


@pytest.fixture(scope='module')
def shallow_prefix(tmp_path_factory):
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    return _write(tmp_path_factory.mktemp('shallow'))


@pytest.fixture
def shallow_fovea(shallow, shallow_prefix):
  """The prefix of a shallow one, which FOVEA is in this test."""
  return shallow_prefix


@pytest.fixture(scope='module')
def concordance(tmp_path_factory):
  return _write(
    tmp_path_factory.mktemp('concordance'), model='CONCORDANCE', base_depth=9, num_z_values=3
  )


def _values(prefix) -> dict[str, np.ndarray]:
  reader = tf.train.load_checkpoint(os.fspath(prefix))
  return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def _save(prefix, values) -> pathlib.Path:
  saving.write_values(prefix, values)
  return prefix


def _assert_one_line_about(error, prefix):
  assert str(error).startswith(f'checkpoint {str(prefix)!r} '), error
  assert '\n' not in str(error)


def test_description(fovea, concordance):
  description = Checkpoint(fovea).describe()
  assert (description.model, description.global_step) == ('FOVEA', 1000)
  assert description.inputs.z_values == (0.0, 1.0)
  assert description.targets == target_stack()
  assert description.heads == description.inputs.keys + description.targets.keys
  assert description.plan() == make_plan(NETWORKS['FOVEA'], 4, 2)
  assert description.num_other_variables == 1  # global_step
  shapes = [shape for _, shape in variable_shapes(description.plan(), description.heads)]
  assert description.num_model_variables == len(shapes)
  assert description.num_parameters == sum(map(np.prod, shapes))
  description = Checkpoint(concordance).describe()
  assert (description.model, len(description.inputs.z_values)) == ('CONCORDANCE', 3)
  assert description.plan() == make_plan(NETWORKS['CONCORDANCE'], 9, 3)


def test_full_width(tmp_path):
  prefix = _write(
    tmp_path, model='CONCORDANCE', base_depth=398, num_z_values=26, global_step=375000
  )
  checkpoint = Checkpoint(prefix)
  description = checkpoint.describe()
  assert description.base_depths == range(397, 401)
  assert description.base_depth == 400
  assert str(description).splitlines() == [
    'model: CONCORDANCE',
    'base_depth: 400 (397 to 400 give the same network)',
    'num_z_values: 26',
    'target channels: DAPI_CONFOCAL, DAPI_WIDEFIELD, CELLMASK_CONFOCAL, TUJ1_WIDEFIELD,'
    ' NFH_CONFOCAL, MAP2_CONFOCAL, ISLET_WIDEFIELD, DEAD_CONFOCAL, NEURITE_CONFOCAL',
    'global step: 375000',
    'variables: 1252 of the model (9,309,480 parameters), 1 others',
  ]
  for base_depth in description.base_depths:
    checkpoint.check_fits(model='CONCORDANCE', base_depth=base_depth, num_z_values=26)


@pytest.mark.parametrize(('model', 'base_depth'), [('CONCORDANCE', 9), ('FOVEA', 4)])
def test_equivalent_widths(request, model, base_depth):
  description = Checkpoint(request.getfixturevalue(model.lower())).describe()
  plan = make_plan(NETWORKS[model], base_depth, len(description.inputs.z_values))
  widths = range(NETWORKS[model].min_base_depth, 100)
  same = [
    w for w in widths if make_plan(NETWORKS[model], w, len(description.inputs.z_values)) == plan
  ]
  assert list(description.base_depths) == same


@pytest.mark.usefixtures('shallow')
def test_labels_are_in_the_order_of_the_file_or_the_canonical_one(tmp_path):
  channels = ('ZEBRA', 'NEURITE_CONFOCAL', 'DEAD_CONFOCAL')
  prefix = _write(tmp_path, target_channels=channels)
  assert Checkpoint(prefix).describe().targets.channels == channels
  (tmp_path / 'channels.json').unlink()
  description = Checkpoint(prefix).describe()
  assert description.targets.channels == ('DEAD_CONFOCAL', 'NEURITE_CONFOCAL', 'ZEBRA')


@pytest.mark.usefixtures('shallow')
@pytest.mark.parametrize(('model', 'base_depth'), [('CONCORDANCE', 9), ('FOVEA', 4)])
@pytest.mark.parametrize('has_file', [False, True])
def test_input_channels_are_in_the_names_of_variables(tmp_path, model, base_depth, has_file):
  channels = (TRANSMISSION, 'POLARIZATION')
  prefix = _write(tmp_path, model=model, base_depth=base_depth, input_channels=channels)
  if not has_file:
    (tmp_path / 'channels.json').unlink()
  checkpoint = Checkpoint(prefix)
  description = checkpoint.describe()
  assert [str(key) for key in description.inputs.keys] == [
    '0.0/POLARIZATION',
    '0.0/TRANSMISSION',
    '1.0/POLARIZATION',
    '1.0/TRANSMISSION',
  ]
  assert base_depth in description.base_depths
  assert description.plan() == make_plan(NETWORKS[model], base_depth, 4)
  assert description.plan() == checkpoint.check_fits(model=None, base_depth=None, num_z_values=None)
  assert 'num_z_values: 2\ninput channels: POLARIZATION, TRANSMISSION\ntarget' in str(description)
  checkpoint.verify()
  with pytest.raises(ValueError, match='it needs --num_z_values 2 ') as e:
    checkpoint.check_fits(model=None, base_depth=None, num_z_values=4)
  _assert_one_line_about(e.value, prefix)


@pytest.mark.usefixtures('shallow')
@pytest.mark.parametrize('head', ['0.0/POLARIZATION', '0.5/TRANSMISSION'])
def test_head_that_is_missing_in_a_z_stack(tmp_path, head):
  channels = (TRANSMISSION, 'POLARIZATION')
  prefix = _write(tmp_path, input_channels=channels, num_z_values=3)
  values = {n: v for n, v in _values(prefix).items() if not n.startswith(f'head/{head}/')}
  with pytest.raises(ValueError, match=f'has no head/{head}: expected a head for each of') as e:
    Checkpoint(_save(tmp_path / 'model-1', values)).describe()
  _assert_one_line_about(e.value, tmp_path / 'model-1')
  assert 'POLARIZATION, TRANSMISSION at 3 z positions from 0.0 to 1.0, as it has' in str(e.value)


@pytest.mark.parametrize(('name', 'step'), [('model.ckpt-77', 77), ('model', 0)])
def test_step_is_in_the_name_where_no_variable_has_it(tmp_path, shallow_fovea, name, step):
  values = _values(shallow_fovea)
  del values['global_step']
  assert Checkpoint(_save(tmp_path / name, values)).describe().global_step == step


@pytest.mark.parametrize('dtype', [np.int32, np.int64])
def test_step_is_the_variable_whatever_the_name(tmp_path, shallow_fovea, dtype):
  values = _values(shallow_fovea) | {'global_step': np.array(5, dtype)}
  assert Checkpoint(_save(tmp_path / 'model.ckpt-77', values)).describe().global_step == 5


@pytest.mark.usefixtures('shallow')
@pytest.mark.parametrize(
  ('optimizer', 'use_resource'),
  [
    (lambda: tf.train.AdamOptimizer(1e-4), False),
    (lambda: tf.train.MomentumOptimizer(1e-4, 0.875), True),
  ],
  ids=['adam', 'momentum'],
)
def test_checkpoint_as_training_left_it(tmp_path, optimizer, use_resource):
  """Written by a Saver, with slots, averages, a meta file, and then moved to another folder."""
  plan = make_plan(NETWORKS['FOVEA'], 1, 1)
  heads = (ImageKey(0.0, 'TRANSMISSION'), *target_stack(['DAPI_CONFOCAL']).keys)
  rng = np.random.default_rng(0)
  values = {
    name: rng.normal(size=shape).astype(np.float32) for name, shape in variable_shapes(plan, heads)
  }
  trained = [f'head/{key}/residual_v2_conv/Conv/weights' for key in heads]
  with tf.Graph().as_default(), tf.Session() as session:
    variables = {
      name: tf.get_variable(name, initializer=value, use_resource=use_resource)
      for name, value in values.items()
    }
    step = tf.train.get_or_create_global_step()
    loss = tf.add_n([tf.reduce_sum(variables[name] ** 2) for name in trained])
    optimizer().minimize(loss, var_list=[variables[name] for name in trained])
    average = tf.train.ExponentialMovingAverage(0.9)
    average.apply([variables[name] for name in trained])
    tf.get_variable('unrelated', [3])
    session.run(tf.variables_initializer(list(variables.values())))
    session.run(tf.global_variables_initializer())
    session.run(step.assign(41))
    names = {v.op.name for v in tf.global_variables()}
    prefix = pathlib.Path(
      tf.train.Saver().save(session, str(tmp_path / 'there' / 'model.ckpt'), global_step=41)
    )
  assert prefix.with_name('model.ckpt-41.meta').exists()
  here = (tmp_path / 'there').rename(tmp_path / 'here')
  checkpoint = Checkpoint(find_newest(here))
  assert checkpoint.prefix == here / 'model.ckpt-41'
  description = checkpoint.describe()
  assert (description.model, description.heads, description.global_step) == ('FOVEA', heads, 41)
  assert description.num_model_variables == len(values)
  assert description.num_other_variables == len(names) - len(values) >= 6
  checkpoint.check_fits(model='FOVEA', base_depth=1, num_z_values=1)
  checkpoint.verify()
  for name, value in values.items():
    np.testing.assert_array_equal(checkpoint.value(name), value, err_msg=name)


def test_custom_getter_gives_the_values(shallow_fovea):
  checkpoint = Checkpoint(shallow_fovea)
  name = 'upper_recursion_0/reduce_rv2/Conv/weights'
  value = checkpoint.value(name)
  with (
    tf.Graph().as_default() as graph,
    tf.Session() as session,
    tf.variable_scope('', custom_getter=checkpoint.custom_getter),
  ):
    found = session.run(tf.get_variable(name, value.shape))
    assert not graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES)
  np.testing.assert_array_equal(found, value)


def _misfit(prefix, **flags) -> str:
  with pytest.raises(ValueError) as e:
    Checkpoint(prefix).check_fits(**{**_RIGHT, **flags})
  _assert_one_line_about(e.value, prefix)
  return str(e.value)


def test_right_flags_fit(concordance):
  Checkpoint(concordance).check_fits(**_RIGHT)


def test_wrong_width_names_variables_and_the_flag(concordance):
  message = _misfit(concordance, base_depth=400)
  # The first module's expansion, at size 70: its input's depth, or 211 / 39 * ceil(400 / 70).
  name = 'lower_scale_0_recursion_0/expand_rv2/Conv/weights'
  assert f'{name} is [3, 3, 32, 16], not [3, 3, 32, 34]' in message
  assert 'it needs --base_depth 12 (or leave these flags out)' in message
  assert '--model' not in message and '--num_z_values' not in message


def test_wrong_number_of_z_depths_names_variables_and_the_flag(concordance):
  message = _misfit(concordance, num_z_values=26)
  assert 'Conv/weights is [1, 1, 6, 16], not [1, 1, 52, 16]' in message
  # Heads that only 26 depths have.
  assert 'head/0.04/TRANSMISSION/residual_v2_conv/BatchNorm/gamma is missing' in message
  assert 'it needs --num_z_values 3 (or' in message


def test_wrong_model_names_variables_and_the_flag(concordance):
  message = _misfit(concordance, model='FOVEA')
  assert 'lower_scale_0_recursion_0/expand_rv2/BatchNorm/gamma is [16], not [6]' in message
  assert 'it needs --model CONCORDANCE (or' in message


def test_all_wrong_flags_are_named_together(fovea):
  message = _misfit(fovea, base_depth=400, num_z_values=26)
  assert 'Conv/weights is missing, not [1, 1, 52, 16]' in message
  assert 'more); it needs --model FOVEA --num_z_values 2 --base_depth 4 (or' in message


def test_fewer_z_depths_than_it_has_do_not_fit(concordance):
  assert 'it needs --num_z_values 3 (or' in _misfit(concordance, num_z_values=1)


@pytest.mark.parametrize(
  'names',
  [['w', 'b'], ['Conv/weights', 'global_step'], ['head/MAXPROJECT/A/residual_v2_conv/Conv/biases']],
)
def test_another_programs_checkpoint(tmp_path, names):
  prefix = _save(tmp_path / 'model-1', {name: np.zeros(3, np.float32) for name in names})
  with pytest.raises(ValueError, match='is of another program') as e:
    Checkpoint(prefix).describe()
  _assert_one_line_about(e.value, prefix)


def _deeper(values, name):
  *kernel, read, made = values[name].shape
  values[name] = np.zeros((*kernel, read, made + 2), np.float32)


def _missing(values, name):
  del values[name]


@pytest.mark.parametrize(
  ('spoil', 'variable'), [(_deeper, 'Conv/weights'), (_missing, 'BatchNorm/gamma')]
)
def test_variable_that_does_not_fit_is_named(tmp_path, shallow_fovea, spoil, variable):
  name = f'upper_recursion_2/expand_rv2/{variable}'
  values = _values(shallow_fovea)
  spoil(values, name)
  prefix = _save(tmp_path / 'model-1', values)
  with pytest.raises(ValueError, match=f'is no FOVEA as isl knows it.*{name} is ') as e:
    Checkpoint(prefix).describe()
  _assert_one_line_about(e.value, prefix)


def test_missing_files(tmp_path):
  with pytest.raises(ValueError, match='cannot be read') as e:
    Checkpoint(tmp_path / 'model-1')
  _assert_one_line_about(e.value, tmp_path / 'model-1')


@pytest.mark.parametrize('folder', ['with space', 'a[1]', 'a*?', 'Zellkörper', 'quo"te\\'])
def test_odd_folders(tmp_path, shallow_fovea, folder):
  copy = pathlib.Path(shutil.copytree(shallow_fovea.parent, tmp_path / folder))
  checkpoint = Checkpoint(find_newest(copy))
  assert checkpoint.prefix == copy / shallow_fovea.name
  checkpoint.verify()


def test_odd_name(tmp_path, shallow_fovea):
  prefix = tmp_path / 'model [copy].ckpt-1000'
  for path in shallow_fovea.parent.glob(f'{shallow_fovea.name}.*'):
    shutil.copy(path, f'{prefix}{path.name.removeprefix(shallow_fovea.name)}')
  checkpoint = Checkpoint(find_newest(tmp_path))
  assert checkpoint.prefix == prefix
  checkpoint.verify()


def test_shards(tmp_path, shallow_fovea):
  """Several parameter servers write a file each."""
  values = list(_values(shallow_fovea).items())
  parts = [_save(tmp_path / f'part{i}', dict(values[i::2])) for i in range(2)]
  prefix = tmp_path / 'model.ckpt-7'
  with tf.Graph().as_default(), tf.Session() as session:
    session.run(
      tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[os.fspath(part) for part in parts],
        destination_prefix=os.fspath(prefix),
      )
    )
  assert find_newest(tmp_path) == prefix
  Checkpoint(prefix).verify()
  prefix.with_name('model.ckpt-7.data-00000-of-00002').unlink()
  with pytest.raises(ValueError, match='cannot be read') as e:
    Checkpoint(prefix).verify()
  _assert_one_line_about(e.value, prefix)


class _Damaged:
  """A copy of a checkpoint to be damaged."""

  _ENDINGS = ('index', 'data-00000-of-00001')

  def __init__(self, prefix, folder):
    self.prefix = folder / prefix.name
    self.index, self.data = (
      prefix.with_name(f'{prefix.name}.{ending}').read_bytes() for ending in self._ENDINGS
    )
    reader = tf.train.load_checkpoint(os.fspath(prefix))
    names = reader.get_variable_to_shape_map()
    self._values = {name: reader.get_tensor(name) for name in names}

  def error(self, *, index: bytes | None = None, data: bytes | None = None) -> str | None:
    """Reads a checkpoint with these contents, and gives the error of one line.

    None: there was no error, and then every value must be as it was.
    """
    whole = (self.index, self.data)
    for ending, content, otherwise in zip(self._ENDINGS, (index, data), whole, strict=True):
      path = self.prefix.with_name(f'{self.prefix.name}.{ending}')
      path.write_bytes(otherwise if content is None else content)
    try:
      checkpoint = Checkpoint(find_newest(self.prefix.parent))
      checkpoint.verify()
    except ValueError as e:
      assert str(e).startswith(f'checkpoint {str(self.prefix)!r} '), e
      assert '\n' not in str(e)
      return str(e)
    for name, value in self._values.items():
      np.testing.assert_array_equal(checkpoint.value(name), value, err_msg=name)
    return None


@pytest.fixture
def damaged(shallow_fovea, tmp_path):
  return _Damaged(shallow_fovea, tmp_path)


def test_whole_files_are_no_error(damaged):
  assert damaged.error() is None


@pytest.mark.parametrize('length', [0, 1, 1 / 4, 1 / 2, -4, -1])
def test_truncated_files(damaged, length):
  """Bytes from the beginning, a share of the file, or all but so many bytes."""
  for file in ('index', 'data'):
    whole = getattr(damaged, file)
    kept = int(length * len(whole)) if 0 < length < 1 else length
    assert damaged.error(**{file: whole[:kept]}), file


def test_files_of_text(damaged):
  for file in ('index', 'data'):
    assert damaged.error(**{file: b'<html>404 Not Found</html>\n' * 100}), file


def test_flipped_bits_of_the_data_are_noticed(damaged):
  for position in np.linspace(0, len(damaged.data) - 1, 20).astype(int):
    data = bytearray(damaged.data)
    data[position] ^= 1
    assert damaged.error(data=bytes(data)), position


@pytest.mark.parametrize(('model', 'base_depth'), [('FOVEA', 4), ('FOVEA', 30), ('CONCORDANCE', 5)])
def test_index_of_another_checkpoint(damaged, tmp_path, model, base_depth):
  other = write_random_checkpoint(
    tmp_path / 'other', model=model, base_depth=base_depth, num_z_values=2, seed=1
  )
  assert damaged.error(index=other.with_name(f'{other.name}.index').read_bytes())


@pytest.mark.parametrize('size', [0, 1 << 20, 1 << 36, 1 << 62, (1 << 64) - 6, (1 << 64) - 1])
def test_length_in_the_index_that_cannot_be(damaged, size):
  """At its end, not checksummed, stand the offsets and lengths of two blocks, as varints."""
  varints = bytearray()
  for number in (0, 8, 0, size):
    while number >= 128:
      varints.append(number & 127 | 128)
      number >>= 7
    varints.append(number)
  magic_number = damaged.index[-8:]
  assert damaged.error(index=damaged.index[:-48] + varints.ljust(40, b'\0') + magic_number)


def _mutated(rng: np.random.Generator, contents: bytes) -> bytes:
  """Bits flipped, or a stretch zeroed, overwritten, taken out, put in, or all behind it missing."""
  start = int(rng.integers(len(contents)))
  # Often near the end, where an index has what leads to the rest.
  if rng.random() < 0.3:
    start = max(len(contents) - 1 - int(rng.integers(120)), 0)
  length = int(2 ** rng.uniform(0, 12))
  before, stretch, after = (
    contents[:start],
    contents[start : start + length],
    contents[start + length :],
  )
  kind = rng.integers(6)
  if kind == 0:
    return before + bytes([stretch[0] ^ 1 << int(rng.integers(8))]) + stretch[1:] + after
  if kind == 1:
    return before + bytes(len(stretch)) + after
  if kind == 2:
    return before + rng.bytes(len(stretch)) + after
  if kind == 3:
    return before + after
  if kind == 4:
    return before + rng.bytes(length) + stretch + after
  return before


def _assert_mutations_are_noticed_or_harmless(damaged, rounds, seed):
  rng = np.random.default_rng(seed)
  noticed = 0
  for _ in range(rounds):
    chosen = [['index'], ['data'], ['index', 'data']][rng.integers(3)]
    mutated = {file: _mutated(rng, getattr(damaged, file)) for file in chosen}
    noticed += damaged.error(**mutated) is not None
  # What is harmless: the index's padding, or bytes behind the data.
  assert noticed > 0.8 * rounds


def test_mutations_are_noticed_or_harmless(damaged):
  _assert_mutations_are_noticed_or_harmless(damaged, 40, seed=0)


@pytest.mark.soak
@pytest.mark.parametrize('seed', range(1, 3))
def test_many_mutations_are_noticed_or_harmless(damaged, seed):
  _assert_mutations_are_noticed_or_harmless(damaged, 300, seed)
