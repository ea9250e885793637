"""How soon a training gets how far: single patches beside larger windows, for the same seconds.

    python benchmarks/train_quality.py

One field of view is cut in two: the rows above --split are trained on, those below held out. Each
setting WINDOW:BATCH:RATE (side of a patch's output in pixels, --loss_output_size; patches in a
batch; Adam's learning rate) starts from the same weights and trains the same network. First those
of --grid, for --grid_seconds each; the best of each window size, and the original's defaults
(8:16:1e-4), then start again and train for --seconds. They do so in turns of --turn seconds, so
that all see the same machine, and only steps are counted. Held-out losses are those of all blocks,
with the moving averages.

Prints these over time; as ratios, the time at which the best larger window reaches the final loss
of the best 8 x 8 patches, and that at which the best of all reaches the defaults'; last, one JSON
line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Sequence

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import training

from isl import image_io, png_io
from isl.experiment import input_stack, target_stack
from isl.image_io import ImageSet
from isl.models.networks import NETWORKS

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
_DEFAULTS = (8, 16, 1e-4)


@dataclasses.dataclass(frozen=True)
class Setting:
  """A way to train.

  Attributes:
    window: side of a patch's output, in pixels.
    batch: patches in a batch.
    rate: Adam's learning rate.
  """

  window: int
  batch: int
  rate: float

  def __str__(self) -> str:
    """As the command line has it."""
    return f'{self.window}:{self.batch}:{self.rate:g}'


def _setting(text: str) -> Setting:
  window, batch, rate = text.split(':')
  return Setting(int(window), int(batch), float(rate))


def parse_arguments() -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument(
    '--images',
    default=os.fspath(REPOSITORY / 'data_sample' / 'synthetic_training'),
    help='folder with a field of view',
  )
  parser.add_argument('--split', type=int, default=480, help='first row that is held out')
  parser.add_argument('--model', default='CONCORDANCE')
  parser.add_argument('--base_depth', type=int, default=400, help="the network's width")
  parser.add_argument('--num_z_values', type=int, default=13, help='z depths that it reads')
  parser.add_argument(
    '--grid',
    type=lambda text: [_setting(item) for item in text.split(',')],
    default='8:4:5e-4,8:4:2e-3,8:16:5e-4,8:16:2e-3,40:1:5e-4,40:1:2e-3,72:1:5e-4,72:1:2e-3',
    help='settings WINDOW:BATCH:RATE, a comma list',
  )
  parser.add_argument('--grid_seconds', type=float, default=180, help='of each setting of the grid')
  parser.add_argument('--seconds', type=float, default=1200, help='of each of the best')
  parser.add_argument('--turn', type=float, default=20, help='seconds')
  parser.add_argument('--evaluations', type=int, default=12, help='in that time')
  return parser.parse_args()


def cut(image_set: ImageSet, folder: pathlib.Path, rows: slice) -> ImageSet:
  """Writes some rows of a field of view to a folder, and reads them."""
  folder.mkdir()
  for key, image in image_set.images.items():
    depth = f'z_depth-{key.z}' if isinstance(key.z, int) else f'depth_computation-{key.z}'
    name = f'well-A1,{depth},channel-{key.channel},is_mask-false.png'
    png_io.write_png(folder / name, image[rows])
  return image_io.find_image_sets(folder)[0].read()


class Arm:
  """One setting's training.

  Attributes:
    setting: how it trains.
    seconds: for how long so far.
    steps: how many so far.
    curve: [seconds, held-out loss] so far.
  """

  def __init__(
    self,
    setting: Setting,
    arguments: argparse.Namespace,
    folder: pathlib.Path,
    held_out: training.HeldOut,
  ):
    """Builds the graph, and takes one step that is not counted: it starts the kernels."""
    self.setting = setting
    self.seconds = 0.0
    self.steps = 0
    self.curve: list[tuple[float, float]] = []
    self._held_out = held_out
    geometry = NETWORKS[arguments.model].geometry
    side = geometry.patch - geometry.output + setting.window
    self._graph, self._session = training.start_training(
      mode='TRAIN',
      read_pngs=True,
      dataset_train_directory=folder / 'trained',
      base_directory=folder / 'base',
      model=arguments.model,
      base_depth=arguments.base_depth,
      num_z_values=arguments.num_z_values,
      loss_output_size=setting.window,
      # One patch from each crop: a larger crop could not be had from a narrow field of view.
      loss_crop_size=side,
      preprocess_batch_size=setting.batch,
      preprocess_shuffle_batch_num_threads=2,
      learning_rate=setting.rate,
    )
    self._saver = training.Saver(self._graph, self._session, folder / str(setting))
    self._session.run(self._graph.train)

  def train(self, seconds: float) -> None:
    """Takes steps until so many more seconds are used."""
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
      self._session.run(self._graph.train)
      self.steps += 1
    self.seconds += elapsed

  def evaluate(self) -> float:
    """The held-out loss now, which is added to the curve."""
    losses = self._held_out.losses(self._saver.save())
    self.curve.append((self.seconds, self._held_out.total(losses)))
    loss = self.curve[-1][1]
    print(
      f'{self.setting!s:>12}  {self.seconds:6.0f} s  step {self.steps:6d}'
      f'  held-out loss {loss:.4f}',
      flush=True,
    )
    return loss

  def seconds_to(self, loss: float) -> float | None:
    """When the curve first is at or below a loss, between its points on a straight line."""
    before: tuple[float, float] | None = None
    for point in self.curve:
      if point[1] <= loss:
        if before is None:
          return point[0]
        share = (before[1] - loss) / (before[1] - point[1])
        return before[0] + share * (point[0] - before[0])
      before = point
    return None

  def close(self) -> None:
    """Frees its memory."""
    self._session.close()


def run_grid(
  arguments: argparse.Namespace, folder: pathlib.Path, held_out: training.HeldOut
) -> dict[Setting, float]:
  """The held-out loss of each setting after the short time."""
  result = {}
  for setting in arguments.grid:
    arm = Arm(setting, arguments, folder, held_out)
    arm.train(arguments.grid_seconds)
    result[setting] = arm.evaluate()
    arm.close()
  return result


def race(arms: Sequence[Arm], arguments: argparse.Namespace) -> None:
  """Trains all arms for the long time, in turns."""
  for number in range(1, arguments.evaluations + 1):
    until = number / arguments.evaluations * arguments.seconds
    while any(arm.seconds < until for arm in arms):
      for arm in arms:
        if arm.seconds < until:
          arm.train(min(arguments.turn, until - arm.seconds))
    for arm in arms:
      arm.evaluate()


def main() -> None:
  """Trains, evaluates and prints."""
  arguments = parse_arguments()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    whole = image_io.find_image_sets(arguments.images)[0].read()
    cut(whole, folder / 'trained', slice(0, arguments.split))
    held_out = training.HeldOut(
      cut(whole, folder / 'held_out', slice(arguments.split, None)),
      input_stack(arguments.num_z_values),
      target_stack(),
    )
    print(f'grid, {arguments.grid_seconds:.0f} s each')
    grid = run_grid(arguments, folder, held_out)
    single = min((s for s in grid if s.window == 8), key=lambda s: grid[s])
    wide = min((s for s in grid if s.window > 8), key=lambda s: grid[s])
    print(f'best, {arguments.seconds:.0f} s each')
    settings = dict.fromkeys((Setting(*_DEFAULTS), single, wide))
    arms = {setting: Arm(setting, arguments, folder, held_out) for setting in settings}
    race(list(arms.values()), arguments)
    result = summarize(arms, Setting(*_DEFAULTS), single, wide)
    result['grid'] = {str(setting): loss for setting, loss in grid.items()}
    for arm in arms.values():
      arm.close()
  print(json.dumps(result))


def summarize(
  arms: dict[Setting, Arm], defaults: Setting, single: Setting, wide: Setting
) -> dict[str, object]:
  """Prints how the settings compare, and gives it for the JSON line."""
  wide_seconds = arms[wide].seconds_to(arms[single].curve[-1][1])
  single_seconds = arms[single].seconds_to(arms[wide].curve[-1][1])
  if wide_seconds is not None:
    ratio = arms[single].seconds / wide_seconds
  else:
    # The single patches are ahead at the end.
    assert single_seconds is not None
    ratio = single_seconds / arms[wide].seconds
  best = min((single, wide), key=lambda s: arms[s].curve[-1][1])
  best_seconds = arms[best].seconds_to(arms[defaults].curve[-1][1])
  print(f'windows {wide} are {ratio:.2f} times as fast as patches {single}')
  if best_seconds is not None:
    share = best_seconds / arms[defaults].seconds
    print(f"{best} reaches the defaults' final loss in {share:.3f} of their time")
  return {
    'defaults': str(defaults),
    'single': str(single),
    'wide': str(wide),
    'best': str(best),
    'wide_over_single': ratio,
    'best_over_defaults_time': best_seconds and best_seconds / arms[defaults].seconds,
    'steps': {str(setting): arm.steps for setting, arm in arms.items()},
    'curves': {str(setting): arm.curve for setting, arm in arms.items()},
  }


if __name__ == '__main__':
  main()
