"""Tests of infer.py through the command line: the formats of predictions, and what is in them."""

from __future__ import annotations

import sys

import bioio
import numpy as np
import pytest
import tifffile
import zarr

from isl import launch
from isl.core.statistic import PICTURE_STATISTICS
from tests.support.microscope import write_ome_tiff
from tests.support.program import (
  InferSetting,
  files_in,
  make_fovea_shallow,
  original_fields,
  run_in_process,
)

_SIZE = InferSetting.size
_LABELS = ('MAP2_CONFOCAL', 'DAPI_CONFOCAL')
_WHITELIST = f'--infer_channel_whitelist={",".join(_LABELS)}'
_NAMES = (*(s.name for s in PICTURE_STATISTICS), 'QUANTILE_5', 'QUANTILE_50', 'QUANTILE_97.5')
_CLASSES = ('MODE', 'MEDIAN', 'QUANTILE_5', 'QUANTILE_50', 'QUANTILE_97.5')
_CHANNELS = [f'{label}/{name}' for label in _LABELS for name in _NAMES]
_STATISTICS = f'--infer_statistics={",".join(_NAMES)}'
_NO_PANELS = '--infer_panels='
# (row, column) in micrometres: of pixels, and of the first one that is predicted.
_PIXEL_SIZE = (0.5, 0.25)
_BEGIN = (InferSetting.margin * 0.5, InferSetting.margin * 0.25)
_FIELD = 'well-B7'
_VALUES = np.arange(256) / 255


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    yield InferSetting(launch.run, tmp_path_factory)


@pytest.fixture(scope='module')
def microscope(setting):
  """The field of view as a microscope's OME-TIFF that knows its pixels' size."""
  (field,) = original_fields(setting.images)
  path = setting.new_folder() / f'{_FIELD}.ome.tif'
  return write_ome_tiff(path, field, _PIXEL_SIZE)


@pytest.fixture(scope='module')
def pngs(setting):
  """A run that reads and writes PNGs."""
  return setting.run(_WHITELIST, _STATISTICS, _NO_PANELS)


@pytest.fixture(scope='module')
def tiff(setting, microscope):
  return setting.run(
    _WHITELIST, _STATISTICS, _NO_PANELS, '--prediction_format=OME_TIFF', images=microscope
  )


@pytest.fixture(scope='module')
def zarrs(setting, microscope):
  """A run that reads a microscope's file and writes OME-Zarrs, with distributions."""
  return setting.run(
    _WHITELIST,
    f'{_STATISTICS},DISTRIBUTION',
    _NO_PANELS,
    '--prediction_format=OME_ZARR',
    images=microscope,
  )


@pytest.fixture(scope='module')
def floats(tiff):
  """float32 [row, column] by label and statistic."""
  image = tifffile.imread(tiff.folder / 'predictions.ome.tif')
  assert image.dtype == np.float32
  assert image.shape == (len(_CHANNELS), *_SIZE)
  return dict(zip(_CHANNELS, image, strict=True))


@pytest.fixture(scope='module', params=_LABELS)
def distribution(request, zarrs):
  """A label's name, and float64 [row, column, class]."""
  group = zarr.open_group(zarrs.folder / f'{request.param}_distribution.ome.zarr', mode='r')
  assert (group['0'].dtype, group['0'].shape) == (np.float16, (256, *_SIZE))
  return request.param, np.moveaxis(group['0'][:], 0, -1).astype(float)


def test_floats_are_the_same_to_the_bit(zarrs, floats):
  image = zarr.open_group(zarrs.folder / 'predictions.ome.zarr', mode='r')['0'][:]
  assert image.dtype == np.float32
  for channel, values in zip(_CHANNELS, image, strict=True):
    np.testing.assert_array_equal(values, floats[channel])


def test_pngs_are_within_half_a_step(setting, pngs, floats):
  for label in _LABELS:
    for name in _NAMES:
      image = pngs.prediction(setting.field, label, name)
      values = floats[f'{label}/{name}'].astype(float) * 65535
      if name in _CLASSES:
        np.testing.assert_array_equal(image, np.rint(values))
        assert not (image % 257).any()
      else:
        # And what single precision adds to a half.
        assert np.abs(image - values).max() <= 0.5 + 65535 * 1e-7, name


