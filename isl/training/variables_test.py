"""Tests of variables.py: two vectors, and a checkpoint that has each array by its name."""

from __future__ import annotations

import itertools
import os
import pathlib

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from isl.checkpoints.checkpoint import Checkpoint, find_newest
from isl.checkpoints.saving import complete_state_file, make_saver, remove_partial
from isl.core.channels import input_stack, target_stack
from isl.models.networks import NETWORKS
from isl.models.plan import make_plan, variable_shapes
from isl.training.variables import PackedVariables, Packing, initial_value, slots
from tests.support.program import files_in

_SHAPES = {'b': (2, 3), 'a': (4,), 'scalar': (), 'c': (1, 2, 2, 1)}
_HEADS = (*input_stack(2).keys, *target_stack().keys[:2])
_OPTIMIZERS = {
  'ADAM': (tf.train.AdamOptimizer, {'Adam', 'Adam_1'}, {'beta1_power', 'beta2_power'}),
  'ADAGRAD': (tf.train.AdagradOptimizer, {'Adagrad'}, set()),
  'MOMENTUM': (lambda rate: tf.train.MomentumOptimizer(rate, 0.875), {'Momentum'}, set()),
}


@pytest.fixture(autouse=True)
def _graph():
  with tf.Graph().as_default():
    yield


def _plan(model='FOVEA'):
  return make_plan(NETWORKS[model], 5, 2)


def _arrays():
  rng = np.random.default_rng(0)
  return {name: np.asarray(rng.random(shape), np.float32) for name, shape in _SHAPES.items()}


# Packing.


def test_arrays_come_back():
  packing, arrays = Packing(_SHAPES), _arrays()
  vector = packing.pack(arrays)
  assert vector.shape == (packing.size,) == (2 * 3 + 4 + 1 + 2 * 2,)
  np.testing.assert_array_equal(vector[:6], arrays['b'].ravel())
  found = packing.unpack_array(vector)
  assert list(found) == list(_SHAPES)
  for name, array in arrays.items():
    np.testing.assert_array_equal(found[name], array)


def test_tensors_are_unpacked_as_arrays_are():
  packing = Packing(_SHAPES)
  vector = packing.pack(_arrays())
  with tf.Session() as session:
    found = session.run(packing.unpack(tf.constant(vector)))
  expected = packing.unpack_array(vector)
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array)
    assert found[name].shape == _SHAPES[name]


def test_tensors_are_packed_by_name():
  packing = Packing({'b': (3,), 'a': (2,)})
  tensors = {'a': tf.constant([1.0, 2.0]), 'b': tf.constant([3.0, 4.0, 5.0])}
  with tf.Session() as session:
    np.testing.assert_array_equal(session.run(packing.pack_tensors(tensors)), [3, 4, 5, 1, 2])


def test_repeat_fills_each_arrays_place():
  packing = Packing(_SHAPES)
  numbers = {name: i / 2 for i, name in enumerate(_SHAPES)}
  found = packing.unpack_array(packing.repeat(numbers.__getitem__))
  for name, shape in _SHAPES.items():
    np.testing.assert_array_equal(found[name], np.full(shape, numbers[name]))


# The variables.


@pytest.mark.parametrize('model', NETWORKS)
def test_variables_are_the_networks(model):
  """No variable is missing, none is there twice or needlessly, and all have their shapes."""
  plan = _plan(model)
  variables = PackedVariables(plan, _HEADS)
  expected = dict(variable_shapes(plan, _HEADS))
  weights, averages = variables.parts[0].packing.shapes, variables.average_packing.shapes
  assert weights | averages == expected
  assert not weights.keys() & averages.keys()
  assert {name for name in expected if '/moving_' in name} == averages.keys()
  sizes = [
    variable.shape.as_list() for variable in (variables.parts[0].variable, variables.averages)
  ]
  assert sizes == [[variables.parts[0].packing.size], [variables.average_packing.size]]
  assert tf.global_variables() == [variables.parts[0].variable, variables.averages]


