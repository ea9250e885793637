"""Compares how soon trainings on single patches and on larger windows get how far.

    python benchmarks/train_quality.py

One field of view is cut in two: the rows above --split are trained on, those below held out. Each
setting WINDOW:BATCH:RATE (side of a patch's output in pixels, --loss_output_size; patches in a
batch; Adam's learning rate) starts from the same weights, random ones or a checkpoint's, and trains
the same network. First those of --grid, for --grid_seconds each; then the best single patches, the
best larger window, and the original's defaults (8:16:1e-4, four patches from each crop of 520 x 520
where the field of view is large enough) start again and train for --seconds, in turns of --turn
seconds, so that all see the same machine. Only steps are counted. Held-out losses are those of
all blocks, with the moving averages: the total that is trained on, and the mean of the labels.

It prints these over time. Then it prints ratios: how much sooner the better of single patches and
larger windows gets to the other's final loss and stays below it; the same with the lowest loss so
far, which is that of BASE/best, since losses at a high rate jump up and down; and when the better
of the two gets to the defaults' final loss. Last, it prints one JSON line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import training
from curves import Curve, lowest_so_far, seconds_to, times_as_fast

from isl.checkpoints.checkpoint import Checkpoint, find_newest
from isl.core.channels import TARGET_CHANNELS, TRANSMISSION, StackSpec, input_stack, target_stack
from isl.images import finding, png_io
from isl.images.fields_of_view import FieldOfView
from isl.models.networks import NETWORKS

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
_DEFAULTS = (8, 16, 1e-4)
_DEFAULT_CROP, _DEFAULT_STRIDE = 520, 256


@dataclasses.dataclass(frozen=True)
class Setting:
  """The settings of a training that are compared.

  Attributes:
    window: side of a patch's output, in pixels.
    batch: patches in a batch.
    rate: Adam's learning rate.
  """

  window: int
  batch: int
  rate: float

  def __str__(self) -> str:
    """Formats the setting as on the command line, WINDOW:BATCH:RATE."""
    return f'{self.window}:{self.batch}:{self.rate:g}'


def _setting(text: str) -> Setting:
  window, batch, rate = text.split(':')
  return Setting(int(window), int(batch), float(rate))


def parse_arguments() -> argparse.Namespace:
  """Parses the command line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument(
    '--images',
    default=os.fspath(REPOSITORY / 'data_sample' / 'synthetic_training'),
    help='folder with a field of view',
  )
  parser.add_argument('--split', type=int, default=480, help='first row that is held out')
  parser.add_argument(
    '--restore_directory',
    help='folder of a checkpoint to start from; it says what the network is',
  )
  parser.add_argument('--model', default='CONCORDANCE')
  parser.add_argument('--base_depth', type=int, default=400, help="the network's width")
  parser.add_argument('--num_z_values', type=int, default=13, help='z depths that it reads')
  parser.add_argument(
    '--grid',
    type=lambda text: [_setting(item) for item in text.split(',')],
    default=(
      '8:4:5e-4,8:4:2e-3,8:16:5e-4,8:16:2e-3,'
      '40:1:5e-4,40:1:2e-3,72:1:5e-4,72:1:2e-3,104:1:5e-4,104:1:2e-3'
    ),
    help='settings WINDOW:BATCH:RATE, a comma list',
  )
  parser.add_argument('--grid_seconds', type=float, default=120, help='of each setting of the grid')
  parser.add_argument('--seconds', type=float, default=1200, help='of each of the best')
  parser.add_argument('--turn', type=float, default=20, help='seconds')
  parser.add_argument('--evaluations', type=int, default=12, help='in that time')
  arguments = parser.parse_args()
  if len({setting.window == 8 for setting in arguments.grid}) != 2:
    parser.error('--grid must have windows of 8 and larger ones')
  return arguments


def cut(field_of_view: FieldOfView, folder: pathlib.Path, rows: slice) -> FieldOfView:
  """Writes some rows of a field of view to a folder, and reads them as a field of view."""
  folder.mkdir()
  for key, image in field_of_view.images.items():
    depth = f'z_depth-{key.z}' if isinstance(key.z, int) else f'depth_computation-{key.z}'
    name = f'well-A1,{depth},channel-{key.channel},is_mask-false.png'
    png_io.write_png(folder / name, image[rows, :])
  return finding.find_fields(folder)[0].select((TRANSMISSION,), TARGET_CHANNELS).read()


