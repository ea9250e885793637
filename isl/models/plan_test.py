"""Tests of plan.py, concordance.py and fovea.py."""

import json

import pytest

from isl.core.channels import MAXPROJECT, ImageKey, input_stack, target_stack
from isl.models.networks import NETWORKS
from isl.models.plan import NetworkPlan, depths, make_plan, next_even, variable_shapes
from tests.support.program import shared_path

BOTH = pytest.mark.parametrize('model', NETWORKS)


def _shapes(plan: NetworkPlan, num_z_values: int) -> list[tuple[str, tuple[int, ...]]]:
  return list(variable_shapes(plan, input_stack(num_z_values).keys + target_stack().keys))


def _size_read(module) -> int:
  """The side of a module's input, in pixels, computed from the side of its result."""
  if module.is_deconv:
    return (module.output_size + 2 * module.crop - module.kernel) // module.stride + 1
  return (module.output_size - 1) * module.stride + module.kernel


@pytest.mark.parametrize(
  ('file', 'model', 'base_depth', 'num_z_values'),
  [
    ('variables_concordance.json', 'CONCORDANCE', 400, 26),
    ('variables_fovea_d50_z13.json', 'FOVEA', 50, 13),
  ],
)
def test_variables_are_the_originals(file, model, base_depth, num_z_values):
  expected = json.loads(shared_path('reference', file).read_text())
  plan = make_plan(NETWORKS[model], base_depth, num_z_values)
  found = [[name, list(shape)] for name, shape in _shapes(plan, num_z_values)]
  assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
  ('x', 'expected'),
  [(0, 0), (0.1, 2), (1, 2), (2, 2), (2.0001, 4), (3, 4), (211 / 39, 6), (211 / 39 * 2, 12)],
)
def test_next_even(x, expected):
  assert next_even(x) == expected


@pytest.mark.parametrize(
  ('base_depth', 'size', 'expected'),
  [
    (400, 400, (6, 2)),
    (400, 399, (12, 2)),  # 10.8 and ceil(400 / 399) = 2
    (400, 200, (12, 2)),
    (400, 36, (66, 12)),  # 211 / 39 * 12 = 64.9, an odd ceiling
    (400, 8, (272, 50)),  # 211 / 39 * 50 = 270.5, an odd ceiling
    (5, 8, (6, 2)),
  ],
)
def test_depths(base_depth, size, expected):
  assert depths(base_depth, size) == expected


@pytest.mark.parametrize('base_depth', range(397, 401))
def test_equivalent_widths_have_one_plan(base_depth):
  plan = make_plan(NETWORKS['CONCORDANCE'], base_depth, 26)
  assert plan == make_plan(NETWORKS['CONCORDANCE'], 400, 26)


@pytest.mark.parametrize('base_depth', [396, 401])
def test_other_widths_have_another(base_depth):
  plan = make_plan(NETWORKS['CONCORDANCE'], base_depth, 26)
  assert plan != make_plan(NETWORKS['CONCORDANCE'], 400, 26)


@pytest.mark.parametrize(('model', 'smallest'), [('CONCORDANCE', 5), ('FOVEA', 1)])
def test_smallest_width(model, smallest):
  plan = make_plan(NETWORKS[model], smallest, 1)
  assert all(min(shape) > 0 for _, shape in _shapes(plan, 1))
  with pytest.raises(ValueError, match=f'at least {smallest} for {model}, got {smallest - 1}'):
    make_plan(NETWORKS[model], smallest - 1, 1)


@BOTH
def test_no_depth_of_the_input_is_an_error(model):
  with pytest.raises(
    ValueError, match='num_z_values must be at least 1: a network reads images, got 0'
  ):
    make_plan(NETWORKS[model], 8, 0)


@BOTH
@pytest.mark.parametrize('base_depth', [5, 6, 9, 50, 400, 1000])
@pytest.mark.parametrize('num_z_values', [1, 2, 13, 26])
def test_sizes_and_depths_link_up(model, base_depth, num_z_values):
  spec = NETWORKS[model]
  plan = make_plan(spec, base_depth, num_z_values)
  for crop, tower in zip(spec.crops, plan.towers, strict=True):
    size, depth = crop, spec.projection_depth or plan.input_depth
    for module in tower:
      # A stride of 2 leaves out the last row and column of an odd size.
      assert size - _size_read(module) in ((0, 1) if module.stride == 2 else (0,)), module.name
      assert module.input_depth == depth, module.name
      size, depth = module.output_size, module.output_depth
    assert size == plan.merged_size
    assert tower[-1].scale == 1
  depth = sum(tower[-1].output_depth for tower in plan.towers)
  size = plan.merged_size
  for module in plan.upper:
    assert (_size_read(module), module.input_depth) == (size, depth), module.name
    size, depth = module.output_size, module.output_depth
  assert size == spec.geometry.output
  assert depth == plan.output_depth