def test_custom_getter_gives_the_weights_by_name():
  variables = PackedVariables(_plan(), _HEADS)
  shapes = variables.parts[0].packing.shapes
  with tf.variable_scope('', custom_getter=variables.custom_getter):
    views = {name: tf.get_variable(name, shape) for name, shape in shapes.items()}
  vector = np.arange(variables.parts[0].packing.size, dtype=np.float32)
  with tf.Session() as session:
    found = session.run(views, {variables.parts[0].read: vector})
  for name, array in variables.parts[0].packing.unpack_array(vector).items():
    np.testing.assert_array_equal(found[name], array, err_msg=name)
  with (
    tf.variable_scope('', custom_getter=variables.custom_getter),
    pytest.raises(AssertionError, match='beta'),
  ):
    tf.get_variable('upper_recursion_0/reduce_rv2/BatchNorm/beta', [1])
  assert len(tf.global_variables()) == 2


def test_gradient_reaches_each_weight_at_its_place():
  variables = PackedVariables(_plan(), _HEADS)
  with tf.variable_scope('', custom_getter=variables.custom_getter):
    name = next(n for n in variables.parts[0].packing.shapes if n.endswith('transpose/weights'))
    net = tf.get_variable(name, variables.parts[0].packing.shapes[name])
  (gradient,) = tf.gradients(3 * tf.reduce_sum(net), variables.parts[0].read)
  with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    found = variables.parts[0].packing.unpack_array(session.run(gradient))
  for other, array in found.items():
    np.testing.assert_array_equal(array, 3 if other == name else 0)


# What they start from.


@pytest.mark.parametrize(
  ('name', 'shape', 'fan_sum'),
  [
    # What a result reads, and what a pixel adds to.
    ('m/expand_rv2/Conv/weights', (3, 3, 20, 50), 9 * 20 + 9 * 50),
    ('m/expand_rv2/Conv2d_transpose/weights', (4, 4, 50, 20), 16 * 50 + 16 * 20),
    ('Conv/weights', (1, 1, 52, 160), 52 + 160),
  ],
)
def test_weights_are_glorots(name, shape, fan_sum):
  found = initial_value(name, shape, np.random.default_rng(0))
  assert found.shape == shape
  assert found.dtype == np.float32
  limit = np.sqrt(6 / fan_sum)
  assert np.abs(found).max() <= limit * (1 + 1e-6)
  # Of a uniform distribution: the mean, the standard deviation and the ends.
  assert abs(found.mean()) < 5 * limit / np.sqrt(3 * found.size)
  assert found.std() == pytest.approx(limit / np.sqrt(3), rel=0.03)
  assert found.min() < -0.99 * limit < 0.99 * limit < found.max()


@pytest.mark.parametrize(
  ('kind', 'value'),
  [('gamma', 1), ('beta', 0), ('moving_mean', 0), ('moving_variance', 1), ('biases', 0)],
)
def test_all_else_is_constant(kind, value):
  rng = np.random.default_rng(0)
  found = initial_value(f'm/reduce_rv2/BatchNorm/{kind}', (7,), rng)
  np.testing.assert_array_equal(found, np.full(7, value, np.float32), strict=True)
  assert rng.random() == np.random.default_rng(0).random()


# Checkpoints.


def _optimized(kind):
  """(variables, their named tensors), all of which an optimizer has moved once."""
  tf.train.create_global_step()
  variables = PackedVariables(_plan(), _HEADS)
  optimizer = _OPTIMIZERS[kind][0](0.01)
  weights = variables.parts[0].read
  loss = tf.reduce_sum(weights * tf.range(1.0, 1 + weights.shape.as_list()[0]))
  train = optimizer.apply_gradients(
    [(tf.gradients(loss, weights)[0], variables.parts[0].variable)],
    global_step=tf.train.get_global_step(),
  )
  averages = variables.averages.assign(
    tf.random.stateless_uniform(variables.averages.shape, (0, 1))
  )
  return variables, optimizer, tf.group(train, averages)