class Arm:
  """The training of a setting.

  Attributes:
    setting: the settings of the training.
    seconds: seconds of training so far.
    steps: number of steps so far.
    curve: points (seconds, total held-out loss) so far.
    label_curve: points (seconds, mean held-out loss of the labels) so far.
  """

  def __init__(
    self,
    setting: Setting,
    arguments: argparse.Namespace,
    folder: pathlib.Path,
    held_out: training.HeldOut,
  ):
    """Builds the graph, and does one step that is not counted, which starts the kernels.

    Args:
      setting: the settings of the training.
      arguments: the command line.
      folder: folder with the field of view in `trained`; checkpoints are written to it, too.
      held_out: the field of view that losses are computed on.
    """
    self.setting = setting
    self.seconds = 0.0
    self.steps = 0
    self.curve: list[tuple[float, float]] = []
    self.label_curve: list[tuple[float, float]] = []
    self._held_out = held_out
    # One patch from each crop: a larger crop could not be had from a narrow field of view.
    geometry = NETWORKS[arguments.model].geometry
    crop, stride = geometry.patch - geometry.output + setting.window, 1
    if setting == Setting(*_DEFAULTS) and min(arguments.trained_size) >= _DEFAULT_CROP:
      crop, stride = _DEFAULT_CROP, _DEFAULT_STRIDE
    start = {'restore_directory': arguments.restore_directory}
    if not arguments.restore_directory:
      start = {
        'model': arguments.model,
        'base_depth': arguments.base_depth,
        'num_z_values': arguments.num_z_values,
      }
    self._graph, self._session = training.start_training(
      mode='TRAIN',
      read_pngs=True,
      dataset_train_directory=folder / 'trained',
      base_directory=folder / 'base',
      **start,
      loss_output_size=setting.window,
      loss_crop_size=crop,
      loss_patch_stride=stride,
      preprocess_batch_size=setting.batch,
      preprocess_shuffle_batch_num_threads=2,
      learning_rate=setting.rate,
    )
    self._saver = training.Saver(self._graph, self._session, folder / str(setting))
    self._session.run(self._graph.train)

  def train(self, seconds: float) -> None:
    """Does steps for so many more seconds."""
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
      self._session.run(self._graph.train)
      self.steps += 1
    self.seconds += elapsed

  def evaluate(self) -> float:
    """Computes the held-out losses now and adds them to the curves.

    Returns:
      The total; infinite if the training has diverged.
    """
    try:
      losses = self._held_out.losses(self._saver.save())
      total, labels = self._held_out.total(losses), self._held_out.of_labels(losses)
    except ValueError as e:
      print(f'{self.setting!s:>12}  {e}')
      total = math.inf
    if not math.isfinite(total):
      total = labels = math.inf
    self.curve.append((self.seconds, total))
    self.label_curve.append((self.seconds, labels))
    print(
      f'{self.setting!s:>12}  {self.seconds:6.0f} s  step {self.steps:6d}'
      f'  held-out loss {total:.4f}, of labels {labels:.4f}',
      flush=True,
    )
    return total

  def close(self) -> None:
    """Frees the training's memory."""
    self._session.close()


def race(arms: Sequence[Arm], arguments: argparse.Namespace, seconds: float, points: int) -> None:
  """Trains all arms for the same time, in turns, and evaluates them.

  Args:
    arms: the trainings.
    arguments: the command line.
    seconds: time of each training.
    points: number of evaluations in that time.
  """
  for number in range(1, points + 1):
    until = number / points * seconds
    while any(arm.seconds < until for arm in arms):
      for arm in arms:
        if arm.seconds < until:
          arm.train(min(arguments.turn, until - arm.seconds))
    for arm in arms:
      arm.evaluate()


def run_grid(
  arguments: argparse.Namespace, folder: pathlib.Path, held_out: training.HeldOut
) -> dict[Setting, float]:
  """Trains each setting of the grid for a short time, and gives its held-out loss."""
  result = {}
  for setting in arguments.grid:
    arm = Arm(setting, arguments, folder, held_out)
    race([arm], arguments, arguments.grid_seconds, 1)
    result[setting] = arm.curve[-1][1]
    arm.close()
  return result


def read_network(arguments: argparse.Namespace) -> tuple[StackSpec, StackSpec]:
  """The images that the network reads, and the labels that it predicts.

  With a checkpoint, `arguments.model` becomes the checkpoint's.
  """
  if not arguments.restore_directory:
    return input_stack(arguments.num_z_values), target_stack()
  description = Checkpoint(find_newest(arguments.restore_directory)).describe()
  arguments.model = description.model
  return description.inputs, target_stack()


