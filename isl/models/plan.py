"""The layers of a multiscale network, derived from a TowerSpec: names, depths and sizes, as data.

The network's graph (isl/models/towers.py), the comparison with a checkpoint's variables
(isl/checkpoints/checkpoint.py) and the count of the arithmetic that a prediction needs
(benchmarks/flop.py) all read this one plan. It needs no TensorFlow.

Depths follow from *nominal* sizes, which are those of a single patch, whatever the size of the
input: the smaller a map, the deeper it is, so that every layer costs about the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator

from isl.core.channels import ImageKey
from isl.core.experiment import Geometry
from isl.core.statistic import NUM_CLASSES


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerSpec:
  """What tells one multiscale network from another. Sizes are in pixels, sides of squares.

  For each scale s there is a tower, which reads a crop from the centre of the patch: it downscales
  the crop s times by 2, computes `lower_recursions[s]` modules there and upscales s times. The
  towers' results, all of one size, are concatenated, and `upper_recursions` more modules lead to
  the output.

  Attributes:
    name: the network's name, as --model takes it.
    geometry: sizes of the patch and of its output.
    crops: side of each tower's crop.
    projection_depth: features that a 1x1 convolution makes of the z-stack first; 0: there is no
      such convolution.
    in_scale: whether a module with kernel 3 follows every change of scale.
    deconv_kernel: side of the kernel of the upscalings (their stride is 2).
    deconv_crop: pixels that an upscaling's result loses on each side.
    deconv_base_depth_cut: number that is taken off base_depth for the upscalings' depths.
    lower_recursions: number of modules at the lowest resolution of each tower.
    upper_recursions: number of modules behind the concatenation.
    min_base_depth: the smallest base_depth for which all depths are positive.
  """

  name: str
  geometry: Geometry
  crops: tuple[int, ...]
  projection_depth: int
  in_scale: bool
  deconv_kernel: int
  deconv_crop: int
  deconv_base_depth_cut: int
  lower_recursions: tuple[int, ...]
  upper_recursions: int
  min_base_depth: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModulePlan:
  """A module: an expanding convolution and a reducing 1x1 one, around them a residual path.

  Attributes:
    name: scope of the module's variables.
    kernel: side of the expanding convolution's kernel, in pixels.
    stride: stride of the expanding convolution, in pixels; of a deconvolution, the factor by which
      it upscales.
    is_deconv: whether the expanding convolution is a transposed one.
    crop: pixels that the result loses on each side at the end.
    input_depth: features that the module reads.
    expand_depth: features that the expanding convolution makes.
    reduce_depth: features that the reducing convolution makes.
    output_size: nominal side of the module's result, after the crop, in its pixels.
    scale: the result's neighbouring pixels are this many pixels of the network's input apart.
  """

  name: str
  kernel: int
  stride: int
  is_deconv: bool
  crop: int
  input_depth: int
  expand_depth: int
  reduce_depth: int
  output_size: int
  scale: int

  @property
  def joined_depth(self) -> int:
    """Number of features that the reducing convolution reads.

    These are the expanding convolution's and, but for a deconvolution, the max-pooled input's.
    """
    return self.expand_depth + (0 if self.is_deconv else self.input_depth)

  @property
  def output_depth(self) -> int:
    """Number of features of the result; a deconvolution keeps those that both paths have."""
    return min(self.input_depth, self.reduce_depth) if self.is_deconv else self.reduce_depth


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkPlan:
  """All modules of a network.

  Attributes:
    spec: the network's specification, from which the plan was derived.
    input_depth: number of features of the network's input: an image and a mask for each z depth and
      channel.
    towers: the modules of each tower, in order.
    upper: the modules behind the concatenation, in order.
  """

  spec: TowerSpec
  input_depth: int
  towers: tuple[tuple[ModulePlan, ...], ...]
  upper: tuple[ModulePlan, ...]

  @property
  def merged_size(self) -> int:
    """Nominal side of the towers' results, in pixels."""
    return self.towers[0][-1].output_size

  @property
  def output_depth(self) -> int:
    """Number of features that the heads read."""
    return self.upper[-1].output_depth

  def modules(self) -> Iterator[ModulePlan]:
    """Yields every module, the towers' first."""
    for tower in self.towers:
      yield from tower
    yield from self.upper


def next_even(x: float) -> int:
  """The smallest even integer that is not below `x`."""
  return math.ceil(x) + math.ceil(x) % 2


def depths(base_depth: int, size: int) -> tuple[int, int]:
  """The (expanding, reducing) convolutions' depths in a module whose result is `size` pixels wide.

  They are next_even(211/39 * r) and next_even(r) with r = ceil(base_depth / size). 211/39 is the
  expansion that the original's authors found best by random search; checkpoints' shapes depend on
  its exact value.
  """
  ratio = math.ceil(base_depth / size)
  return next_even(211 / 39 * ratio), next_even(ratio)


def _module(
  name: str,
  *,
  kernel: int,
  stride: int = 1,
  depth: tuple[int, int],
  input_depth: int,
  output_size: int,
  scale: int,
  deconv_crop: int | None = None,
) -> ModulePlan:
  is_deconv = deconv_crop is not None
  # Only convolutions never drop below their input's depth: their residual must fit whole.
  expand, reduce = depth if is_deconv else (max(d, input_depth) for d in depth)
  return ModulePlan(
    name=name,
    kernel=kernel,
    stride=stride,
    is_deconv=is_deconv,
    crop=deconv_crop or 0,
    input_depth=input_depth,
    expand_depth=expand,
    reduce_depth=reduce,
    output_size=output_size,
    scale=scale,
  )