@pytest.mark.parametrize('kind', _OPTIMIZERS)
def test_checkpoint_has_each_array_by_its_name(tmp_path, kind):
  variables, optimizer, change = _optimized(kind)
  _, slot_kinds, scalars = _OPTIMIZERS[kind]
  tensors = variables.named_tensors(optimizer)
  saver = make_saver(tensors)
  slot_names = {f'{n}/{slot}' for n in variables.parts[0].packing.shapes for slot in slot_kinds}
  model = dict(variable_shapes(_plan(), _HEADS))
  with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    session.run(change)
    saver.save(session, str(tmp_path / 'model.ckpt'), global_step=1, write_meta_graph=False)
    values, vectors = session.run(
      [
        tensors,
        {'': variables.parts[0].variable, **slots(variables.parts[0], optimizer)},
      ],
    )
  checkpoint = Checkpoint(find_newest(tmp_path))
  assert checkpoint.shapes.keys() == model.keys() | slot_names | scalars | {'global_step'}
  for name, shape in checkpoint.shapes.items():
    np.testing.assert_array_equal(checkpoint.value(name), values[name], err_msg=name)
    slot = name.rsplit('/', 1)[-1]
    variable = name.removesuffix(f'/{slot}') if slot in slot_kinds else name
    assert shape == model.get(variable, ()), name
  # Not each other's: the weights and every slot are different numbers everywhere.
  for slot, vector in vectors.items():
    for name, array in variables.parts[0].packing.unpack_array(vector).items():
      stored = f'{name}/{slot}' if slot else name
      np.testing.assert_array_equal(checkpoint.value(stored), array, err_msg=stored)
  for first, second in itertools.combinations(vectors.values(), 2):
    assert not np.array_equal(first, second)
  description = checkpoint.describe()
  assert (description.model, description.global_step, description.heads) == ('FOVEA', 1, _HEADS)
  assert (description.num_model_variables, 5 in description.base_depths) == (len(model), True)
  assert description.num_other_variables == len(slot_names | scalars) + 1
  checkpoint.verify()


def test_saver_keeps_so_many_and_names_the_newest(tmp_path):
  value = tf.placeholder_with_default(np.zeros(3, np.float32), [3])
  saver = make_saver({'x/y': value}, max_to_keep=2, keep_checkpoint_every_n_hours=2.0)
  with tf.Session() as session:
    for step in range(4):
      saver.save(session, str(tmp_path / 'model.ckpt'), global_step=step, write_meta_graph=False)
  prefixes = [f'model.ckpt-{step}' for step in (2, 3)]
  endings = ('.index', '.data-00000-of-00001')
  files = {prefix + ending for prefix in prefixes for ending in endings}
  assert files_in(tmp_path) == files | {'checkpoint'}
  state = (tmp_path / 'checkpoint').read_text()
  # The folder may be moved.
  assert str(tmp_path) not in state
  assert 'model_checkpoint_path: "model.ckpt-3"' in state.splitlines()
  moved = tmp_path.rename(tmp_path.with_name(f'{tmp_path.name}-moved'))
  assert find_newest(moved) == moved / 'model.ckpt-3'
  found = tf.train.load_checkpoint(str(moved / 'model.ckpt-3')).get_tensor('x/y')
  np.testing.assert_array_equal(found, np.zeros(3, np.float32), strict=True)


@pytest.fixture
def unnamed(tmp_path):
  """Checkpoints of steps 0, 1, 2, of which the state file names the first two, as after a kill."""
  value = tf.placeholder_with_default(np.arange(3, dtype=np.float32), [3])
  saver = make_saver({'x': value}, max_to_keep=5, keep_checkpoint_every_n_hours=2.0)
  state = tmp_path / 'checkpoint'
  with tf.Session() as session:
    for step in range(3):
      was = state.read_bytes() if step else b''
      saver.save(session, str(tmp_path / 'model.ckpt'), global_step=step, write_meta_graph=False)
  _write_before(state, was, tmp_path / 'model.ckpt-2.index')
  return tmp_path


