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


def _flop_of_graph(plan, num_blocks):
  """Two for each weight and each place where it is applied."""
  side = plan.spec.geometry.input_size(num_blocks)
  with tf.Graph().as_default() as graph:
    towers.features(tf.placeholder(tf.float32, [1, side, side, plan.input_depth]), plan)
    total = 0
    for op in graph.get_operations():
      if op.type == 'Conv2D':
        places = op.outputs[0].shape.as_list()[:3]
        total += 2 * np.prod(places) * np.prod(op.inputs[1].shape.as_list())
      elif op.type == 'Conv2DBackpropInput':
        places = op.inputs[2].shape.as_list()[:3]
        total += 2 * np.prod(places) * np.prod(op.inputs[1].shape.as_list())
  return total


@pytest.mark.parametrize('model', sorted(NETWORKS))
def test_a_patch_has_the_flop_of_its_graph(model):
  plan = make_plan(NETWORKS[model], 9, 3)
  assert patch_flop(plan, 0) == _flop_of_graph(plan, 1)


@pytest.mark.parametrize('model', sorted(NETWORKS))
def test_dense_is_what_graphs_grow_by(model):
  # The cost of n x n blocks is a n^2 + b n + c, so a is half of the second difference.
  plan = make_plan(NETWORKS[model], 9, 3)
  few, more, most = (_flop_of_graph(plan, n) for n in (4, 6, 8))
  assert dense_flop(plan, 0) == (most - 2 * more + few) / 8


def test_the_full_network():
  plan = make_plan(NETWORKS['CONCORDANCE'], 400, 26)
  assert round(patch_flop(plan, 9) / 1e9, 2) == 8.05
  head = 2 * 8 * 8 * 2 * 64 * 256
  assert patch_flop(plan, 9) - patch_flop(plan, 0) == 9 * head
  assert dense_flop(plan, 9) - dense_flop(plan, 0) == 9 * head
