"""CONCORDANCE, the network of the paper and of the published checkpoint.

Five towers see the surroundings of an output of 8 x 8 pixels at resolutions from 1 to 1/16, so that
a patch of 250 x 250 pixels, a whole cell with its neighbours, informs each of its pixels. The
numbers are those that checkpoints were trained with; every tower ends with a map of 36 x 36.
"""

from isl.core.experiment import Geometry
from isl.models.plan import TowerSpec

CONCORDANCE = TowerSpec(
  name='CONCORDANCE',
  geometry=Geometry(patch=250, output=8),
  crops=(72, 102, 146, 202, 250),
  # Only the projection depends on the number of z depths: the rest is the same for any microscope.
  projection_depth=16,
  in_scale=True,
  deconv_kernel=4,
  deconv_crop=2,
  # Kept for the checkpoints' sake: the original took this off base_depth for its upscalings.
  deconv_base_depth_cut=4,
  lower_recursions=tuple(18 - 4 * scale for scale in range(5)),
  upper_recursions=14,
  min_base_depth=5,
)
