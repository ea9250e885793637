"""Simulated fields of view: optics keep to their formulas, the same seed gives the same images."""

import importlib
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from isl.core.channels import MAXPROJECT, ImageKey
from isl.images import png_folders, png_io
from tests.support.program import REPOSITORY, original_fields

DATA_SAMPLE = REPOSITORY / 'data_sample'
LABELS = ('DAPI_CONFOCAL', 'MAP2_CONFOCAL', 'NFH_CONFOCAL')


def _import(name: str):
  """A module of the script's, which finds them because it lies beside them."""
  sys.path.insert(0, str(DATA_SAMPLE))
  try:
    return importlib.import_module(name)
  finally:
    sys.path.remove(str(DATA_SAMPLE))


optics, shapes, specimen = _import('optics'), _import('shapes'), _import('specimen')
cells, make_synthetic = _import('cells'), _import('make_synthetic')


def _wave(microscope, cycles: tuple[int, int], size=64, amplitude=0.01):
  """A sinusoidal phase object, radians [row, column], and its frequency in cycles per um."""
  rows, columns = np.mgrid[:size, :size]
  frequency = np.hypot(*cycles) / (size * microscope.pixel)
  return amplitude * np.cos(2 * np.pi * (cycles[0] * rows + cycles[1] * columns) / size), frequency


def _image_of(phase, transmitted_light, microscope, steps):
  """The contrast I / I0 - 1 of one layer that is `steps` pitches above the focal plane."""
  layers = np.zeros((2 * abs(steps) + 1, *phase.shape))
  layers[abs(steps) + steps] = phase
  return optics.focal_stack(layers, transmitted_light, microscope)[abs(steps)] - 1


@pytest.mark.parametrize('steps', [-6, -1, 0, 2, 5])
@pytest.mark.parametrize('cycles', [(0, 5), (4, 3), (9, 0)])
def test_a_sinusoidal_phase_has_the_contrast_of_the_formula(cycles, steps):
  microscope = optics.Microscope()
  phase, f = _wave(microscope, cycles)
  z = steps * microscope.pitch
  chi = np.pi * microscope.wavelength / microscope.refractive_index * z * f**2
  coherence = np.exp(-((np.pi * microscope.source_angle * z * f) ** 2))
  halo = 1 - np.exp(-((f / microscope.ring_frequency) ** 2))
  expected = {
    'BRIGHTFIELD': 2 * np.sin(chi) * coherence * phase,
    'PHASE_CONTRAST': -2 * np.cos(chi) * coherence * halo * phase,
  }
  for transmitted_light, contrast in expected.items():
    image = _image_of(phase, transmitted_light, microscope, steps)
    np.testing.assert_allclose(image, contrast, atol=1e-12)


def test_weak_phase_contrast_is_what_interference_gives():
  # |exp(i theta) + exp(i phi) - 1|^2 of a plate at theta = -pi / 2, without halo, in focus.
  microscope = optics.Microscope(ring_frequency=1e-3)
  phase, _ = _wave(microscope, (3, 4), amplitude=1e-4)
  interference = np.abs(-1j + np.exp(1j * phase) - 1) ** 2 - 1
  image = _image_of(phase, 'PHASE_CONTRAST', microscope, 0)
  np.testing.assert_allclose(image, interference, atol=3e-8)


@pytest.mark.parametrize('cycles', [(3, 2), (4, -2), (7, 5)])
@pytest.mark.parametrize('steps', [-5, -1, 0, 3])
def test_weak_dic_is_what_interference_gives(cycles, steps):
  # Of the wave behind the specimen, propagated to the focal plane; (4, -2) is across the shear.
  microscope = optics.Microscope(shear=(1.0, 2.0), source_angle=0)  # 2 and 4 pixels
  phase, f = _wave(microscope, cycles, amplitude=1e-4)
  z = steps * microscope.pitch
  chi = np.pi * microscope.wavelength / microscope.refractive_index * z * f**2
  wave = np.exp(1j * phase)
  # All but what is not scattered has one frequency.
  wave = wave.mean() + (wave - wave.mean()) * np.exp(-1j * chi)
  ahead, behind = (np.roll(wave, shift, (0, 1)) for shift in ((-1, -2), (1, 2)))
  bias = np.exp(0.5j * microscope.bias)
  interference = np.abs(ahead * bias - behind / bias) ** 2 / (4 * bias.imag**2) - 1
  image = _image_of(phase, 'DIC', microscope, steps)
  np.testing.assert_allclose(image, interference, atol=2e-7)