def test_statistics_differ(floats):
  """Or else the other tests would compare nothing with nothing."""
  for label in _LABELS:
    images = [floats[f'{label}/{name}'].tobytes() for name in _NAMES]
    # The median and its other name.
    assert len(set(images)) == len(_NAMES) - 1


def test_median_is_a_quantile_among_others(floats):
  for label in _LABELS:
    low, median, middle, high = (
      floats[f'{label}/{name}'] for name in ('QUANTILE_5', 'MEDIAN', 'QUANTILE_50', 'QUANTILE_97.5')
    )
    np.testing.assert_array_equal(middle, median)
    assert (low <= median).all() and (median <= high).all()
    assert (low < high).any()


def test_distributions_have_the_moments_that_are_written(floats, distribution):
  label, p = distribution
  # Halves have 11 digits.
  np.testing.assert_allclose(p.sum(-1), 1, atol=2**-11)
  mean = p @ _VALUES
  expected = {
    'MEAN': mean,
    'STANDARD_DEVIATION': np.sqrt((p * (_VALUES - mean[..., np.newaxis]) ** 2).sum(-1)),
    'PROBABILITY_NONZERO': 1 - p[..., 0],
    'ENTROPY': -(p * np.log(p + 1e-7)).sum(-1) / np.log(256),
  }
  for name, values in expected.items():
    np.testing.assert_allclose(floats[f'{label}/{name}'], values, rtol=0, atol=5e-4)


def test_distributions_have_the_quantiles_that_are_written(floats, distribution):
  """The lowest class up to which there is that share; halves leave a little doubt of that."""
  label, p = distribution
  cumulative = np.pad(np.cumsum(p, axis=-1), [(0, 0), (0, 0), (1, 0)])
  shares = {'QUANTILE_5': 0.05, 'MEDIAN': 0.5, 'QUANTILE_97.5': 0.975}
  for name, share in shares.items():
    k = np.rint(floats[f'{label}/{name}'] * 255).astype(int)[..., np.newaxis]
    below, up_to = (np.take_along_axis(cumulative, i, axis=-1) for i in (k, k + 1))
    assert (below < share + 2**-11).all()
    assert (up_to > share - 2**-11).all()
    exact = (cumulative[..., 1:] < share).sum(-1)
    assert np.mean(exact == k[..., 0]) > 0.9


def test_distributions_have_the_mode_that_is_written(floats, distribution):
  label, p = distribution
  k = np.rint(floats[f'{label}/MODE'] * 255).astype(int)[..., np.newaxis]
  np.testing.assert_array_equal(np.take_along_axis(p, k, axis=-1)[..., 0], p.max(-1))


@pytest.mark.parametrize('name', ['tiff', 'zarrs'])
def test_bioio_reads_names_and_sizes(request, name):
  run = request.getfixturevalue(name)
  path = run.folder / {'tiff': 'predictions.ome.tif', 'zarrs': 'predictions.ome.zarr'}[name]
  image = bioio.BioImage(path)
  assert image.channel_names == _CHANNELS
  assert (image.physical_pixel_sizes.Y, image.physical_pixel_sizes.X) == _PIXEL_SIZE
  assert image.get_image_data('CYX').shape == (len(_CHANNELS), *_SIZE)


def test_bioio_reads_distributions(zarrs):
  for label in _LABELS:
    image = bioio.BioImage(zarrs.folder / f'{label}_distribution.ome.zarr')
    assert image.channel_names == [f'{label}/CLASS_{k}' for k in range(256)]
    assert (image.physical_pixel_sizes.Y, image.physical_pixel_sizes.X) == _PIXEL_SIZE


