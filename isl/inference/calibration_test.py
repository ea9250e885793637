"""Tests of calibration.py: known temperatures, samples of any tiles, files of any kind."""

import json
import math
import pathlib

import numpy as np
import pytest
from scipy import special

from isl.inference import calibration
from isl.inference.calibration import Calibration, Fit, PixelSample

# The fit.


def _logits(pixels, seed=0):
  return 2 * np.random.default_rng(seed).standard_normal((pixels, 256)).astype(np.float32)


def _draw(logits, temperature, seed=1):
  """Classes drawn from softmax(logits / T), by Gumbel's trick."""
  noise = np.random.default_rng(seed).gumbel(size=logits.shape)
  return (logits / temperature + noise).argmax(-1).astype(np.uint8)


@pytest.mark.parametrize('temperature', [0.4, 1, 2.5])
def test_known_temperature_is_found(temperature):
  logits = _logits(4000)
  classes = _draw(logits, temperature)
  found = calibration.fit_temperature(logits, classes)
  assert found == pytest.approx(temperature, rel=0.06)
  # What it found is a minimum.
  best = calibration.mean_nll(logits, classes, found)
  for factor in (0.9, 1.1):
    assert calibration.mean_nll(logits, classes, found * factor) > best


def test_logits_are_as_good_as_logarithms():
  logits = _logits(500)
  classes = _draw(logits, 2)
  log_p = special.log_softmax(logits, axis=-1)
  assert calibration.fit_temperature(log_p, classes) == pytest.approx(
    calibration.fit_temperature(logits, classes), rel=1e-3
  )


@pytest.mark.parametrize('temperature', [0.3, 1, 3])
def test_mean_nll(temperature):
  # More pixels than are looked at together, and a rest.
  logits = _logits(calibration._CHUNK + 100)
  classes = _draw(logits, 1)
  log_p = special.log_softmax(logits.astype(float) / temperature, axis=-1)
  expected = -np.take_along_axis(log_p, classes[:, np.newaxis].astype(int), axis=-1).mean()
  assert calibration.mean_nll(logits, classes, temperature) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
  ('true', 'lowest', 'highest'),
  [
    # Always right: as narrow as can be. Always the least likely: as wide as can be.
    (np.argmax, calibration.LOWEST, 1.1 * calibration.LOWEST),
    (np.argmin, calibration.HIGHEST / 1.1, calibration.HIGHEST),
  ],
)
def test_temperature_has_bounds(true, lowest, highest):
  logits = _logits(200) / 8
  classes = true(logits, axis=-1).astype(np.uint8)
  assert lowest <= calibration.fit_temperature(logits, classes) <= highest


def test_distributions_that_no_temperature_changes():
  """No temperature makes a uniform distribution better, so the temperature stays 1."""
  logits = np.zeros((10, 256), np.float32)
  assert calibration.fit_temperature(logits, np.arange(10, dtype=np.uint8)) == 1


@pytest.mark.parametrize('temperature', [0.5, 1, 1.5])
def test_fit_of_a_sample(temperature):
  logits = _logits(600)
  classes = _draw(logits, temperature)
  sample = PixelSample(most=1000)
  sample.add(0, slice(0, 20), slice(0, 30), logits.reshape(20, 30, 256), classes.reshape(20, 30))
  fit = calibration.fit(sample)
  assert fit.pixels == 600
  assert fit.nll_before == pytest.approx(calibration.mean_nll(logits, classes))
  assert fit.nll_after <= fit.nll_before
  assert fit.temperature == pytest.approx(temperature, rel=0.15)


# The sample.

_SIZE = (30, 40)


def _tile(field, rows, columns):
  """Pixels that say what they are: class 0's logarithm is the place, and so is the class's."""
  row, column = np.meshgrid(
    np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop), indexing='ij'
  )
  log_p = np.zeros((*row.shape, 256), np.float32)
  log_p[..., 0] = field * 10_000 + row * 100 + column
  return log_p, ((field + row + column) % 256).astype(np.uint8)


def _sample(most, tiles):
  sample = PixelSample(most)
  for tile in tiles:
    sample.add(*tile, *_tile(*tile))
  return sample


def _tiles(height, width, fields=range(3)):
  rows, columns = _SIZE
  return [
    (field, slice(i, min(i + height, rows)), slice(j, min(j + width, columns)))
    for field in fields
    for i in range(0, rows, height)
    for j in range(0, columns, width)
  ]


def _places(sample):
  """Field, row and column of each pixel kept."""
  log_p, classes = sample.pixels()
  places = log_p[:, 0].astype(int)
  field, row, column = places // 10_000, places // 100 % 100, places % 100
  np.testing.assert_array_equal(classes, (field + row + column) % 256)
  assert not log_p[:, 1:].any()
  return field, row, column


@pytest.mark.parametrize('most', [1, 100, 3599, 3600, 5000])
def test_sample_is_bounded_and_of_different_pixels(most):
  sample = _sample(most, _tiles(8, 8))
  kept = min(most, 3 * _SIZE[0] * _SIZE[1])
  assert len(sample) == kept
  assert len(set(zip(*(axis.tolist() for axis in _places(sample)), strict=True))) == kept


@pytest.mark.parametrize('most', [100, 2000, 5000])
def test_neither_order_nor_shape_of_tiles_matter(most):
  expected = _sample(most, _tiles(*_SIZE)).pixels()
  for tiles in (_tiles(7, 11), _tiles(1, 40)[::-1], _tiles(8, 8, [2, 0, 1])):
    for of_tiles, of_whole in zip(_sample(most, tiles).pixels(), expected, strict=True):
      np.testing.assert_array_equal(of_tiles, of_whole)


