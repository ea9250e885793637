"""FOVEA, CONCORDANCE's smaller sibling: a smaller patch (110 pixels), fewer modules, no projection.

Its first layers read the z-stack itself, and a module is never shallower than its input, so that
another number of z depths changes most shapes.
"""

from isl.core.experiment import Geometry
from isl.models.plan import TowerSpec

FOVEA = TowerSpec(
  name='FOVEA',
  geometry=Geometry(patch=110, output=8),
  crops=(36, 50, 70, 94, 110),
  projection_depth=0,
  in_scale=False,
  deconv_kernel=2,
  deconv_crop=0,
  deconv_base_depth_cut=0,
  lower_recursions=tuple(10 - 2 * scale for scale in range(5)),
  upper_recursions=4,
  min_base_depth=1,
)
