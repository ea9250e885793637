"""The graph of the multiscale network of a TowerSpec: dense evaluation of crops, and training.

Dense evaluation gives exactly what the network gives patch by patch. Patches whose outputs abut
start a stride of 8 pixels apart. Everything is VALID, so a map computed once over a larger crop has
each patch's values in it, as long as strides line up. They do at scales 0 to 3, which step by 1 to
8 pixels. Scale 4 steps by 16: patches at odd multiples of 8 sample the scale-3 map at its other
phase. So from there on, and behind the concatenation, the patches of one parity in rows and columns
are computed together: up to 2 x 2 *phases*, all of one size and so one batch. If the number of
blocks is odd, the second phase has one patch less; zeros stand for it, and its output is cut off.

Behind the concatenation, a patch needs less and less of what lies around it. When its map is 16
pixels wide, a phase's patches (16 pixels apart) tile the phase's map, and from there on each patch
is computed by itself: no pixel is computed that no patch needs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow.compat.v1 as tf

from isl.models import model_util, training_layers
from isl.models.ops import crop, images_to_patches, shape_of
from isl.models.plan import ModulePlan, NetworkPlan


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Blocks:
  """The patches of a dense evaluation in one direction, rows or columns.

  Attributes:
    count: number of patches, neighbours being an output apart; a scalar tensor where only the run
      of the graph knows it.
    output: side of a patch's output, in pixels.
  """

  count: Any
  output: int

  @property
  def phases(self) -> int:
    """Number of phases: 1 if there is only one patch, 2 if there are or may be more."""
    return min(self.count, 2) if isinstance(self.count, int) else 2

  @property
  def per_phase(self) -> Any:
    """Number of patches in the first phase; the second may have one less."""
    return (self.count + 1) // 2

  def phase_slices(self, nominal: int, scale: int) -> list[slice]:
    """Where the phases lie in a map that all patches share; the last may end behind it.

    Args:
      nominal: side of one patch's map, in the map's pixels.
      scale: the map's neighbouring pixels are this many input pixels apart.
    """
    step = self.output // scale
    size = nominal + (self.per_phase - 1) * 2 * step
    return [slice(phase * step, phase * step + size) for phase in range(self.phases)]


def features(net: tf.Tensor, plan: NetworkPlan) -> tf.Tensor:
  """Computes the features that the heads read, of every patch in a batch of crops.

  Args:
    net: [batch, row, column, plan.input_depth]: intensities in [0, 1] and masks in turn. In each
      direction, its size is geometry.input_size() of some number of blocks (1 for a single patch).
      The graph need not know the first three lengths.
    plan: plan of the network.

  Returns:
    [batch, row, column, plan.output_depth]: the patches' outputs, joined as they lie in the image.
  """
  geometry = plan.spec.geometry
  sizes = shape_of(net)[1:3]
  rows, columns = (
    _Blocks(count=(size - geometry.patch) // geometry.output + 1, output=geometry.output)
    for size in sizes
  )
  for size, blocks in zip(sizes, (rows, columns), strict=True):
    assert not isinstance(size, int) or size == geometry.input_size(blocks.count), size
  if plan.spec.projection_depth:
    net = model_util.projection(net, plan.spec.projection_depth)
  towers = [
    _tower(crop(net, (geometry.patch - size) // 2), size, modules, rows, columns)
    for size, modules in zip(plan.spec.crops, plan.towers, strict=True)
  ]
  return _upper(tf.concat(towers, axis=-1), plan, rows, columns)


def training_features(
  net: tf.Tensor,
  plan: NetworkPlan,
  statistics: training_layers.BatchStatistics,
  mask: tf.Tensor | None = None,
) -> tf.Tensor:
  """Computes the features that the heads read, of a batch of training patches.

  An input larger than a patch is computed in one phase, as if it were one large patch.

  Args:
    net: intensities in [0, 1], [batch, row, column, image], of a patch's size or a multiple of 16
      pixels more.
    plan: plan of the network.
    statistics: collects the mean and variance that batch norm finds in the batch.
    mask: the mask of all images, [batch, row, column]; None: it is 1 everywhere.

  Returns:
    [batch, row, column, plan.output_depth], geometry.margin pixels smaller on each side.
  """
  geometry = plan.spec.geometry
  if plan.spec.projection_depth:
    net = training_layers.projection(net, plan.spec.projection_depth, mask)
  else:
    net = model_util.with_masks(net, mask)
  towers = []
  for size, modules in zip(plan.spec.crops, plan.towers, strict=True):
    tower = crop(net, (geometry.patch - size) // 2)
    for module in modules:
      tower = training_layers.module(tower, module, statistics)
    towers.append(tower)
  net = tf.concat(towers, axis=-1)
  for module in plan.upper:
    net = training_layers.module(net, module, statistics)
  return net


def _tower(
  net: tf.Tensor, nominal: int, modules: tuple[ModulePlan, ...], rows: _Blocks, columns: _Blocks
) -> tf.Tensor:
  """Computes one tower for all patches, [phase * batch, row, column, depth].

  Args:
    net: the tower's crop of every patch, as one map: [batch, row, column, depth].
    nominal: side of one patch's crop, in pixels.
    modules: the tower's modules.
    rows: the patches in the direction of rows.
    columns: the patches in the direction of columns.
  """
  scale = 1
  in_phases = False
  for plan in modules:
    if plan.scale > rows.output and not in_phases:
      net = _to_phases(net, nominal, scale, rows, columns)
      in_phases = True
    net = model_util.module(net, plan)
    nominal, scale = plan.output_size, plan.scale
  return net if in_phases else _to_phases(net, nominal, scale, rows, columns)


def _to_phases(
  net: tf.Tensor, nominal: int, scale: int, rows: _Blocks, columns: _Blocks
) -> tf.Tensor:
  """Cuts a map that all patches share into the phases' maps.

  Returns:
    [phase * batch, row, column, depth]; the phases of rows are slowest.
  """
  slices = [blocks.phase_slices(nominal, scale) for blocks in (rows, columns)]
  lacking = [
    _positive(s[-1].stop - size) for s, size in zip(slices, shape_of(net)[1:3], strict=True)
  ]
  if any(isinstance(n, tf.Tensor) or n for n in lacking):
    net = tf.pad(net, [[0, 0], [0, lacking[0]], [0, lacking[1]], [0, 0]])
  phases = [net[:, r, c, :] for r in slices[0] for c in slices[1]]
  return tf.concat(phases, axis=0) if len(phases) > 1 else phases[0]


def _positive(number: Any) -> Any:
  return max(number, 0) if isinstance(number, int) else tf.maximum(number, 0)


def _upper(net: tf.Tensor, plan: NetworkPlan, rows: _Blocks, columns: _Blocks) -> tf.Tensor:
  """Computes the modules behind the concatenation and puts the phases' outputs together.

  Args:
    net: the towers' results, [phase * batch, row, column, depth].
    plan: plan of the network.
    rows: the patches in the direction of rows.
    columns: the patches in the direction of columns.

  Returns:
    The patches' outputs as they lie in the image, [batch, row, column, plan.output_depth].
  """
  output = rows.output
  nominal = plan.merged_size
  batch = shape_of(net)[0] // (rows.phases * columns.phases)
  for module in plan.upper:
    if nominal == 2 * output:
      net = images_to_patches(net, nominal)
    net = model_util.module(net, module)
    nominal = module.output_size
  split = [rows.phases, columns.phases, batch, rows.per_phase, columns.per_phase]
  net = tf.reshape(net, [*split, output, output, plan.output_depth])
  net = tf.transpose(net, [2, 3, 0, 5, 4, 1, 6, 7])
  padded = [blocks.per_phase * blocks.phases * output for blocks in (rows, columns)]
  net = tf.reshape(net, [batch, *padded, plan.output_depth])
  return net[:, : rows.count * output, : columns.count * output, :]
