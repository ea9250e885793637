"""Tests of --infer_padding through the command line: where padded predictions lie, and their size.

The oracle of REFLECT is a field of view whose images are padded already, by np.pad.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
import zarr

from isl import launch
from isl.core.channels import MAXPROJECT
from isl.core.statistic import PICTURE_STATISTICS, is_class
from isl.images import png_io
from isl.programs import random_checkpoint
from tests.support.program import (
  InferRun,
  InferSetting,
  image_name,
  make_fovea_shallow,
  panel_boxes,
  run_in_process,
  write_field,
)

_LABEL = 'DAPI_CONFOCAL'
_WHITELIST = f'--infer_channel_whitelist={_LABEL}'
_NAMES = [s.name for s in PICTURE_STATISTICS]
_ALL_STATISTICS = f'--infer_statistics={",".join(_NAMES)}'
_FLOATS = '--prediction_format=OME_TIFF'
_NO_PANELS = '--infer_panels='
# What an unpadded prediction lacks; how far in front of the crop a padded grid begins.
_MARGIN, _PAD = InferSetting.margin, 16
_ROWS, _COLUMNS = InferSetting.rows, InferSetting.columns
_INTERIOR = tuple(slice(_MARGIN, _MARGIN + n) for n in InferSetting.size)


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    yield InferSetting(launch.run, tmp_path_factory)


@pytest.fixture(scope='module')
def light(setting):
  """The field of view without labels: nothing is scored, which takes most of the time."""
  return _changed(setting, lambda image: image)


def _changed(setting, change):
  """A folder with the field's transmitted light, changed."""
  images = setting.new_folder()
  for path in setting.images.glob('*PHASE_CONTRAST*'):
    png_io.write_png(images / path.name, change(png_io.read_png(path)))
  return images


def _floats(run):
  """The OME-TIFF: [statistic, row, column]."""
  image = tifffile.imread(run.folder / 'predictions.ome.tif')
  assert len(image) == len(_NAMES)
  return image


def _pngs(setting, run):
  return np.stack([run.prediction(setting.field, _LABEL, name) for name in _NAMES])


@pytest.fixture(scope='module')
def unpadded(setting, light):
  """The floats, in tiles of 2 x 2 blocks."""
  run = setting.run(_WHITELIST, _ALL_STATISTICS, _FLOATS, '--infer_size=2', images=light)
  return _floats(run)


@pytest.fixture(scope='module')
def in_small_tiles(setting, light):
  """Predictions in tiles of 2 x 2 blocks, with REFLECT."""
  flags = (_WHITELIST, _ALL_STATISTICS, _FLOATS, '--infer_size=2', _NO_PANELS)
  return _floats(setting.run('--infer_padding=REFLECT', *flags, images=light))


@pytest.fixture(scope='module')
def reflected(setting):
  """A run with REFLECT in tiles of the usual size, with panels and scores."""
  return setting.run('--infer_padding=REFLECT', _WHITELIST, _ALL_STATISTICS, _FLOATS)


def _assert_same_but_for_rounding(some, others):
  """A convolution's sums are in another order in tiles of another shape.

  Of two classes that are as likely to the last bits, either may then be the mode.
  """
  assert some.shape == others.shape
  for statistic, one, other in zip(PICTURE_STATISTICS, some, others, strict=True):
    if is_class(statistic):
      assert np.mean(one == other) >= 0.999
    else:
      np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_interior_is_the_unpadded_prediction_to_the_bit(in_small_tiles, unpadded):
  assert in_small_tiles.shape == (len(_NAMES), _ROWS, _COLUMNS)
  np.testing.assert_array_equal(in_small_tiles[:, *_INTERIOR], unpadded)


def test_interior_in_tiles_of_the_usual_size_to_the_bit(setting, reflected):
  without = _floats(setting.run(_WHITELIST, _ALL_STATISTICS, _FLOATS, _NO_PANELS))
  np.testing.assert_array_equal(_floats(reflected)[:, *_INTERIOR], without)