@pytest.mark.parametrize(('model', 'merged'), [('CONCORDANCE', 36), ('FOVEA', 16)])
def test_towers_end_in_one_size(model, merged):
  for base_depth in (5, 50, 400):
    plan = make_plan(NETWORKS[model], base_depth, 3)
    assert [tower[-1].output_size for tower in plan.towers] == [merged] * 5


def test_depths_at_the_ends_of_the_full_network():
  plan = make_plan(NETWORKS['CONCORDANCE'], 400, 26)
  assert [tower[-1].output_depth for tower in plan.towers] == [16, 12, 12, 12, 12]
  assert plan.output_depth == 64


def test_sizes_of_a_tower_with_modules_in_scale():
  tower = make_plan(NETWORKS['CONCORDANCE'], 400, 26).towers[2]
  # Down (n - 2) / 2 and n - 2, twice; 10 times n - 2; up 2n - 2 and then 2n - 4, twice.
  down = [(146 - 2) // 2, (146 - 2) // 2 - 2, (70 - 2) // 2, (70 - 2) // 2 - 2]
  low = [32 - 2 * (i + 1) for i in range(10)]
  up = [2 * 12 - 2, 2 * 12 - 4, 2 * 20 - 2, 2 * 20 - 4]
  assert [module.output_size for module in tower] == down + low + up
  assert [module.name for module in tower] == [
    'downscale_2_0',
    'downscale_2_0_in_scale',
    'downscale_2_1',
    'downscale_2_1_in_scale',
    *(f'lower_scale_2_recursion_{r}' for r in range(10)),
    'upscale_2_0',
    'upscale_2_0_in_scale',
    'upscale_2_1',
    'upscale_2_1_in_scale',
  ]
  # Both modules of a change of scale take their depths from the size after both.
  assert tower[0].expand_depth == tower[1].expand_depth == depths(400, 70)[0]
  assert (tower[-2].expand_depth, tower[-2].reduce_depth) == depths(400 - 4, 36)
  assert tower[-1].expand_depth == depths(400, 36)[0]


def test_sizes_of_a_tower_without_them():
  tower = make_plan(NETWORKS['FOVEA'], 50, 13).towers[2]
  down = [(70 - 2) // 2, (34 - 2) // 2]
  low = [16 - 2 * (i + 1) for i in range(6)]
  up = [2 * 4, 2 * 8]
  assert [module.output_size for module in tower] == down + low + up
  assert (tower[-1].expand_depth, tower[-1].reduce_depth) == depths(50, 16)


@BOTH
def test_numbers_of_modules(model):
  first = {'CONCORDANCE': 18, 'FOVEA': 10}[model]
  less = {'CONCORDANCE': 4, 'FOVEA': 2}[model]
  plan = make_plan(NETWORKS[model], 50, 3)
  for scale, tower in enumerate(plan.towers):
    names = [module.name for module in tower]
    lower = [name for name in names if name.startswith(f'lower_scale_{scale}_recursion_')]
    assert len(lower) == first - less * scale
    assert len(names) - len(lower) == scale * (4 if model == 'CONCORDANCE' else 2)
  assert len(plan.upper) == {'CONCORDANCE': 14, 'FOVEA': 4}[model]


@BOTH
def test_convolutions_never_get_shallower(model):
  for module in make_plan(NETWORKS[model], 5, 26).modules():
    if not module.is_deconv:
      assert min(module.expand_depth, module.reduce_depth) >= module.input_depth, module.name


def test_only_the_projection_depends_on_the_number_of_z_depths():
  one, other = (
    dict(variable_shapes(make_plan(NETWORKS['CONCORDANCE'], 50, n), ())) for n in (3, 26)
  )
  assert {name for name in one if one[name] != other[name]} == {'Conv/weights'}


def test_names_of_heads():
  plan = make_plan(NETWORKS['FOVEA'], 8, 1)
  keys = (ImageKey(0.04, 'TRANSMISSION'), ImageKey(MAXPROJECT, 'CELLMASK_CONFOCAL'))
  names = [name for name, _ in variable_shapes(plan, keys) if name.endswith('biases')]
  assert names == [
    'head/0.04/TRANSMISSION/residual_v2_conv/Conv/biases',
    'head/MAXPROJECT/CELLMASK_CONFOCAL/residual_v2_conv/Conv/biases',
  ]