def _write_before(path, data, other):
  """Writes a file that is older than another."""
  path.write_bytes(data)
  time = other.stat().st_mtime_ns - 1
  os.utime(path, ns=(time, time))


def _newest(folder):
  complete_state_file(folder)
  return find_newest(folder).name


def test_whole_checkpoint_that_a_kill_left_unnamed(unnamed):
  assert find_newest(unnamed).name == 'model.ckpt-1'
  assert _newest(unnamed) == 'model.ckpt-2'
  state = tf.train.get_checkpoint_state(unnamed)
  assert [pathlib.Path(path).name for path in state.all_model_checkpoint_paths] == [
    f'model.ckpt-{step}' for step in range(3)
  ]
  # The folder may be moved.
  assert str(unnamed) not in (unnamed / 'checkpoint').read_text()


@pytest.mark.parametrize('part', ['index', 'data-00000-of-00001'])
@pytest.mark.parametrize('share', [0, 0.5, 0.99])
def test_half_a_checkpoint_is_not_named(unnamed, part, share):
  path = unnamed / f'model.ckpt-2.{part}'
  data = path.read_bytes()
  path.write_bytes(data[: int(share * len(data))])
  assert _newest(unnamed) == 'model.ckpt-1'


def test_checkpoint_that_somebody_has_gone_back_from(unnamed):
  """Newer ones stay where they are, but the state file is younger than they."""
  state = unnamed / 'checkpoint'
  state.write_text('model_checkpoint_path: "model.ckpt-0"\n')
  time = (unnamed / 'model.ckpt-2.index').stat().st_mtime_ns + 1
  os.utime(state, ns=(time, time))
  assert _newest(unnamed) == 'model.ckpt-0'


def test_checkpoint_of_fewer_steps_is_not_the_newest(unnamed):
  """A checkpoint of fewer steps, which is kept every two hours, is not in the state file's list."""
  index = unnamed / 'model.ckpt-2.index'
  _write_before(unnamed / 'checkpoint', b'model_checkpoint_path: "model.ckpt-2"\n', index)
  for path in unnamed.glob('model.ckpt-1.*'):
    os.utime(path)
  assert _newest(unnamed) == 'model.ckpt-2'


def test_folder_without_a_state_file(unnamed):
  (unnamed / 'checkpoint').unlink()
  before = files_in(unnamed)
  assert _newest(unnamed) == 'model.ckpt-2'
  assert files_in(unnamed) == before


def _made(folder: pathlib.Path, *names):
  for name in names:
    (folder / name).write_bytes(b'')
  return set(names)


def test_what_was_cut_short_is_removed(tmp_path):
  data = 'data-00000-of-00001'
  kept = _made(
    tmp_path,
    *(f'model.ckpt-{step}.{part}' for step in (1, 20) for part in ('index', data)),
    # Not of the saving itself, or not a checkpoint's.
    'model.ckpt-1.meta',
    'model.ckpt-2.meta',
    'model.ckpt-2.index.copy',
    'other.index',
    f'other.{data}.tempstate1',
    'checkpoint',
    'run.json',
    'events.out.tfevents.1.host.2',
  )
  _made(
    tmp_path,
    'model.ckpt-2.index',
    f'model.ckpt-3.{data}',
    f'model.ckpt-4.{data}.tempstate12345',
    'model.ckpt-5.index',
    f'model.ckpt-5.{data}.tempstate12345',
    f'model.ckpt-6.{data}',
    'model.ckpt-6.index.tempstate7',
    'checkpoint.tmp0123456789abcdef',
    # Saved again, over a complete one.
    f'model.ckpt-20.{data}.tempstate99',
    'model.ckpt-20.index.tempstate99',
  )
  remove_partial(tmp_path)
  assert files_in(tmp_path) == kept


def test_nothing_to_remove(tmp_path):
  remove_partial(tmp_path)
  remove_partial(tmp_path / 'missing')
