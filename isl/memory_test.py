"""Memory grows with a field of view by little more than the arrays that become files."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from isl import launch, microscope_testing, png_folders, png_io, random_checkpoint, testing

# ru_maxrss would begin with the parent's; this is the process's own.
_PEAK = r"""if True:
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


def _peak_mb(base, checkpoint, images, timeout, *flags):
  """Of labelling a whole field of view, in MB; without flags all heads and both panels."""
  if not pathlib.Path('/proc/self/status').exists():
    pytest.skip('this system does not tell a peak')
  process = testing.python_process(
    _PEAK,
    launch.__name__,
    '--mode=EVAL_EVAL',
    '--metric=INFER_FULL',
    '--read_pngs',
    '--stitch_crop_size=0',
    f'--restore_directory={checkpoint}',
    f'--dataset_eval_directory={images}',
    f'--base_directory={base}',
    *flags,
  )
  outcome = testing.finish(process, timeout)
  assert outcome.status == 0, outcome.stderr
  return int(outcome.stdout) * 1024 / 1e6


def test_growth_is_small(tmp_path):
  """Logits of the larger field of view would take 85 MB for each head."""
  checkpoint = tmp_path / 'checkpoint'
  random_checkpoint.write_random_checkpoint(checkpoint, model='FOVEA', base_depth=5, num_z_values=2)
  peaks = []
  for side in (206, 398):
    images = tmp_path / str(side)
    testing.write_image_set(images, rows=side, columns=side, depths=2)
    # Tiles of one size, whatever the field of view's.
    peaks.append(_peak_mb(tmp_path / 'base', checkpoint, images, 300, '--infer_size=8'))
  assert peaks[1] - peaks[0] < 60


def _peaks_to_zarr(tmp_path, sides, depths, timeout, sources=('PNG', 'OME_ZARR')):
  """Of labelling fields of view of some sizes, one label, from files of some kinds, in MB."""
  checkpoint = tmp_path / 'checkpoint'
  random_checkpoint.write_random_checkpoint(
    checkpoint,
    model='FOVEA',
    base_depth=5,
    num_z_values=depths,
    target_channels=['DAPI_CONFOCAL'],
  )
  peaks = []
  for side in sides:
    images = tmp_path / str(side)
    testing.write_image_set(
      images, rows=side, columns=side, depths=depths, channels=['DAPI_CONFOCAL']
    )
    found = {'PNG': images, 'OME_ZARR': tmp_path / f'{side}.ome.zarr'}
    (field,) = png_folders.find_png_fields(images)
    microscope_testing.write_ome_zarr(found['OME_ZARR'], field, chunk=256)
    peaks.append(
      [
        _peak_mb(tmp_path / f'base{side}{source}', checkpoint, found[source], timeout, *_TO_ZARR)
        for source in sources
      ]
    )
  return peaks


def test_growth_is_smaller_to_zarr(tmp_path):
  """From 0.03 to 0.4 megapixels."""
  small, large = _peaks_to_zarr(tmp_path, (166, 622), depths=2, timeout=300, sources=['OME_ZARR'])
  assert large[0] - small[0] < 60


@pytest.mark.soak
def test_field_of_view_sixteen_times_as_large_to_zarr(tmp_path):
  """Of 4096 x 4096 pixels, 13 depths: half a gigabyte of images, which are not kept in memory."""
  small, large = _peaks_to_zarr(tmp_path, (1024, 4096), depths=13, timeout=7200)
  assert large[0] < 1.3 * small[0]
  assert large[1] < 1.3 * small[1]


@pytest.mark.soak
def test_real_sample_and_one_four_times_as_large(tmp_path):
  """At full width: under 3 GB, and at most 1.3 times that."""
  sample = testing.shared_path('data', 'condition_b_sample')
  checkpoint, large = tmp_path / 'checkpoint', tmp_path / 'large'
  random_checkpoint.write_random_checkpoint(checkpoint, base_depth=400, num_z_values=26)
  large.mkdir()
  for path in sample.glob('*.png'):
    png_io.write_png(large / path.name, np.tile(png_io.read_png(path), (2, 2)))
  peak = _peak_mb(tmp_path / 'base', checkpoint, sample, timeout=1800)
  assert peak < 3000
  assert _peak_mb(tmp_path / 'base_large', checkpoint, large, timeout=5400) < 1.3 * peak
