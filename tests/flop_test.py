"""FLOP counts, against the convolutions of real graphs."""

import os
import runpy

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from isl.models import towers
from isl.models.networks import NETWORKS
from isl.models.plan import make_plan
from tests.support.program import REPOSITORY

# Loaded by its path: on sys.path, benchmarks/distributed.py would hide Dask's package.
_flop = runpy.run_path(os.fspath(REPOSITORY / 'benchmarks' / 'flop.py'))
dense_flop, patch_flop = _flop['dense_flop'], _flop['patch_flop']


_MODELS = ['FOVEA', pytest.param('CONCORDANCE', marks=pytest.mark.soak)]


def _flop_of_graph(plan, side, sizes):
  """Two for each weight and each place where it is applied, for crops of each of the sizes."""

  def zeros(getter, name, shape, **kwargs):
    del getter, name, kwargs
    return tf.zeros(shape)

  config = tf.ConfigProto()
  config.graph_options.rewrite_options.disable_meta_optimizer = True
  with (
    tf.Graph().as_default() as graph,
    tf.Session(config=config) as session,
    tf.variable_scope('', custom_getter=zeros),
  ):
    crop = tf.placeholder(tf.float32, [1, side, side, plan.input_depth])
    towers.features(crop, plan)
    places, weights = [], []
    for op in graph.get_operations():
      if op.type in ('Conv2D', 'Conv2DBackpropInput'):
        placed = op.outputs[0] if op.type == 'Conv2D' else op.inputs[2]
        places.append(tf.reduce_prod(tf.shape(placed)[:3]))
        weights.append(np.prod(op.inputs[1].shape.as_list()))
    return [
      sum(2 * n * w for n, w in zip(session.run(places, {crop: x}), weights, strict=True))
      for x in (np.zeros([1, size, size, plan.input_depth], np.float32) for size in sizes)
    ]


@pytest.mark.parametrize('model', _MODELS)
def test_a_patch_has_the_flop_of_its_graph(model):
  plan = make_plan(NETWORKS[model], 9, 3)
  side = plan.spec.geometry.patch
  assert [patch_flop(plan, 0)] == _flop_of_graph(plan, side, [side])


@pytest.mark.parametrize('model', _MODELS)
def test_dense_is_what_graphs_grow_by(model):
  # The cost of n x n blocks is a n^2 + b n + c, so a is half of the second difference.
  plan = make_plan(NETWORKS[model], 9, 3)
  sizes = [plan.spec.geometry.input_size(n) for n in (4, 6, 8)]
  few, more, most = _flop_of_graph(plan, None, sizes)
  assert dense_flop(plan, 0) == (most - 2 * more + few) / 8


def test_the_full_network():
  plan = make_plan(NETWORKS['CONCORDANCE'], 400, 26)
  assert round(patch_flop(plan, 9) / 1e9, 2) == 8.05
  head = 2 * 8 * 8 * 2 * 64 * 256
  assert patch_flop(plan, 9) - patch_flop(plan, 0) == 9 * head
  assert dense_flop(plan, 9) - dense_flop(plan, 0) == 9 * head
