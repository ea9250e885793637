"""Helpers of tests: reference files where there are any, settings, and runs of the program.

`InferSetting` and `TrainSetting` are a small checkpoint or field of view and runs with it;
`run_in_process` and `python_process` run the program in this process or another, which loads
TensorFlow by itself (see forked.py for one that need not). The names of isl/images/png_folders.py
and `write_field` stand here, too, for tests that write images.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import os
import pathlib
import re
import resource
import runpy
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn
from unittest import mock

import cv2
import numpy as np
import pytest
from absl import app, logging
from absl.testing import flagsaver

from isl.core.channels import TARGET_CHANNELS, TRANSMISSION
from isl.core.experiment import Geometry
from isl.images import png_folders, png_io
from isl.images.fields_of_view import FieldFiles
from isl.images.png_folders import PUBLISHED as PUBLISHED
from isl.images.png_folders import SAMPLE as SAMPLE
from isl.images.png_folders import field_name as field_name
from isl.images.png_folders import image_name as image_name
from isl.programs.random_field import write_field as write_field

if TYPE_CHECKING:
  from tests.support.forked import ForkedProgram

# Under Bazel this file is a link into the repository.
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

# Of FOVEA after `make_fovea_shallow`.
SHALLOW = Geometry(patch=18, output=8)

# For processes, before they do anything: `make_fovea_shallow`.
MAKE_FOVEA_SHALLOW = """if True:
  from tests.support import shallow
"""

# For processes: the program, of which FOVEA is shallow.
RUN_SHALLOW = f"""{MAKE_FOVEA_SHALLOW}
  from isl import launch
  launch.run()
"""


def shared_path(*parts: str) -> pathlib.Path:
  """The path of shared reference material; skips the test if it is missing.

  The material lies in `../shared` beside the repository, or in $ISL_SHARED. With
  ISL_REQUIRE_SHARED=1 the test fails instead of being skipped.

  Args:
    *parts: the path from that folder on: 'data', 'condition_b_sample', for example.
  """
  path = pathlib.Path(os.environ.get('ISL_SHARED') or REPOSITORY.parent / 'shared', *parts)
  if not path.exists():
    skip_what_lacks(path)
  return path


def write_reference_checkpoint(folder: pathlib.Path, variables: str, seed: int) -> pathlib.Path:
  """Writes a checkpoint of the shared reference material.

  Args:
    folder: the checkpoint's folder.
    variables: the name of the file that lists the variables.
    seed: the seed of their values.

  Returns:
    The checkpoint's prefix.
  """
  from isl.checkpoints import saving

  script = shared_path('reference', 'make_checkpoint.py')
  # The values that it writes; it would make a graph of them first.
  random_value = runpy.run_path(str(script))['random_value']
  rng = np.random.RandomState(seed)
  values = {
    name: random_value(rng, name, shape).astype(np.float32)
    for name, shape in json.loads(script.with_name(variables).read_text())
  }
  folder.mkdir(parents=True, exist_ok=True)
  prefix = folder / 'model.ckpt-375000'
  saving.write_values(prefix, {**values, 'global_step': np.array(375000)})
  saving.write_state(folder, prefix.name)
  return prefix


def original_fields(directory: str | os.PathLike[str]) -> list[FieldFiles]:
  """Finds the fields of view in a folder, with the images that the original's network reads."""
  found = png_folders.find_png_fields(pathlib.Path(directory))
  png_folders.log_unused(str(directory), found, (TRANSMISSION,), TARGET_CHANNELS)
  return [field.select((TRANSMISSION,), TARGET_CHANNELS) for field in found]


def skip_what_lacks(something: object) -> NoReturn:
  """Skips the test because something is missing; fails it with ISL_REQUIRE_SHARED=1."""
  if os.environ.get('ISL_REQUIRE_SHARED') == '1':
    pytest.fail(f'{something} is missing, and ISL_REQUIRE_SHARED=1 asks for it')
  pytest.skip(f'{something} is missing')


