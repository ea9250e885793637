"""Tests of prediction_files.py: the contents of the files of predictions."""

import itertools
import json

import bioio
import numpy as np
import pytest
import tifffile
import zarr

from isl.core.channels import ImageKey, target_stack
from isl.core.experiment import PredictionFormat
from isl.core.parts import Part
from isl.core.statistic import PICTURE_STATISTICS, AnyStatistic, Quantile, Statistic, is_class
from isl.images import png_folders, png_io
from isl.images.placement import Placement
from isl.inference import prediction_files
from isl.inference.prediction_files import Contents, PredictionStore
from tests.support.program import files_in

_SIZE = (20, 30)
_FIELD = 'well-A4'
_KEYS = target_stack(('DAPI_CONFOCAL', 'GFP')).keys
_STATISTICS: tuple[AnyStatistic, ...] = (*PICTURE_STATISTICS, Quantile(2.5))
_CHANNELS = [f'{key.channel}/{s.value}' for key in _KEYS for s in _STATISTICS]


def _predictions(statistics):
  rng = np.random.default_rng(0)
  made: dict[ImageKey, dict[AnyStatistic, np.ndarray]] = {}
  for key in _KEYS:
    for statistic in statistics:
      if statistic is Statistic.DISTRIBUTION:
        values = rng.dirichlet(np.ones(256), _SIZE).astype(np.float32)
      elif is_class(statistic):
        values = rng.integers(0, 256, _SIZE).astype(np.float32) * np.float32(1 / 255)
      else:
        values = rng.random(_SIZE, dtype=np.float32)
      made.setdefault(key, {})[statistic] = values
  return made


def _contents(folder, statistics=_STATISTICS):
  return Contents(
    folder=folder,
    field=_FIELD,
    keys=_KEYS,
    statistics=statistics,
    size=_SIZE,
    tile=(8, 8),
    placement=Placement(pixel_size=(0.5, 0.25), offset=(121, 121)),
    margin=3,
  )


def _write(folder, prediction_format, predictions, statistics=_STATISTICS):
  contents = _contents(folder, statistics)
  store = PredictionStore(_SIZE)
  written = prediction_files.prediction_files(PredictionFormat[prediction_format], contents, store)
  assert written.keys == _KEYS
  assert written.statistics == statistics
  with written:
    for row, column in itertools.product(range(0, 20, 8), range(0, 30, 8)):
      rows, columns = slice(row, min(row + 8, 20)), slice(column, min(column + 8, 30))
      for key, values in predictions.items():
        part = {s: v[rows, columns] for s, v in values.items()}
        written.add(Part(key=key, rows=rows, columns=columns, predicted=part, truth=None))
  return written


def test_pngs_are_16_bit(tmp_path):
  predictions = _predictions(_STATISTICS)
  written = _write(tmp_path, 'PNG', predictions)
  assert files_in(tmp_path) == {str(p.relative_to(tmp_path)) for p in written.paths}
  assert len(written.paths) == len(_CHANNELS)
  for key, statistic in itertools.product(_KEYS, _STATISTICS):
    name = png_folders.prediction_name(_FIELD, key.channel, statistic.value)
    image = png_io.read_png(tmp_path / 'predictions' / name)
    assert image.dtype == np.uint16
    values = predictions[key][statistic].astype(float)
    np.testing.assert_allclose(image / 65535, values, atol=0.51 / 65535, rtol=0)
    if is_class(statistic):
      np.testing.assert_array_equal(image % 257, 0)


@pytest.mark.parametrize('prediction_format', ['OME_TIFF', 'OME_ZARR'])
def test_ome_files_hold_the_floats_to_the_bit(tmp_path, prediction_format):
  predictions = _predictions(_STATISTICS)
  (path,) = _write(tmp_path, prediction_format, predictions).paths
  image = bioio.BioImage(path)
  assert image.channel_names == _CHANNELS
  assert image.physical_pixel_sizes[1:] == (0.5, 0.25)
  pixels = image.get_image_data('CYX')
  assert pixels.dtype == np.float32
  pairs = itertools.product(_KEYS, _STATISTICS)
  for found, (key, statistic) in zip(pixels, pairs, strict=True):
    np.testing.assert_array_equal(found, predictions[key][statistic])