def main() -> None:
  """Runs the benchmark and prints its results."""
  arguments = parse_arguments()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    try:
      inputs, targets = read_network(arguments)
      whole = (
        finding.find_fields(arguments.images)[0].select((TRANSMISSION,), TARGET_CHANNELS).read()
      )
      # The smallest number of rows that the largest window fits into.
      margins = 2 * NETWORKS[arguments.model].geometry.margin
      needed = margins + max(setting.window for setting in arguments.grid)
      if not needed <= arguments.split <= whole.size[0] - margins - 8:
        raise ValueError(
          f'--split must be from {needed} to {whole.size[0] - margins - 8} for these windows and'
          f' images of {whole.size[0]} rows, got {arguments.split}'
        )
    except (ValueError, OSError) as e:
      sys.exit(f'train_quality: {e}')
    trained = cut(whole, folder / 'trained', slice(0, arguments.split))
    arguments.trained_size = trained.size
    held_out = training.HeldOut(
      cut(whole, folder / 'held_out', slice(arguments.split, None)), inputs, targets
    )
    print(f'grid, {arguments.grid_seconds:.0f} s each')
    grid = run_grid(arguments, folder, held_out)
    single = min((s for s in grid if s.window == 8), key=lambda s: grid[s])
    wide = min((s for s in grid if s.window > 8), key=lambda s: grid[s])
    print(f'best, {arguments.seconds:.0f} s each')
    settings = dict.fromkeys((Setting(*_DEFAULTS), single, wide))
    arms = {setting: Arm(setting, arguments, folder, held_out) for setting in settings}
    race(list(arms.values()), arguments, arguments.seconds, arguments.evaluations)
    result = summarize(arms, Setting(*_DEFAULTS), single, wide)
    result['grid'] = {str(setting): loss for setting, loss in grid.items()}
    for arm in arms.values():
      arm.close()
  print(json.dumps(_without_infinity(result), allow_nan=False))


def _without_infinity(value: object) -> object:
  """Replaces infinite losses, of trainings that diverged, by None: JSON has no number for them."""
  if isinstance(value, dict):
    return {key: _without_infinity(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_without_infinity(item) for item in value]
  return value if not isinstance(value, float) or math.isfinite(value) else None


def _compare(what: str, wide: Curve, single: Curve) -> float:
  """Prints and returns how many times as fast as single patches larger windows are."""
  ratio = times_as_fast(wide, single)
  ahead, behind, name = (wide, single, 'windows') if ratio >= 1 else (single, wide, 'patches')
  reached = seconds_to(ahead, behind[-1][1])
  after = f': {name} reach that of the others after {reached:.0f} s' if reached is not None else ''
  print(f'by the {what}, windows are {ratio:.2f} times as fast as patches{after}')
  return ratio


def summarize(
  arms: dict[Setting, Arm], defaults: Setting, single: Setting, wide: Setting
) -> dict[str, object]:
  """Prints how the settings compare, and returns that for the JSON line.

  Args:
    arms: the trainings, by setting.
    defaults: the original's defaults.
    single: the best setting with single patches.
    wide: the best setting with larger windows.
  """
  ratios = {
    '': _compare('final loss', arms[wide].curve, arms[single].curve),
    '_labels': _compare('final loss of labels', arms[wide].label_curve, arms[single].label_curve),
    '_lowest': _compare(
      'lowest loss', lowest_so_far(arms[wide].curve), lowest_so_far(arms[single].curve)
    ),
    '_lowest_labels': _compare(
      'lowest loss of labels',
      lowest_so_far(arms[wide].label_curve),
      lowest_so_far(arms[single].label_curve),
    ),
  }
  best = min((single, wide), key=lambda s: arms[s].curve[-1][1])
  best_seconds = seconds_to(arms[best].curve, arms[defaults].curve[-1][1])
  share = None
  if best_seconds is not None:
    share = best_seconds / arms[defaults].seconds
    print(f"{best} reaches the defaults' final loss in {share:.3f} of their time")
  return {
    'defaults': str(defaults),
    'single': str(single),
    'wide': str(wide),
    'best': str(best),
    **{f'wide_over_single{name}': ratio for name, ratio in ratios.items()},
    'best_over_defaults_time': share,
    'steps': {str(setting): arm.steps for setting, arm in arms.items()},
    'curves': {str(setting): arm.curve for setting, arm in arms.items()},
    'label_curves': {str(setting): arm.label_curve for setting, arm in arms.items()},
  }


if __name__ == '__main__':
  main()