def test_sample_is_even():
  most = 1200
  field, row, column = _places(_sample(most, _tiles(8, 8)))
  for axis, size in ((field, 3), (row % 3, 3), (row // 10, 3), (column // 10, 4), (column % 2, 2)):
    counts = np.bincount(axis, minlength=size)
    # Five standard deviations of a binomial distribution.
    spread = 5 * math.sqrt(most / size * (1 - 1 / size))
    np.testing.assert_allclose(counts, most / size, atol=spread)


def test_fields_have_different_pixels():
  """Fields of view are sampled at different places: with the same, a sample would be a grid."""
  field, row, column = _places(_sample(600, _tiles(8, 8)))
  first, second = (
    set(zip(row[field == i].tolist(), column[field == i].tolist(), strict=True)) for i in (0, 1)
  )
  assert len(first & second) < 0.5 * len(first)


# The file.


def _calibration(folder, **changes):
  return Calibration(
    **{
      'checkpoint': 'model.ckpt-500',
      'step': 500,
      'fingerprint': 'abc',
      'folders': (folder / 'validation',),
      'fields': {'f0': 'lab-x,date-1', 'f1': 'well-\udcff'},
      'fits': {
        'DAPI': Fit(temperature=1.25, pixels=20000, nll_before=3.5, nll_after=3.25),
        'MAP2': Fit(temperature=0.8, pixels=300, nll_before=2.5, nll_after=2.25),
      },
      **changes,
    }
  )


def test_what_is_saved_is_loaded(tmp_path):
  saved = _calibration(tmp_path)
  saved.save(tmp_path)
  assert calibration.load(tmp_path) == saved
  assert saved.temperatures == {'DAPI': 1.25, 'MAP2': 0.8}
  assert json.loads((tmp_path / 'calibration.json').read_text())['format'] == 1
  assert [path.name for path in tmp_path.iterdir()] == ['calibration.json']


def test_folders_are_saved_wherever_one_stands(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  _calibration(pathlib.Path('images')).save(tmp_path)
  monkeypatch.chdir('/')
  loaded = calibration.load(tmp_path)
  assert loaded.folders == (tmp_path.resolve() / 'images' / 'validation',)


def test_missing_file(tmp_path):
  for folder in (tmp_path, tmp_path / 'none'):
    with pytest.raises(ValueError, match=r"calibration\.json' is missing; --calibrate"):
      calibration.load(folder)


def _without(name):
  def change(contents):
    del contents[name]

  return change


def _with(*path, value):
  def change(contents):
    for name in path[:-1]:
      contents = contents[name]
    contents[path[-1]] = value

  return change


_NO_TEMPERATURES: tuple[object, ...] = (0, -1, math.nan, 1e9, 10**400, None, 'x', [])


@pytest.mark.parametrize(
  'change',
  [
    *(_without(n) for n in ('format', 'checkpoint', 'step', 'fingerprint', 'folders', 'fits')),
    *(_with('format', value=value) for value in (2, None, '1')),
    *(_with('fits', 'DAPI', 'temperature', value=value) for value in _NO_TEMPERATURES),
    _with('fits', 'DAPI', value=1.5),
    _with('fits', value=[]),
    _with('fields', value=['f0']),
    _with('folders', value='validation'),
    _with('folders', value=[1]),
    _with('step', value='500'),
  ],
)
def test_changed_file_is_refused(tmp_path, change):
  _calibration(tmp_path).save(tmp_path)
  path = tmp_path / 'calibration.json'
  contents = json.loads(path.read_text())
  change(contents)
  path.write_text(json.dumps(contents))
  _assert_refused(tmp_path)


@pytest.mark.parametrize(
  'data', [b'', b'{', b'[]', b'null', b'"format"', b'{}', b'\xff\xfe', b'[' * 100_000]
)
def test_other_file_is_refused(tmp_path, data):
  (tmp_path / 'calibration.json').write_bytes(data)
  _assert_refused(tmp_path)


def _assert_refused(folder):
  with pytest.raises(ValueError) as raised:
    calibration.load(folder)
  message = str(raised.value)
  shown = f"'{folder / 'calibration.json'}' is"
  assert message.startswith((f'{shown} damaged, or not a calibration', f'{shown} not JSON'))
  assert 'run --calibrate again' in message
  assert '\n' not in message


def test_any_truncated_file_is_refused(tmp_path):
  _calibration(tmp_path).save(tmp_path)
  path = tmp_path / 'calibration.json'
  data = path.read_bytes().rstrip()
  for length in range(0, len(data), 17):
    path.write_bytes(data[:length])
    _assert_refused(tmp_path)


def test_other_checkpoint(tmp_path):
  fitted = _calibration(tmp_path)
  fitted.check_checkpoint('abc')
  with pytest.raises(ValueError, match=r'another checkpoint.*ckpt-500.*run --calibrate again'):
    fitted.check_checkpoint('abd')


def test_images_of_the_fit_are_not_reported(tmp_path):
  fitted = _calibration(tmp_path)
  fitted.check_not_fitted_on([tmp_path / 'evaluation'], {'f2': 'lab-x,date-1'})
  (tmp_path / 'validation').mkdir()
  (tmp_path / 'link').symlink_to(tmp_path / 'validation')
  for folder in ('validation', 'link', 'evaluation/../validation'):
    with pytest.raises(ValueError, match=f'fitted on .*{folder}.*choose other images'):
      fitted.check_not_fitted_on([tmp_path / 'evaluation', str(tmp_path / folder)], {})
  with pytest.raises(ValueError, match=r"fitted on field of view 'copied'; choose other images"):
    fitted.check_not_fitted_on([], {'f2': 'other', 'f0': 'copied'})