def test_predictions_lie_where_they_were_seen(tiff, zarrs):
  for name in ('predictions', *(f'{label}_distribution' for label in _LABELS)):
    attributes = zarr.open_group(zarrs.folder / f'{name}.ome.zarr', mode='r').attrs
    (multiscale,) = attributes['ome']['multiscales']
    scale, translation = multiscale['datasets'][0]['coordinateTransformations']
    assert scale['scale'] == [1, *_PIXEL_SIZE]
    assert translation['translation'] == [0, *_BEGIN]
    assert {axis.get('unit') for axis in multiscale['axes'][1:]} == {'micrometer'}
  with tifffile.TiffFile(tiff.folder / 'predictions.ome.tif') as file:
    planes = tifffile.xml2dict(file.ome_metadata or '')['OME']['Image']['Pixels']['Plane']
  assert len(planes) == len(_CHANNELS)
  for plane in planes:
    assert (plane['PositionY'], plane['PositionX']) == _BEGIN
    assert plane['PositionXUnit'] == plane['PositionYUnit'] == 'µm'


def test_pixel_size_is_on_record(tiff, zarrs, pngs, setting):
  for run in (tiff, zarrs):
    assert run.record_of(_FIELD)['pixel_size'] == list(_PIXEL_SIZE)
  assert pngs.record_of(setting.field)['pixel_size'] is None


def test_files_are_on_record_and_in_the_report(tiff, zarrs):
  distributions = [f'{label}_distribution.ome.zarr' for label in _LABELS]
  for run, names in (
    (tiff, ['predictions.ome.tif']),
    (zarrs, ['predictions.ome.zarr', *distributions]),
  ):
    files = run.record_of(_FIELD)['files']
    assert [name for name in files if '.ome.' in name] == names
    page = (run.folder / 'report.html').read_text()
    for name in names:
      assert (run.folder / name).exists()
      assert f'href="{name}"' in page
    assert not list(run.folder.rglob('*.partial'))


@pytest.mark.parametrize('name', ['OME_TIFF', 'OME_ZARR'])
def test_second_run_replaces_the_first(setting, name):
  base = setting.new_folder()
  label = '--infer_channel_whitelist=DAPI_CONFOCAL'
  flags = (label, f'--prediction_format={name}', _NO_PANELS)
  first = setting.run('--stitch_crop_size=26', '--infer_statistics=MEAN,MODE', *flags, base=base)
  names = {path.name for path in first.folder.iterdir()}
  second = setting.run('--infer_statistics=MEDIAN', *flags, base=base)
  assert {path.name for path in second.folder.iterdir()} == names
  (path,) = second.folder.glob('predictions.ome.*')
  image = bioio.BioImage(path)
  assert image.channel_names == ['DAPI_CONFOCAL/MEDIAN']
  assert image.get_image_data('CYX').shape == (1, *_SIZE)
  # Of no known size, pixels are the unit.
  assert (image.physical_pixel_sizes.Y or 1, image.physical_pixel_sizes.X or 1) == (1, 1)


@pytest.mark.parametrize('module', ['zarr', 'ome_zarr.writer'])
def test_missing_extra_is_said_in_a_line(setting, tmp_path, monkeypatch, module):
  monkeypatch.setitem(sys.modules, module, None)
  flags = setting.flags(tmp_path)
  outcome = run_in_process(launch.run, *flags, '--prediction_format=OME_ZARR')
  assert "pip install 'isl[bioio]'" in outcome.error
  assert outcome.error.startswith('isl-launch: ')
  assert files_in(tmp_path) == set()


@pytest.mark.parametrize('name', ['PNG', 'OME_TIFF'])
def test_distributions_need_ome_zarr(setting, tmp_path, name):
  flags = (f'--prediction_format={name}', '--infer_statistics=MEDIAN,DISTRIBUTION')
  outcome = run_in_process(launch.run, *setting.flags(tmp_path), *flags)
  for words in ('DISTRIBUTION', 'OME_ZARR', name):
    assert words in outcome.error
  assert files_in(tmp_path) == set()


@pytest.mark.parametrize(
  'name', ['QUANTILE_0', 'QUANTILE_100', 'QUANTILE_x', 'CROSS_ENTROPY', 'mean']
)
def test_unknown_statistic_is_said_in_a_line(setting, tmp_path, name):
  flags = setting.flags(tmp_path)
  outcome = run_in_process(launch.run, *flags, f'--infer_statistics=MEDIAN,{name}')
  assert repr(name) in outcome.error and 'QUANTILE_<percent>' in outcome.error
