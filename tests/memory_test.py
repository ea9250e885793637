"""Memory grows with a field of view by little more than the arrays that become files."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from isl import launch
from isl.images import png_folders, png_io
from isl.programs import random_checkpoint
from tests.support.microscope import write_ome_zarr
from tests.support.program import (
  MAKE_FOVEA_SHALLOW,
  __name__,
  finish,
  make_fovea_shallow,
  python_process,
  shared_path,
  write_field,
)

# ru_maxrss would begin with the parent's; this is the process's own.
_PEAK = r"""
  import importlib, pathlib, re, sys
  launch = importlib.import_module(sys.argv.pop(1))
  try:
    launch.run()
  except SystemExit as e:
    assert not e.code
  status = pathlib.Path('/proc/self/status').read_text()
  print(re.search(r'VmHWM:\s*(\d+) kB', status)[1])
"""


# Tiles of one size, whatever the field of view's.
_TO_ZARR = ('--prediction_format=OME_ZARR', '--infer_panels=', '--infer_size=8')


def _arguments(base, checkpoint, images):
  """The command line for labeling a whole field of view."""
  return [
    '--mode=EVAL_EVAL',
    '--metric=INFER_FULL',
    '--read_pngs',
    '--stitch_crop_size=0',
    f'--restore_directory={checkpoint}',
    f'--dataset_eval_directory={images}',
    f'--base_directory={base}',
  ]


def _peak_mb(base, checkpoint, images, timeout, *flags, before='if True:'):
  """The peak memory of labeling a whole field of view, in MB; without flags, of all it can do.

  Args:
    base: BASE.
    checkpoint: the checkpoint's folder.
    images: the field of view.
    timeout: in seconds.
    *flags: more of the command line.
    before: the beginning of the process's code: MAKE_FOVEA_SHALLOW, for example.
  """
  if not pathlib.Path('/proc/self/status').exists():
    pytest.skip('this system does not tell a peak')
  arguments = _arguments(base, checkpoint, images)
  process = python_process(before + _PEAK, launch.__name__, *arguments, *flags)
  outcome = finish(process, timeout)
  assert outcome.status == 0, outcome.stderr
  return int(outcome.stdout) * 1024 / 1e6


# One process after the other would load TensorFlow twice; a peak never falls, and what the first
# run leaves behind counts for the second. Forks of one that has loaded it, and done nothing yet,
# have peaks of their own.
_GROWTH = r"""if True:
  import importlib, json, os, pathlib, re, sys
  import pytest
  import isl.inference.infer
  program, launch = map(importlib.import_module, sys.argv[1:3])
  program.make_fovea_shallow(pytest.MonkeyPatch())
  for lines in json.loads(sys.argv[3]):
    if child := os.fork():
      assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
      continue
    for arguments in lines:
      outcome = program.run_in_process(launch.run, *arguments)
      assert not outcome.status, outcome.stderr
      status = pathlib.Path('/proc/self/status').read_text()
      print(re.search(r'VmHWM:\s*(\d+) kB', status)[1], end=' ')
    print(flush=True)
    break
"""


def _growths_mb(tmp_path, *kinds):
  """How much higher the peak memory is for larger fields of view than for smaller ones, in MB.

  Args:
    tmp_path: an empty folder.
    *kinds: for each kind of run, the checkpoint, the images of two fields of view, and flags.
  """
  if not pathlib.Path('/proc/self/status').exists():
    pytest.skip('this system does not tell a peak')
  lines = [
    [
      [*_arguments(tmp_path / f'base{i}{j}', checkpoint, folder), *flags]
      for j, folder in enumerate(images)
    ]
    for i, (checkpoint, images, flags) in enumerate(kinds)
  ]
  process = python_process(_GROWTH, __name__, launch.__name__, json.dumps(lines))
  outcome = finish(process)
  assert outcome.status == 0, outcome.stderr
  peaks = [[int(peak) for peak in line.split()] for line in outcome.stdout.splitlines()]
  return [(after - before) * 1024 / 1e6 for before, after in peaks]


def test_growth_is_small(tmp_path, monkeypatch):
  """The larger field of view has 36 x 36 blocks, which become PNGs, or 48 x 48, which become Zarr.

  Their logits would take 85 and 151 MB for each head.
  """
  make_fovea_shallow(monkeypatch)
  checkpoint = tmp_path / 'checkpoint'
  random_checkpoint.write_random_checkpoint(checkpoint, model='FOVEA', base_depth=5, num_z_values=2)
  images = {}
  # Of 15 x 15 blocks, and of 36 x 36; of 8 x 8, and of 48 x 48.
  for side in (132, 298, 74, 394):
    images[side] = tmp_path / str(side)
    write_field(images[side], rows=side, columns=side, depths=2, channels=['DAPI_CONFOCAL'])
  # Tiles of one size, whatever the field of view's.
  to_png = ('--infer_size=8', '--infer_channel_whitelist=DAPI_CONFOCAL')
  growths = _growths_mb(
    tmp_path,
    (checkpoint, [images[132], images[298]], to_png),
    (checkpoint, [images[74], images[394]], (*_TO_ZARR, *to_png)),
  )
  assert max(growths) < 60


def _write_fields(tmp_path, sides, depths):
  """Fields of view of some sizes, one label each, as files of two kinds; and a checkpoint."""
  checkpoint = tmp_path / 'checkpoint'
  random_checkpoint.write_random_checkpoint(
    checkpoint,
    model='FOVEA',
    base_depth=5,
    num_z_values=depths,
    target_channels=['DAPI_CONFOCAL'],
  )
  written = []
  for side in sides:
    images = tmp_path / str(side)
    write_field(images, rows=side, columns=side, depths=depths, channels=['DAPI_CONFOCAL'])
    written.append({'PNG': images, 'OME_ZARR': tmp_path / f'{side}.ome.zarr'})
    (field,) = png_folders.find_png_fields(images)
    write_ome_zarr(written[-1]['OME_ZARR'], field, chunk=256)
  return checkpoint, written


@pytest.mark.soak
def test_field_of_view_sixteen_times_as_large_to_zarr(tmp_path, monkeypatch):
  """Half a gigabyte of images, 13 depths of 4096 x 4096 pixels, is not kept in memory."""
  make_fovea_shallow(monkeypatch)
  checkpoint, (small, large) = _write_fields(tmp_path, (1024, 4096), depths=13)
  for source in ('PNG', 'OME_ZARR'):
    peaks = [
      _peak_mb(
        tmp_path / f'base{i}{source}',
        checkpoint,
        field[source],
        7200,
        *_TO_ZARR,
        before=MAKE_FOVEA_SHALLOW,
      )
      for i, field in enumerate((small, large))
    ]
    assert peaks[1] < 1.3 * peaks[0]


@pytest.mark.soak
def test_real_sample_and_one_four_times_as_large(tmp_path):
  """At full width: under 3 GB, and at most 1.3 times that."""
  sample = shared_path('data', 'condition_b_sample')
  checkpoint, large = tmp_path / 'checkpoint', tmp_path / 'large'
  random_checkpoint.write_random_checkpoint(checkpoint, base_depth=400, num_z_values=26)
  large.mkdir()
  for path in sample.glob('*.png'):
    png_io.write_png(large / path.name, np.tile(png_io.read_png(path), (2, 2)))
  peak = _peak_mb(tmp_path / 'base', checkpoint, sample, timeout=1800)
  assert peak < 3000
  assert _peak_mb(tmp_path / 'base_large', checkpoint, large, timeout=5400) < 1.3 * peak