def test_attributes_are_in_both_formats(tmp_path):
  predictions = _predictions((Statistic.MEDIAN,))
  expected = {'field': _FIELD, 'offset_in_pixels': [121, 121], 'padded_margin_in_pixels': 3}
  for prediction_format in ('OME_TIFF', 'OME_ZARR'):
    _write(tmp_path, prediction_format, predictions, (Statistic.MEDIAN,))
  group = zarr.open_group(tmp_path / 'predictions.ome.zarr', mode='r')
  assert group.attrs['isl'] == expected
  (multiscale,) = group.attrs['ome']['multiscales']
  translation = multiscale['datasets'][0]['coordinateTransformations'][1]
  assert translation == {'type': 'translation', 'translation': [0, 60.5, 30.25]}
  with tifffile.TiffFile(tmp_path / 'predictions.ome.tif') as tiff:
    assert json.dumps(json.dumps(expected))[1:-1].replace('\\"', '&quot;') in str(tiff.ome_metadata)


def test_distributions_have_256_channels_of_halves(tmp_path):
  statistics = (Statistic.MEDIAN, Statistic.DISTRIBUTION)
  predictions = _predictions(statistics)
  written = _write(tmp_path, 'OME_ZARR', predictions, statistics)
  names = ['predictions', 'DAPI_CONFOCAL_distribution', 'GFP_distribution']
  assert [path.name for path in written.paths] == [f'{name}.ome.zarr' for name in names]
  for key, path in zip(_KEYS, written.paths[1:], strict=True):
    image = bioio.BioImage(path)
    assert image.channel_names == [f'{key.channel}/CLASS_{k}' for k in range(256)]
    pixels = image.get_image_data('YXC')
    assert pixels.dtype == np.float16
    np.testing.assert_allclose(
      pixels, predictions[key][Statistic.DISTRIBUTION], rtol=1e-3, atol=1e-7
    )


@pytest.mark.parametrize('prediction_format', [f.name for f in PredictionFormat])
def test_nothing_asked_for_is_no_file(tmp_path, prediction_format):
  assert not _write(tmp_path, prediction_format, {}, ()).paths
  assert not files_in(tmp_path)


@pytest.mark.parametrize('prediction_format', [f.name for f in PredictionFormat])
def test_interrupted_writing_leaves_nothing(tmp_path, prediction_format):
  contents, store = _contents(tmp_path), PredictionStore(_SIZE)
  written = prediction_files.prediction_files(PredictionFormat[prediction_format], contents, store)
  with pytest.raises(KeyboardInterrupt), written:
    for key, values in _predictions(_STATISTICS).items():
      rows, columns = slice(0, 20), slice(0, 30)
      written.add(Part(key=key, rows=rows, columns=columns, predicted=values, truth=None))
    raise KeyboardInterrupt
  assert not files_in(tmp_path)


@pytest.mark.parametrize('exact', [False, True])
def test_statistic_beyond_its_bounds_is_clipped(exact):
  """Rounding leaves an entropy above 1, or below 0."""
  store = PredictionStore((1, 2))
  store.make_room(_KEYS[0], Statistic.ENTROPY, exact=exact)
  values = np.array([[-1e-6, 1.000001]], np.float32)
  store.add(_KEYS[0], slice(0, 1), slice(0, 2), {Statistic.ENTROPY: values})
  assert store.values(_KEYS[0], Statistic.ENTROPY).tolist() == [[0, 1]]
  assert store.in_16_bit(_KEYS[0], Statistic.ENTROPY).tolist() == [[0, 65535]]
