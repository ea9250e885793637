"""INFER_FULL of the same field of view as PNGs, OME-TIFF, OME-Zarr and by manifest: the same."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from isl import launch
from isl.core.channels import MAXPROJECT, ImageKey
from isl.images import png_folders, png_io
from isl.programs import bare_checkpoint, random_checkpoint
from tests.support.microscope import write_manifest, write_ome_tiff, write_ome_zarr
from tests.support.program import (
  InferRun,
  make_fovea_shallow,
  run_in_process,
  shared_path,
  write_field,
)

_SOURCES = ('OME_TIFF', 'OME_ZARR', 'MANIFEST', 'MANIFEST_OF_FILES')


@pytest.fixture(scope='module', autouse=True)
def shallow():
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    yield


def _labeled(base, checkpoint, images, *flags):
  """Labels images; gives the predictions' contents by file name, and metrics.csv without names."""
  outcome = run_in_process(
    launch.run,
    '--mode=EVAL_EVAL',
    '--metric=INFER_FULL',
    '--read_pngs',
    f'--restore_directory={checkpoint}',
    f'--dataset_eval_directory={images}',
    f'--base_directory={base}',
    *flags,
  )
  assert outcome.status == 0, outcome.stderr
  run = InferRun(next((base / 'eval_eval_infer').iterdir()), outcome)
  (record,) = run.record['fields']
  predictions = {}
  for channel in ('DAPI_CONFOCAL', 'MAP2_CONFOCAL', 'NFH_CONFOCAL'):
    for statistic in ('MEDIAN', 'MEAN', 'QUANTILE_5'):
      predictions[channel, statistic] = run.prediction(record['field'], channel, statistic)
  rows = [{k: v for k, v in row.items() if k != 'field'} for row in run.metrics]
  return predictions, rows, record


def _write_source(folder, source, images):
  """The field of view of a folder of PNGs as something else."""
  (field,) = png_folders.find_png_fields(images)
  if source == 'OME_TIFF':
    return write_ome_tiff(folder / 'field.ome.tif', field, (0.5, 0.25))
  if source == 'OME_ZARR':
    path = folder / 'field.ome.zarr'
    return write_ome_zarr(path, field, (0.5, 0.25), chunk=128)
  if source == 'MANIFEST':
    return write_manifest(folder / 'fields.csv', [field])
  # The light as one file, each label as its own.
  light = field.select(('TRANSMISSION',), ())
  write_ome_tiff(folder / 'light.tif', light)
  manifest = folder / 'files.csv'
  with manifest.open('w', newline='') as stream:
    writer = csv.writer(stream)
    writer.writerow(['field', 'z', 'channel', 'path'])
    writer.writerow(['f', '', light.channels[0], 'light.tif'])
    for key, path in field.paths.items():
      if key.z == MAXPROJECT:
        writer.writerow(['f', MAXPROJECT, key.channel, path])
  return manifest


@pytest.fixture(scope='module')
def sample(tmp_path_factory):
  """A part of the real field of view, a narrow network, and what it says of the PNGs."""
  tmp_path = tmp_path_factory.mktemp('sources')
  checkpoint, images = tmp_path / 'checkpoint', tmp_path / 'images'
  images.mkdir()
  for path in shared_path('data', 'condition_b_sample').glob('*.png'):
    png_io.write_png(images / path.name, png_io.read_png(path)[400:600, 300:480])
  random_checkpoint.write_random_checkpoint(checkpoint, model='FOVEA', base_depth=5, num_z_values=3)
  flags = (
    '--stitch_crop_size=146',
    '--infer_panels=',
    '--infer_statistics=MEDIAN,MEAN,QUANTILE_5',
    '--infer_channel_whitelist=DAPI_CONFOCAL,MAP2_CONFOCAL,NFH_CONFOCAL',
  )
  return images, checkpoint, flags, _labeled(tmp_path / 'png', checkpoint, images, *flags)


@pytest.mark.parametrize('source', _SOURCES)
def test_real_sample_by_every_way_is_the_same_to_the_bit(sample, tmp_path, source):
  images, checkpoint, flags, (expected, expected_rows, _) = sample
  other = _write_source(tmp_path, source, images)
  found, rows, record = _labeled(tmp_path / 'out', checkpoint, other, *flags)
  for key, image in expected.items():
    np.testing.assert_array_equal(found[key], image, err_msg=str(key))
  assert rows == expected_rows
  has_size = source in ('OME_TIFF', 'OME_ZARR')
  assert record['pixel_size'] == ([0.5, 0.25] if has_size else None)