def test_brightfield_shows_nothing_in_focus_and_reverses_with_defocus():
  microscope = optics.Microscope()
  phase = 0.01 * specimen.texture(np.random.default_rng(0), (48, 64), 8)
  assert np.abs(_image_of(phase, 'BRIGHTFIELD', microscope, 0)).max() < 1e-15
  above, below = (_image_of(phase, 'BRIGHTFIELD', microscope, steps) for steps in (3, -3))
  np.testing.assert_allclose(above, -below, atol=1e-15)
  assert above.std() > 1e-3


def test_dic_in_focus_of_what_is_symmetric_is_antisymmetric():
  rows, columns = np.mgrid[-16:17, -16:17]
  ball = np.exp(-(rows**2 + columns**2) / 20)
  image = _image_of(ball, 'DIC', optics.Microscope(), 0)
  np.testing.assert_allclose(image, -image[::-1, ::-1], atol=1e-12)
  assert image.max() > 0.1


def test_frequencies_beyond_the_aperture_are_lost():
  microscope = optics.Microscope()
  phase, f = _wave(microscope, (0, 28))
  assert f > 1.05 * microscope.aperture / microscope.wavelength
  assert np.abs(_image_of(phase, 'PHASE_CONTRAST', microscope, 0)).max() < 1e-12


def test_an_object_delays_light_by_its_whole_thickness():
  microscope = optics.Microscope()
  room = specimen.Specimen(5, 6, microscope)
  top = np.array([[7.0, 100.0], [2.0, 1.0]])
  room.put((slice(1, 3), slice(2, 4)), 1.5, top, 0.01)
  thickness = np.maximum(top - 1.5, 0)
  expected = np.zeros((5, 6))
  expected[1:3, 2:4] = 2 * np.pi / microscope.wavelength * 0.01 * thickness
  np.testing.assert_allclose(room.phase.sum(0), expected, atol=1e-12)
  # From 1.5 on is the second layer; 4.5 to 7 um is in the third.
  per_um = 2 * np.pi / microscope.wavelength * 0.01
  np.testing.assert_allclose(room.phase[:4, 1, 2], [0, 3 * per_um, 2.5 * per_um, 0], atol=1e-12)


def test_a_tube_is_as_thick_as_a_cylinder():
  room = specimen.Specimen(21, 41, optics.Microscope())
  along = np.arange(0, 40, 0.5)
  path = shapes.Path(row=np.full(80, 10.0), column=along, height=along / 2, radius=np.full(80, 3.5))
  tube = shapes.tube_around(path, room)
  middle = np.s_[:, 10:30]
  away = np.abs(np.arange(21)[tube.window[0]] - 10.0)[:, np.newaxis]
  cylinder = np.broadcast_to(np.sqrt(3.5**2 - away**2), (7, 20))
  np.testing.assert_allclose(tube.half[middle], cylinder, atol=1e-9)
  columns = np.arange(41)[tube.window[1]]
  np.testing.assert_allclose(tube.height[3, 10:30], columns[10:30] / 2, atol=1e-9)
  outside = shapes.Path(row=path.row + 100, column=along, height=along, radius=path.radius)
  assert shapes.tube_around(outside, room) is None


def test_a_nucleus_has_the_mean_phase_of_what_it_displaces():
  for seed in range(5):
    room = specimen.Specimen(80, 80, optics.Microscope())
    rng = np.random.default_rng(seed)
    nucleus = shapes.random_oval(rng, (40.2, 39.7), 11, wobble=0.04)
    cells.Culture(rng, room)._add_nucleus(nucleus, 15, 1)
    phase = room.phase.sum(0)
    assert np.abs(phase).max() > 0.1
    assert abs(phase.sum()) < 0.05 * np.abs(phase).sum()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  directory = tmp_path_factory.mktemp('synthetic')
  make_synthetic.write_fields(directory, rows=96, columns=128, wells=['A1', 'B3'], seed=7)
  return directory


