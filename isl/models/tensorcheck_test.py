"""Tests of tensorcheck.py: in sessions, switched on and off."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from isl.models import tensorcheck

_BAD = pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])


@pytest.fixture
def checks():
  """Switches the checks on for a test."""
  tensorcheck.enable()
  yield
  tensorcheck.enable(False)


def _run(check, values):
  with tf.Graph().as_default(), tf.Session() as session:
    net = tf.placeholder(tf.float32, [len(values)])
    return session.run(check(net), {net: values})


def _bounded(net):
  return tensorcheck.bounded(net, 0, 1, 'the input')


def _finite(net):
  return tensorcheck.finite(net, 'the features')


@pytest.mark.usefixtures('checks')
@pytest.mark.parametrize('values', [[0.0], [1.0], [0.0, 0.5, 1.0]])
def test_good_values_pass_unchanged(values):
  assert _run(_bounded, values).tolist() == values
  assert _run(_finite, values).tolist() == values


@pytest.mark.usefixtures('checks')
def test_large_values_are_finite():
  assert _run(_finite, [-1e30, 3e38]).tolist() == pytest.approx([-1e30, 3e38])


@pytest.mark.usefixtures('checks')
@pytest.mark.parametrize('bad', [-1e-6, 1.0001, 255])
def test_out_of_bounds_is_named(bad):
  with pytest.raises(tf.errors.InvalidArgumentError, match=r'the input must be .* in \[0, 1\]'):
    _run(_bounded, [0.5, bad])


@pytest.mark.usefixtures('checks')
@_BAD
def test_what_is_not_finite_is_named(bad):
  with pytest.raises(tf.errors.InvalidArgumentError, match='the input must be finite'):
    _run(_bounded, [0.5, bad])
  with pytest.raises(tf.errors.InvalidArgumentError, match='the features must be finite'):
    _run(_finite, [0.5, bad])


@pytest.mark.usefixtures('checks')
def test_shape_is_checked_when_the_graph_is_built():
  with tf.Graph().as_default():
    net = tf.placeholder(tf.float32, [3, None])
    assert tensorcheck.shaped(net, [3, None], 'the crop') is net
    with pytest.raises(ValueError, match=r'the crop must have the shape \[3, 4\], got \[3, None\]'):
      tensorcheck.shaped(net, [3, 4], 'the crop')


@_BAD
def test_switched_off_nothing_is_checked_or_added(bad):
  with tf.Graph().as_default() as graph:
    net = tf.placeholder(tf.float32, [1])
    before = len(graph.get_operations())
    assert tensorcheck.bounded(net, 0, 1, 'x') is net
    assert tensorcheck.finite(net, 'x') is net
    assert tensorcheck.shaped(net, [7], 'x') is net
    assert len(graph.get_operations()) == before
  np.testing.assert_array_equal(_run(_bounded, [bad]), [bad])