def test_input_range_is_that_of_images_stretched_beforehand(tmp_path):
  """Images are stretched by a factor that takes 8-bit images to 16-bit ones without rounding."""
  checkpoint, images, stretched = (tmp_path / n for n in ('checkpoint', 'images', 'stretched'))
  random_checkpoint.write_random_checkpoint(checkpoint, model='FOVEA', base_depth=5, num_z_values=2)
  write_field(images, rows=26, columns=34, depths=2, bits=8)
  stretched.mkdir()
  for path in images.iterdir():
    image = png_io.read_png(path)
    if 'z_depth' in path.name:
      image = (np.clip(image, 50, 101).astype(np.uint16) - 50) * 1285
    png_io.write_png(stretched / path.name, image)
  flags = ('--infer_panels=', '--infer_statistics=MEDIAN,MEAN,QUANTILE_5')
  found, _, _ = _labeled(tmp_path / 'a', checkpoint, images, *flags, '--input_range=50,101')
  expected, _, _ = _labeled(tmp_path / 'b', checkpoint, stretched, *flags)
  plain, _, _ = _labeled(tmp_path / 'c', checkpoint, images, *flags)
  for key in expected:
    if key[1] == 'MEAN':
      np.testing.assert_allclose(found[key].astype(int), expected[key], atol=20)
      assert np.abs(found[key].astype(int) - plain[key]).max() > 100


def test_network_of_other_channels_labels_a_microscopes_file(tmp_path):
  """Two input channels and labels of the lab's own, from one OME-Zarr."""
  checkpoint, images = tmp_path / 'checkpoint', tmp_path / 'images'
  random_checkpoint.write_random_checkpoint(
    checkpoint,
    model='FOVEA',
    base_depth=5,
    num_z_values=2,
    target_channels=['RFP', 'GFP'],
    input_channels=['TRANSMISSION', 'POLARIZATION'],
  )
  write_field(images, rows=26, columns=34, further_inputs=['POLARIZATION'], channels=['GFP'])
  (field,) = png_folders.find_png_fields(images)
  path = write_ome_zarr(tmp_path / 'field.ome.zarr', field)
  bare_checkpoint.copy_bare(checkpoint, tmp_path / 'bare')
  outcome = run_in_process(
    launch.run,
    '--mode=EVAL_EVAL',
    '--metric=INFER_FULL',
    '--read_pngs',
    f'--restore_directory={tmp_path / "bare"}',
    f'--dataset_eval_directory={path}',
    f'--base_directory={tmp_path / "out"}',
  )
  assert outcome.status == 0, outcome.stderr
  run = InferRun(tmp_path / 'out' / 'eval_eval_infer' / '00001000', outcome)
  # The labels in the order that they were given in; the input panel has both channels.
  names = [n for n in run.record['fields'][0]['files'] if n.startswith('predictions/')]
  assert [name.split('channel,value-')[1].split(',')[0] for name in names] == ['RFP', 'GFP']
  assert [row['channel'] for row in run.metrics] == ['GFP']
  rows, _ = run.record['fields'][0]['output_size']
  assert run.panel('input').shape[0] == 4 * (rows + 8)


def test_missing_input_channel_is_one_line(tmp_path):
  checkpoint, images = tmp_path / 'checkpoint', tmp_path / 'images'
  random_checkpoint.write_random_checkpoint(
    checkpoint, model='FOVEA', base_depth=5, num_z_values=2, input_channels=['POLARIZATION']
  )
  write_field(images, rows=26, columns=34)
  outcome = run_in_process(
    launch.run,
    '--mode=EVAL_EVAL',
    '--metric=INFER_FULL',
    '--read_pngs',
    f'--restore_directory={checkpoint}',
    f'--dataset_eval_directory={images}',
    f'--base_directory={tmp_path / "out"}',
  )
  assert 'has no image of POLARIZATION' in outcome.error
  assert ImageKey(0, 'PHASE_CONTRAST').channel in outcome.error
