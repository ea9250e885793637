"""Counts the arithmetic that a prediction needs: the convolutions' floating-point operations.

A multiplication and an addition count as two. Batch norms, activations and pools are left out, as
is usual; they take a few percent.
"""

from __future__ import annotations

from isl.core.statistic import NUM_CLASSES
from isl.models.plan import ModulePlan, NetworkPlan


def patch_flop(plan: NetworkPlan, num_heads: int) -> int:
  """Counts the FLOP for one patch by itself, which gives one block of outputs."""
  geometry = plan.spec.geometry
  total = _projection_flop(plan, geometry.patch**2) + _heads_flop(plan, num_heads)
  for size, modules in [
    *zip(plan.spec.crops, plan.towers, strict=True),
    (plan.merged_size, plan.upper),
  ]:
    for module in modules:
      # The size before the crop: these pixels are computed, too.
      computed = module.output_size + 2 * module.crop
      total += _module_flop(module, size**2 if module.is_deconv else computed**2, computed**2)
      size = module.output_size
  return round(total)


def dense_flop(plan: NetworkPlan, num_heads: int) -> int:
  """Counts the FLOP for one more block in an endless crop: what dense evaluation needs at least.

  A map that all patches share has one pixel for every `scale` input pixels in each direction. Where
  phases are computed apart, each of a phase's patches takes 16 x 16 input pixels; behind the map of
  16 pixels, it takes its own map.
  """
  output = plan.spec.geometry.output
  total = _projection_flop(plan, output**2) + _heads_flop(plan, num_heads)
  for modules in plan.towers:
    stride = output
    for module in modules:
      if module.scale > output:
        stride = 2 * output
      made = (stride / module.scale) ** 2
      total += _module_flop(module, made / module.stride**2 if module.is_deconv else made, made)
  for module in plan.upper:
    made = min(module.output_size, 2 * output) ** 2
    total += _module_flop(module, made, made)
  return round(total)


def _module_flop(module: ModulePlan, expanding: float, reducing: float) -> float:
  """Counts the FLOP of a module, given the pixels at which its convolutions are applied."""
  expand = module.kernel**2 * 2 * module.input_depth * module.expand_depth
  reduce = 2 * module.joined_depth * module.reduce_depth
  return 2 * (expanding * expand + reducing * reduce)


def _projection_flop(plan: NetworkPlan, pixels: int) -> float:
  return 2 * pixels * plan.input_depth * plan.spec.projection_depth


def _heads_flop(plan: NetworkPlan, num_heads: int) -> float:
  return 2 * plan.spec.geometry.output**2 * 2 * plan.output_depth * NUM_CLASSES * num_heads