def python_process(code: str, *arguments: object) -> subprocess.Popen[str]:
  """Starts Python with this process's import path, for tests that kill it or starve it of disk.

  Args:
    code: the Python program.
    *arguments: the program's sys.argv[1:].

  Returns:
    The process, with pipes for its input and outputs, as text.
  """
  # A shell's background jobs ignore Ctrl-C, and so would programs that they start.
  if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
  return subprocess.Popen(
    [sys.executable, '-c', code, *map(str, arguments)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """How a run of the program ended.

  Attributes:
    status: the program's exit status.
    stdout: all that the program wrote to stdout.
    stderr: all that the program wrote to stderr: log lines and errors.
  """

  status: int
  stdout: str
  stderr: str

  @property
  def error_lines(self) -> list[str]:
    """The lines of stderr other than absl's log lines of information and warnings."""
    return [x for x in self.stderr.splitlines() if not re.match(r'[IW]\d{4} \d\d:\d\d:\d\d\.', x)]

  @property
  def error(self) -> str:
    """The only error line, which says what a user can mend; there must be no other."""
    assert self.status in (1, 2), (self.status, self.stderr)
    assert len(self.error_lines) == 1, self.stderr
    return self.error_lines[0]


def run_in_process(run: Callable[[], None], *arguments: object) -> Outcome:
  """Runs a program made with absl, as often as needed: TensorFlow is loaded only once.

  Args:
    run: the console script's function.
    *arguments: the command line. Afterwards, flags have the values that they had before.

  Returns:
    How the run ended. An exception that reaches the top is passed on.
  """
  # Before the flags are saved, since only the first run defines --help and the like.
  app.define_help_flags()
  out, err = io.StringIO(), io.StringIO()
  status: object = 0
  with (
    flagsaver.flagsaver(),
    mock.patch.object(sys, 'argv', ['isl-launch', *map(str, arguments)]),
    mock.patch.dict(os.environ),
    # absl took stderr when it was loaded.
    mock.patch.object(logging.get_absl_handler().python_handler, 'stream', err),
    contextlib.redirect_stdout(out),
    contextlib.redirect_stderr(err),
  ):
    try:
      run()
    except SystemExit as e:
      status = e.code or 0
  assert isinstance(status, int), status
  return Outcome(status=status, stdout=out.getvalue(), stderr=err.getvalue())


def finish(process: subprocess.Popen[str] | ForkedProgram, timeout: float = 300) -> Outcome:
  """Waits for a process that a test has started; after `timeout` seconds, the test fails."""
  try:
    out, err = process.communicate(timeout=timeout)
  except subprocess.TimeoutExpired:
    process.kill()
    out, err = process.communicate()
    pytest.fail(f'ran longer than {timeout} s: {err}')
  assert process.returncode is not None
  return Outcome(status=process.returncode, stdout=out, stderr=err)


@contextlib.contextmanager
def small_disk(room: int) -> Iterator[Callable[[], None]]:
  """No file can grow beyond `room` bytes, as on a full disk: the system refuses to write on.

  Args:
    room: so many bytes.

  Yields:
    () -> None, which makes room.
  """
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
  try:
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files_in(folder: pathlib.Path) -> set[str]:
  """The paths of all files below a folder (which may be missing), relative to it."""
  return {str(path.relative_to(folder)) for path in folder.rglob('*') if not path.is_dir()}


def events(folder: pathlib.Path) -> dict[tuple[int, str], np.ndarray]:
  """The values in all event files of a folder, as TensorBoard loads them, by (step, tag)."""
  # Imported here, because these load TensorFlow.
  from tensorboard.backend.event_processing import event_file_loader
  from tensorboard.util import tensor_util

  return {
    (event.step, value.tag): tensor_util.make_ndarray(value.tensor)
    for path in sorted(folder.iterdir())
    for event in event_file_loader.EventFileLoader(str(path)).Load()
    for value in event.summary.value
  }


def event_picture(value: np.ndarray) -> np.ndarray:
  """Decodes an event's picture, uint8 RGB [row, column, colour]; checks the size that it claims."""
  decoded = cv2.imdecode(np.frombuffer(value[2], np.uint8), cv2.IMREAD_UNCHANGED)
  assert decoded is not None and decoded.dtype == np.uint8
  assert [int(n) for n in value[:2]] == [decoded.shape[1], decoded.shape[0]]
  return decoded[..., ::-1]


def panel_boxes(strip: np.ndarray, count: int) -> list[np.ndarray]:
  """Cuts a row of an error panel into its pictures, from left to right, without borders."""
  return [box[4:-4, 4:-4] for box in np.split(strip, count, axis=1)]


class InferRun:
  """What a run of INFER_FULL wrote.

  Attributes:
    folder: the folder of the checkpoint's results.
    outcome: how the run ended.
    record: contents of run.json.
    metrics: rows of metrics.csv.
  """

  def __init__(self, folder: pathlib.Path, outcome: Outcome):
    """Reads run.json and metrics.csv."""
    self.folder = folder
    self.outcome = outcome
    self.record = json.loads((folder / 'run.json').read_text())
    with (folder / 'metrics.csv').open(newline='') as stream:
      self.metrics = list(csv.DictReader(stream))

  def record_of(self, field: str) -> dict[str, Any]:
    """What run.json says of a field of view."""
    (record,) = (record for record in self.record['fields'] if record['field'] == field)
    return record

  def prediction(self, field: str, channel: str, statistic: str = 'MEDIAN') -> np.ndarray:
    """Reads a predicted image, uint16 [row, column]."""
    name = png_folders.prediction_name(field, channel, statistic)
    (path,) = (path for path in self.record_of(field)['files'] if path.endswith(name))
    return png_io.read_png(self.folder / path)

  def panel(self, name: str) -> np.ndarray:
    """Reads an error panel, 'target' or 'input': uint16 RGB [row, column, colour]."""
    image = cv2.imread(str(self.folder / f'{name}_error_panel.png'), cv2.IMREAD_UNCHANGED)
    assert image is not None and image.dtype == np.uint16, name
    return image[..., ::-1]


class InferSetting:
  """A FOVEA of random weights, a field of view with three labels, and runs of INFER_FULL.

  FOVEA has to be shallow (`make_fovea_shallow`). The field of view has 4 x 6 blocks, some pixels
  that make no block, and 5 depths, of which the network reads those at 0, 0.5 and 1.

  Attributes:
    checkpoint: folder of the checkpoint, at step 1000.
    images: folder of the field of view.
    field: name of the field of view.
    rows: rows of the field of view's images, in pixels.
    columns: columns of the field of view's images, in pixels.
    size: (rows, columns) of the predictions, in pixels.
    margin: pixels that the predictions lack on each side.
    channels: labels of the field of view.
  """

  size = (32, 48)
  margin = SHALLOW.margin
  rows, columns = size[0] + 2 * margin + 5, size[1] + 2 * margin + 5
  channels = ('DAPI_CONFOCAL', 'MAP2_CONFOCAL', 'NFH_CONFOCAL')

  def __init__(self, run: Callable[[], None], tmp_path_factory: pytest.TempPathFactory):
    """Writes the checkpoint and the images; `run` is the console script's function."""
    # TensorFlow takes seconds to load, which not all tests should wait for.
    from isl.models import networks
    from isl.programs import random_checkpoint

    assert networks.NETWORKS['FOVEA'].geometry == SHALLOW
    self._run = run
    self._tmp = tmp_path_factory
    self.checkpoint = self.new_folder()
    random_checkpoint.write_random_checkpoint(
      self.checkpoint, model='FOVEA', base_depth=8, num_z_values=3
    )
    self.images = self.new_folder()
    (self.field,) = write_field(
      self.images, rows=self.rows, columns=self.columns, depths=5, channels=self.channels
    )

  def new_folder(self) -> pathlib.Path:
    """Makes an empty folder."""
    return self._tmp.mktemp('infer')

  def flags(self, base: pathlib.Path, images: pathlib.Path | None = None) -> list[str]:
    """The command line of a run that writes to `base`."""
    return [
      '--mode=EVAL_EVAL',
      '--metric=INFER_FULL',
      '--read_pngs',
      f'--restore_directory={self.checkpoint}',
      f'--dataset_eval_directory={images or self.images}',
      f'--base_directory={base}',
    ]

  def run(
    self, *flags: str, images: pathlib.Path | None = None, base: pathlib.Path | None = None
  ) -> InferRun:
    """Runs the program in this process, with more flags; it must succeed."""
    base = base or self.new_folder()
    outcome = run_in_process(self._run, *self.flags(base, images), *flags)
    assert outcome.status == 0, outcome.stderr
    assert not outcome.error_lines
    return InferRun(base / 'eval_eval_infer' / '00001000', outcome)


class TrainRun:
  """What a run of TRAIN wrote.

  Attributes:
    folder: the folder BASE/train.
    outcome: how the run ended.
  """

  def __init__(self, folder: pathlib.Path, outcome: Outcome):
    """Takes the folder and the outcome; reads nothing yet."""
    self.folder = folder
    self.outcome = outcome

  @property
  def record(self) -> dict[str, Any]:
    """The contents of run.json."""
    record: dict[str, Any] = json.loads((self.folder / 'run.json').read_text())
    return record

  @property
  def steps(self) -> list[int]:
    """The steps of the checkpoints that are there, sorted."""
    return sorted(int(path.stem.rpartition('-')[2]) for path in self.folder.glob('*.index'))

  def values(self, step: int) -> dict[str, np.ndarray]:
    """Reads all variables of the checkpoint of a step, the optimizer's included, by name."""
    from isl.checkpoints.checkpoint import Checkpoint

    checkpoint = Checkpoint(self.folder / f'model.ckpt-{step}')
    return {name: checkpoint.value(name) for name in checkpoint.shapes}


class TrainSetting:
  """A field of view with three labels, and runs of TRAIN of a narrow FOVEA.

  Attributes:
    images: folder of the field of view, which has 3 depths.
    network: flags that say which network is trained.
  """

  network = ('--model=FOVEA', '--base_depth=6', '--num_z_values=3')

  def __init__(self, run: Callable[[], None], tmp_path_factory: pytest.TempPathFactory):
    """Writes the images; `run` is the console script's function."""
    self._run = run
    self._tmp = tmp_path_factory
    self.images = self.new_folder()
    write_field(self.images, rows=160, columns=160)

  def new_folder(self) -> pathlib.Path:
    """Makes an empty folder."""
    return self._tmp.mktemp('train')

  def flags(self, base: pathlib.Path) -> list[str]:
    """The command line of a run that writes to `base`, without the flags of `network`."""
    return [
      '--mode=TRAIN',
      '--read_pngs',
      f'--dataset_train_directory={self.images}',
      '--loss_crop_size=130',
      '--preprocess_batch_size=2',
      f'--base_directory={base}',
    ]

  def run(self, *flags: str, base: pathlib.Path | None = None) -> TrainRun:
    """Runs the program in this process, with more flags; it must succeed."""
    base = base or self.new_folder()
    outcome = run_in_process(self._run, *self.flags(base), *flags)
    assert outcome.status == 0, outcome.stderr
    assert not outcome.error_lines, outcome.stderr
    return TrainRun(base / 'train', outcome)


def make_fovea_shallow(monkeypatch: pytest.MonkeyPatch) -> None:
  """Leaves FOVEA a module of its first tower, and what follows: a fifth of the time to build."""
  from isl.models import fovea, networks

  shallow = dataclasses.replace(
    fovea.FOVEA, geometry=SHALLOW, crops=(SHALLOW.patch,), lower_recursions=(1,)
  )
  monkeypatch.setitem(networks.NETWORKS, 'FOVEA', shallow)


def make_concordance_shallow(monkeypatch: pytest.MonkeyPatch) -> None:
  """Leaves CONCORDANCE its projection and a module of its first tower: a tenth of the time."""
  from isl.models import concordance, networks

  shallow = dataclasses.replace(
    concordance.CONCORDANCE,
    geometry=SHALLOW,
    crops=(SHALLOW.patch,),
    lower_recursions=(1,),
    upper_recursions=4,
  )
  monkeypatch.setitem(networks.NETWORKS, 'CONCORDANCE', shallow)


def make_seconds_pass(monkeypatch: pytest.MonkeyPatch) -> None:
  """Gives trainings a clock on which each look at it takes a second."""
  from isl.training import hooks, summary_hook

  for module in (hooks, summary_hook):
    clock = itertools.count(1000.0)
    monkeypatch.setattr(module, 'time', types.SimpleNamespace(monotonic=lambda c=clock: next(c)))


def assert_same_values(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
  """Asserts that two checkpoints' values, by name, are the same to the bit."""
  assert a.keys() == b.keys()
  differing = [name for name in a if not np.array_equal(a[name], b[name])]
  assert not differing