def test_names_are_the_samples_and_a_field_has_13_depths_and_3_labels(folder):
  fields = original_fields(folder)
  assert [field.name for field in fields] == [png_folders.field_name(w) for w in ('A1', 'B3')]
  for field in fields:
    field_of_view = field.read()
    assert field_of_view.size == (96, 128)
    assert field_of_view.transmitted_light == 'PHASE_CONTRAST'
    assert field_of_view.num_depths() == 13
    labels = {key.channel for key in field_of_view.images if key.z == MAXPROJECT}
    assert labels == set(LABELS)


def test_the_same_seed_gives_the_same_bytes_and_others_do_not(folder, tmp_path):
  make_synthetic.write_fields(tmp_path / 'same', rows=96, columns=128, wells=['A1'], seed=7)
  make_synthetic.write_fields(tmp_path / 'other', rows=96, columns=128, wells=['A1'], seed=8)
  names = sorted(path.name for path in (tmp_path / 'same').iterdir())
  assert len(names) == 16
  for name in names:
    same = (tmp_path / 'same' / name).read_bytes()
    assert same == (folder / name).read_bytes()
    assert same != (tmp_path / 'other' / name).read_bytes()
    assert same != (folder / name.replace('well-A1', 'well-B3')).read_bytes()


def test_bits_are_of_the_same_intensities(folder, tmp_path):
  make_synthetic.write_fields(tmp_path, rows=96, columns=128, wells=['A1'], bits=16, seed=7)
  for path in tmp_path.iterdir():
    fine, coarse = png_io.read_png(path), png_io.read_png(folder / path.name)
    assert fine.dtype == np.uint16 and coarse.dtype == np.uint8
    assert np.abs(fine / 65535 - coarse / 255).max() <= 0.501 / 255


@pytest.mark.parametrize('transmitted_light', ['PHASE_CONTRAST', 'DIC', 'BRIGHTFIELD'])
def test_intensities_are_hardly_clipped(transmitted_light):
  images = make_synthetic.simulate(np.random.default_rng(3), 128, 128, transmitted_light)
  assert [z for z, _ in images] == [*range(13), *[MAXPROJECT] * 3]
  stack = np.stack([images[z, transmitted_light] for z in range(13)])
  assert stack.min() >= 0 and stack.max() <= 1
  assert np.mean((stack == 0) | (stack == 1)) < 0.005
  assert abs(stack.mean() - 0.5) < 0.03 and stack.std() > 0.02
  for channel in LABELS:
    label = images[MAXPROJECT, channel]
    assert label.min() >= 0 and label.max() < 1
    assert label.max() > 0.5 and np.median(label) < 0.5


def _alone(grow):
  """The labels of what `grow` puts into the middle of an empty specimen, and where it has phase."""
  room = specimen.Specimen(128, 128, optics.Microscope())
  grow(cells.Culture(np.random.default_rng(5), room))
  return room.density, np.abs(room.phase).sum(0) > 0


def test_labels_lie_on_their_objects():
  density, phase = _alone(lambda culture: culture._add_neuron((64.0, 64.0)))
  for channel in LABELS:
    assert density[channel].max() > 0.7
    assert phase[density[channel] > 0].all()
  assert density['DAPI_CONFOCAL'][54:75, 54:75].max() == density['DAPI_CONFOCAL'].max()
  # Nuclei lie in bodies, axons mostly out of dendrites.
  assert np.mean(density['MAP2_CONFOCAL'][density['DAPI_CONFOCAL'] > 0] > 0) == 1
  assert np.mean(density['MAP2_CONFOCAL'][density['NFH_CONFOCAL'] > 0.5] > 0) < 0.5


@pytest.mark.parametrize(
  ('kind', 'labels'),
  [
    ('neuron', set(LABELS)),
    ('glial_cell', {'DAPI_CONFOCAL'}),
    ('passing_axon', {'NFH_CONFOCAL'}),
    ('remnant', set()),
    ('fibre', set()),
    ('groove', set()),
    ('debris', set()),
    ('dust', set()),
  ],
)
def test_what_is_stained(kind, labels):
  density, phase = _alone(lambda culture: getattr(culture, f'_add_{kind}')((64.0, 64.0)))
  assert {channel for channel in LABELS if density[channel].any()} == labels
  assert phase.any()