def test_interior_in_pngs(setting, light):
  """The interior is the same with ZERO as without padding; around it, ZERO differs from REFLECT."""
  flags = (_WHITELIST, _ALL_STATISTICS, '--infer_size=2', _NO_PANELS)
  zero = _pngs(setting, setting.run('--infer_padding=ZERO', *flags, images=light))
  assert zero.shape == (len(_NAMES), _ROWS, _COLUMNS)
  without = _pngs(setting, setting.run(*flags, images=light))
  np.testing.assert_array_equal(zero[:, *_INTERIOR], without)


def test_tiles_of_another_shape(in_small_tiles, unpadded, reflected):
  _assert_same_but_for_rounding(_floats(reflected), in_small_tiles)
  _assert_same_but_for_rounding(_floats(reflected)[:, *_INTERIOR], unpadded)


def test_reflected_is_the_prediction_of_images_padded_by_numpy(setting, reflected):
  """Registration, all around: what lies over pixel (r, c) lies over (r + 16, c + 16) of these."""
  images = _changed(setting, lambda image: np.pad(image, (_PAD, _MARGIN + 7), mode='reflect'))
  run = setting.run(_WHITELIST, _ALL_STATISTICS, _FLOATS, _NO_PANELS, images=images)
  whole = _floats(run)
  assert whole.shape[1:] == (64, 80)  # Whole blocks of 8 from _MARGIN on.
  begin = _PAD - _MARGIN
  expected = whole[:, begin : begin + _ROWS, begin : begin + _COLUMNS]
  _assert_same_but_for_rounding(_floats(reflected), expected)


def test_pixel_reaches_as_far_as_its_patches(setting, light):
  """A corner of the input changed: blocks whose patches have it may change, no others."""

  def with_another_corner(image):
    image = image.copy()
    image[0, 0] ^= 0xFFFF
    return image

  flags = ('--infer_padding=ZERO', _WHITELIST, _NO_PANELS, '--infer_statistics=MEAN', _FLOATS)
  before, after = (
    tifffile.imread(setting.run(*flags, images=images).folder / 'predictions.ome.tif')
    for images in (light, _changed(setting, with_another_corner))
  )
  rows, columns = np.nonzero(before != after)
  assert (before != after)[0, 0]
  # The last row of the last block whose patch has the corner.
  last = _PAD // 8 * 8 - (_PAD - _MARGIN) + 7
  assert max(rows.max(), columns.max()) <= last


def test_panels_and_scores_are_of_the_whole_crop(setting, reflected):
  panel = reflected.panel('target')
  assert panel.shape == (_ROWS + 8, 3 * (_COLUMNS + 8), 3)
  predicted, drawn, _ = panel_boxes(panel, 3)
  path = setting.images / image_name('A4', MAXPROJECT, _LABEL)
  truth = png_io.read_png(path).astype(float)
  assert np.abs(drawn - truth[..., np.newaxis]).max() <= 1
  median = _floats(reflected)[_NAMES.index('MEDIAN')].astype(float)
  assert np.abs(predicted - 65535 * median[..., np.newaxis]).max() <= 1
  (row,) = reflected.metrics
  assert int(row['pixels']) == _ROWS * _COLUMNS
  assert float(row['mae']) == pytest.approx(np.abs(median - truth / 65535).mean(), rel=1e-5)


def test_input_panel_is_of_the_whole_crop(setting, reflected):
  panel = reflected.panel('input')
  assert panel.shape == (3 * (_ROWS + 8), 3 * (_COLUMNS + 8), 3)
  _, drawn, _ = panel_boxes(panel[: _ROWS + 8], 3)
  truth = png_io.read_png(setting.images / image_name('A4', 0, 'PHASE_CONTRAST'))
  assert np.abs(drawn - truth[..., np.newaxis].astype(float)).max() <= 1