def _plan_tower(
  spec: TowerSpec, scale: int, base_depth: int, input_depth: int
) -> tuple[ModulePlan, ...]:
  modules: list[ModulePlan] = []
  size = spec.crops[scale]
  in_scale_loss = 2 if spec.in_scale else 0

  def add(name: str, **kwargs: int | tuple[int, int]) -> None:
    last_depth = modules[-1].output_depth if modules else input_depth
    modules.append(_module(name, input_depth=last_depth, **kwargs))  # type: ignore[arg-type]

  for i in range(scale):
    size = (size - 2) // 2
    depth = depths(base_depth, size - in_scale_loss)
    add(f'downscale_{scale}_{i}', kernel=4, stride=2, depth=depth, output_size=size,
        scale=2 ** (i + 1))  # fmt: skip
    if spec.in_scale:
      size -= 2
      add(f'downscale_{scale}_{i}_in_scale', kernel=3, depth=depth, output_size=size,
          scale=2 ** (i + 1))  # fmt: skip
  for r in range(spec.lower_recursions[scale]):
    size -= 2
    add(f'lower_scale_{scale}_recursion_{r}', kernel=3, depth=depths(base_depth, size),
        output_size=size, scale=2**scale)  # fmt: skip
  for i in range(scale):
    size = (size - 1) * 2 + spec.deconv_kernel - 2 * spec.deconv_crop
    final = size - in_scale_loss
    add(f'upscale_{scale}_{i}', kernel=spec.deconv_kernel, stride=2,
        depth=depths(base_depth - spec.deconv_base_depth_cut, final),
        output_size=size, scale=2 ** (scale - i - 1), deconv_crop=spec.deconv_crop)  # fmt: skip
    if spec.in_scale:
      size -= 2
      add(f'upscale_{scale}_{i}_in_scale', kernel=3, depth=depths(base_depth, size),
          output_size=size, scale=2 ** (scale - i - 1))  # fmt: skip
  return tuple(modules)


def make_plan(spec: TowerSpec, base_depth: int, num_images: int) -> NetworkPlan:
  """Derives the plan of all layers of a network.

  Args:
    spec: the network's specification.
    base_depth: the network's width.
    num_images: number of images that the network reads: each input channel at each z depth. Each
      image comes with a mask, so the input has twice as many features.

  Raises:
    ValueError: base_depth or num_images is too small for this network.
  """
  if base_depth < spec.min_base_depth:
    raise ValueError(
      f'base_depth must be at least {spec.min_base_depth} for {spec.name}, got {base_depth}'
    )
  if num_images < 1:
    raise ValueError(f'num_z_values must be at least 1: a network reads images, got {num_images}')
  input_depth = 2 * num_images
  tower_depth = spec.projection_depth or input_depth
  towers = tuple(
    _plan_tower(spec, scale, base_depth, tower_depth) for scale in range(len(spec.crops))
  )
  size = towers[0][-1].output_size
  assert all(tower[-1].output_size == size for tower in towers), spec
  depth = sum(tower[-1].output_depth for tower in towers)
  upper: list[ModulePlan] = []
  for r in range(spec.upper_recursions):
    size -= 2
    upper.append(
      _module(
        f'upper_recursion_{r}',
        kernel=3,
        depth=depths(base_depth, size),
        input_depth=depth,
        output_size=size,
        scale=1,
      )
    )
    depth = upper[-1].output_depth
  assert size == spec.geometry.output, spec
  return NetworkPlan(spec=spec, input_depth=input_depth, towers=towers, upper=tuple(upper))


def _residual_v2_variables(
  scope: str, kernel: int, input_depth: int, depth: int, *, is_deconv: bool = False
) -> Iterator[tuple[str, tuple[int, ...]]]:
  for name in ('gamma', 'beta', 'moving_mean', 'moving_variance'):
    yield f'{scope}/BatchNorm/{name}', (input_depth,)
  # The activation, [relu, tanh], doubles the features that the convolution reads.
  if is_deconv:
    yield f'{scope}/Conv2d_transpose/weights', (kernel, kernel, depth, 2 * input_depth)
  else:
    yield f'{scope}/Conv/weights', (kernel, kernel, 2 * input_depth, depth)


def head_scope(key: ImageKey) -> str:
  """The scope of the variables of the head that predicts the image `key`."""
  return f'head/{key}/residual_v2_conv'


def variable_shapes(
  plan: NetworkPlan, heads: Iterable[ImageKey]
) -> Iterator[tuple[str, tuple[int, ...]]]:
  """Yields (name, shape) of every model variable of the network with these heads."""
  if plan.spec.projection_depth:
    yield 'Conv/weights', (1, 1, plan.input_depth, plan.spec.projection_depth)
    yield 'Conv/biases', (plan.spec.projection_depth,)
  for m in plan.modules():
    yield from _residual_v2_variables(
      f'{m.name}/expand_rv2', m.kernel, m.input_depth, m.expand_depth, is_deconv=m.is_deconv
    )
    yield from _residual_v2_variables(f'{m.name}/reduce_rv2', 1, m.joined_depth, m.reduce_depth)
  for key in heads:
    yield from _residual_v2_variables(head_scope(key), 1, plan.output_depth, NUM_CLASSES)
    yield f'{head_scope(key)}/Conv/biases', (NUM_CLASSES,)