def _run(*flags, script='data_sample/make_synthetic.py'):
  command = [sys.executable, str(DATA_SAMPLE.parent / script), *flags]
  environment = {**os.environ, 'PYTHONPATH': str(DATA_SAMPLE.parent)}
  return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
  ('flag', 'value', 'allowed'),
  [
    ('--transmitted_light', 'X-RAY', 'PHASE_CONTRAST'),
    ('--bits', '12', '8'),
    ('--bits', 'many', 'int'),
    ('--rows', '0', '32'),
    ('--columns', '1e9', '8192'),
    ('--seed', '-1', '0'),
    ('--wells', '0', '96'),
    ('--wells', 'A4,A4', 'A4,B2'),
    ('--wells', '../x', 'A4,B2'),
  ],
)
def test_a_bad_flag_is_named_with_what_is_allowed(flag, value, allowed, capsys, tmp_path):
  with pytest.raises(SystemExit) as stopped:
    make_synthetic.parse_arguments(['--directory', str(tmp_path / 'new'), f'{flag}={value}'])
  assert stopped.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert flag in line and value in line and allowed in line


def test_the_command_line(tmp_path):
  (tmp_path / 'file').write_text('')
  flags = ['--rows=32', '--columns=40', '--wells=2', '--transmitted_light=DIC']
  done = _run(f'--directory={tmp_path / "new"}', *flags)
  assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
  fields = original_fields(tmp_path / 'new')
  assert [field.name for field in fields] == [png_folders.field_name(w) for w in ('A1', 'A2')]
  assert fields[0].read().transmitted_light == 'DIC'
  failed = _run(f'--directory={tmp_path / "file" / "new"}', *flags)
  assert failed.returncode == 1
  assert failed.stderr.startswith('--directory: ') and len(failed.stderr.splitlines()) == 1
  wrong = _run('--bits=9')
  assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1


@pytest.mark.parametrize(
  ('name', 'seed', 'rows', 'columns'),
  [('synthetic_training', 1, 832, 832), ('synthetic_evaluation', 2, 528, 624)],
)
def test_the_sample_data_are_what_their_commands_give(name, seed, rows, columns):
  (field,) = original_fields(DATA_SAMPLE / name)
  assert field.name == png_folders.field_name('A1')
  readme = (DATA_SAMPLE / 'README.md').read_text()
  flags = f'{name} \\\n      --seed {seed} --rows {rows} --columns {columns}\n'
  assert flags in readme
  stored = field.read().images
  made = make_synthetic.simulate(np.random.default_rng([seed, 0]), rows, columns, 'PHASE_CONTRAST')
  assert len(stored) == len(made) == 16
  for (z, channel), intensity in made.items():
    # On another processor the last bit of an intensity may differ, and then how it is rounded.
    difference = np.abs(np.rint(255 * intensity) - stored[ImageKey(z, channel)])
    assert difference.max() <= 1 and np.mean(difference > 0) < 1e-3


def test_the_sample_data_are_small():
  folders = ('synthetic_training', 'synthetic_evaluation')
  paths = itertools.chain(*((DATA_SAMPLE / name).iterdir() for name in folders))
  assert sum(path.stat().st_size for path in paths) < 11e6


def test_intensities_alone_do_not_tell_what_is_labeled(tmp_path):
  # As if a network had given these correlations, for the pixels of a crop of 500.
  name = png_folders.field_name('A1')
  crop = {'field': name, 'output_offset': [121, 121], 'output_size': [256, 256]}
  (tmp_path / 'run.json').write_text(json.dumps({'fields': [crop]}))
  rows = [f'"{name}",{channel},65536,0.75' for channel in LABELS]
  table = ['field,channel,pixels,pearson_r', *rows]
  (tmp_path / 'metrics.csv').write_text('\n'.join(table))
  flags = [f'--predictions={tmp_path}', '--windows=7,31']
  done = _run(*flags, script='benchmarks/demo_baseline.py')
  assert done.returncode == 0, done.stderr
  result = json.loads(done.stdout.splitlines()[-1])
  assert result['network'] == dict.fromkeys(LABELS, 0.75)
  for channel, most in zip(LABELS, (0.5, 0.45, 0.45), strict=True):
    assert 0 < result['baseline'][channel] < most
    assert result['difference'][channel] == 0.75 - result['baseline'][channel]