@pytest.mark.parametrize('padding', ['REFLECT', 'NONE'])
def test_margin_and_offset_are_on_record(setting, light, reflected, padding):
  run = reflected
  if padding == 'NONE':
    run = setting.run(_WHITELIST, _FLOATS, _NO_PANELS, images=light)
  offset, margin = (0, _MARGIN) if padding == 'REFLECT' else (_MARGIN, 0)
  record = run.record_of(setting.field)
  assert record['image_size'] == [_ROWS, _COLUMNS]
  assert (record['output_offset'], record['padded_margin']) == ([offset, offset], margin)
  with tifffile.TiffFile(run.folder / 'predictions.ome.tif') as tiff:
    assert list(tiff.series[0].shape[-2:]) == record['output_size']
    image = tifffile.xml2dict(tiff.ome_metadata or '')['OME']['Image']
  assert json.loads(image['Description']) == {
    'field': setting.field,
    'offset_in_pixels': [offset, offset],
    'padded_margin_in_pixels': margin,
  }
  planes = image['Pixels']['Plane']
  plane = planes[0] if isinstance(planes, list) else planes
  assert (plane['PositionX'], plane['PositionY']) == (offset, offset)
  assert ('depend on padding' in (run.folder / 'report.html').read_text()) == (margin > 0)


def test_image_smaller_than_a_patch(setting):
  """Mirrored again and again, as it is smaller than what is added to it."""
  rows, columns = 3, 40
  images = _changed(setting, lambda image: image[:rows, :columns])
  flags = (_WHITELIST, '--prediction_format=OME_ZARR', _ALL_STATISTICS, _NO_PANELS)
  run = setting.run('--infer_padding=REFLECT', *flags, images=images)
  group = zarr.open_group(run.folder / 'predictions.ome.zarr', mode='r')
  assert group['0'].shape == (len(_NAMES), rows, columns)
  assert group.attrs['isl'] == {
    'field': setting.field,
    'offset_in_pixels': [0, 0],
    'padded_margin_in_pixels': _MARGIN,
  }
  padded = _changed(
    setting,
    lambda image: np.pad(image[:rows, :columns], (_PAD, _MARGIN + 7), mode='reflect'),
  )
  expected = setting.run(*flags, images=padded)
  whole = zarr.open_group(expected.folder / 'predictions.ome.zarr', mode='r')['0'][:]
  begin = _PAD - _MARGIN
  cut = whole[:, begin : begin + rows, begin : begin + columns]
  _assert_same_but_for_rounding(group['0'][:], cut)


def test_crop_is_what_is_padded(setting, light):
  """Not the image: beyond the crop nothing is looked at."""
  flags = ('--infer_padding=REFLECT', '--stitch_crop_size=33', _WHITELIST, _NO_PANELS)
  images = _changed(setting, lambda image: image[:33, :33])
  of_crop, alone = (
    setting.run(*flags, images=folder).prediction(setting.field, _LABEL)
    for folder in (light, images)
  )
  assert of_crop.shape == (33, 33)
  np.testing.assert_array_equal(of_crop, alone)


@pytest.mark.soak
def test_concordance(tmp_path):
  """Margin 121, 128 pixels in front of the crop, of which 7 are cut; 2 x 3 blocks unpadded."""
  checkpoint, images = tmp_path / 'checkpoint', tmp_path / 'images'
  random_checkpoint.write_random_checkpoint(
    checkpoint, base_depth=5, num_z_values=2, target_channels=[_LABEL]
  )
  (field,) = write_field(images, rows=258, columns=270, bits=8, channels=())
  floats = {}
  for padding in ('NONE', 'ZERO'):
    outcome = run_in_process(
      launch.run,
      '--mode=EVAL_EVAL',
      '--metric=INFER_FULL',
      '--read_pngs',
      f'--restore_directory={checkpoint}',
      f'--dataset_eval_directory={images}',
      f'--base_directory={tmp_path / padding}',
      f'--infer_padding={padding}',
      _ALL_STATISTICS,
      _FLOATS,
      _NO_PANELS,
    )
    assert outcome.status == 0, outcome.stderr
    run = InferRun(tmp_path / padding / 'eval_eval_infer' / '00001000', outcome)
    floats[padding] = _floats(run)
  assert run.record_of(field)['padded_margin'] == 121
  assert floats['ZERO'].shape == (len(_NAMES), 258, 270)
  interior = floats['ZERO'][:, 121 : 121 + 16, 121 : 121 + 24]
  _assert_same_but_for_rounding(interior, floats['NONE'])
