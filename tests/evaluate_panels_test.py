"""Tests of evaluate.py through the command line: the error panels of STITCH and JITTER_STITCH."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from isl import launch
from isl.checkpoints.checkpoint import Checkpoint
from isl.core.channels import input_stack, target_stack
from isl.core.experiment import Panel
from isl.core.statistic import Statistic
from isl.data import data_provider
from isl.images import png_io
from isl.inference.controller import HeadGroup, Labeler
from tests.support.program import (
  SHALLOW,
  InferSetting,
  event_picture,
  events,
  make_fovea_shallow,
  original_fields,
  panel_boxes,
  run_in_process,
  write_field,
)

_PATCH, _MARGIN = SHALLOW.patch, SHALLOW.margin
_INPUTS, _TARGETS = input_stack(3), target_stack()
_DAPI = '--infer_channel_whitelist=DAPI_CONFOCAL'
_NOISE = '--augment_noise_std=0.2'


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    yield InferSetting(launch.run, tmp_path_factory)


@pytest.fixture(scope='module')
def evaluate(setting):
  """Runs the program and gives the events that it wrote, by tag; all are of the step 1000."""

  def run(metric, *flags, images=None):
    base = setting.new_folder()
    outcome = run_in_process(
      launch.run,
      *setting.flags(base, images),
      f'--metric={metric}',
      '--eval_once',
      f'--loss_crop_size={_PATCH}',
      '--metric_num_examples=6',
      *flags,
    )
    assert outcome.status == 0, outcome.stderr
    (folder,) = base.glob('eval_eval_*')
    found = events(folder)
    assert {step for step, _ in found} == {1000}
    return {tag: value for (_, tag), value in found.items()}

  return run


@pytest.mark.parametrize('metric', ['STITCH', 'JITTER_STITCH'])
def test_panels(setting, evaluate, metric):
  whitelist = 'NFH_CONFOCAL,DAPI_CONFOCAL,DEAD_CONFOCAL'
  events = evaluate(
    metric,
    '--stitch_crop_size=38',
    f'--infer_channel_whitelist={whitelist}',
    _NOISE,
    '--infer_size=2',
  )
  assert set(events) == {f'{panel.value.lower()}_error_panel' for panel in Panel}
  # 38 pixels give 3 x 3 outputs of 8 pixels.
  boxes = {}
  for panel, rows in (('target', 3), ('input', 3)):
    picture = event_picture(events[f'{panel}_error_panel'])
    assert picture.shape == (rows * 32, 14 * 32, 3)
    boxes[panel] = [panel_boxes(strip, 14) for strip in np.split(picture, rows)]
  (field,) = original_fields(setting.images)
  window = slice(_MARGIN, _MARGIN + 24)
  stack = target_stack(whitelist.split(','))
  truth = data_provider.target_crop(field.read(), stack, window, window)[:, :, 0, :, 0]
  for i, row in enumerate(boxes['target']):
    drawn = row[5][..., 0]
    # Jitter flips and turns the crop.
    if metric == 'STITCH':
      np.testing.assert_array_equal(drawn, (truth[..., i] * 65535).astype(int) >> 8)
    assert drawn.any() == (i < 2)
    assert (row[13] == 255 * (i < 2)).all()
  for row in boxes['input']:
    assert row[5].any()
    assert (row[13] == 255).all()


def test_cross_entropy_is_drawn_of_inputs_and_labels(setting, evaluate, tmp_path):
  """The cross entropy of the only patch is drawn pixel by pixel, where the truth is known."""
  write_field(tmp_path, rows=_PATCH, columns=_PATCH, depths=5, channels=setting.channels)
  (field,) = original_fields(tmp_path)
  field_of_view, centre = field.read(), slice(_MARGIN, _MARGIN + 8)
  truth = [
    data_provider.input_crop(field_of_view, _INPUTS, centre, centre)[:, :, :, 0, 0],
    data_provider.target_crop(field_of_view, _TARGETS, centre, centre)[:, :, 0, :, 0],
  ]
  classes = np.moveaxis(data_provider.classes_of(np.concatenate(truth, axis=-1)), -1, 0)
  checkpoint = Checkpoint(setting.checkpoint / 'model.ckpt-1000')
  labeler = Labeler(
    checkpoint.describe().plan(),
    checkpoint,
    groups=[
      HeadGroup(heads=(*_INPUTS.keys, *_TARGETS.keys), statistics=(Statistic.CROSS_ENTROPY,))
    ],
    batch=1,
    blocks=(1, 1),
  )
  whole = slice(0, _PATCH)
  crop = data_provider.input_crop(field_of_view, _INPUTS, whole, whole)[np.newaxis]
  (outputs,) = labeler(crop, [classes[:, np.newaxis]])
  (expected,) = outputs.values()
  labeler.close()
  expected = np.clip(expected[:, 0], 0, 1) * 255
  events = evaluate('STITCH', images=tmp_path)
  pictures = [event_picture(events[f'{name}_error_panel']) for name in ('input', 'target')]
  strips = np.split(np.concatenate(pictures), len(expected))
  drawn = [panel_boxes(strip, 14)[6][..., 0] for strip in strips]
  np.testing.assert_allclose(drawn, expected, atol=1.1)
  assert all((e < 255).any() for e in expected[:3]), 'nothing to tell apart'


def test_several_fields_of_view_have_a_tag_each(setting, evaluate, tmp_path):
  both = shutil.copytree(setting.images, tmp_path / 'both')
  for path in setting.images.iterdir():
    shutil.copy(path, both / path.name.replace('well-A4', 'well-B5'))
  events = evaluate('STITCH', '--infer_panels=TARGET', _DAPI, images=both)
  tags = {f'target_error_panel/{field.name}' for field in original_fields(both)}
  assert len(tags) == 2
  assert set(events) == tags


def test_jitter_flips_turns_and_corrupts(evaluate):
  """The seed decides how the crop is changed."""
  flags = [['--random_seed=1'], ['--random_seed=1'], ['--random_seed=2']]
  # Each happens to half of the crops.
  corruptions = (_NOISE, '--augment_multiplier_std=0.2', '--augment_offset_std=0.2')
  flags += [[*f, *corruptions] for f in flags[:2]]
  drawn = [evaluate('JITTER_STITCH', *f, '--stitch_crop_size=38') for f in flags]
  for tag in drawn[0]:
    one, again, other, noisy, noisy_again = (event_picture(events[tag]) for events in drawn)
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(noisy, noisy_again)
    assert one.shape == other.shape == noisy.shape
    # Another place; another input at the same place, whose labels stay.
    truth = [panel_boxes(picture, 14)[5] for picture in (one, other, noisy)]
    assert (truth[0] != truth[1]).any()
    assert (truth[0] != truth[2]).any() == (tag == 'input_error_panel')
    assert (one != noisy).any()


def test_stretched_targets(setting, evaluate, tmp_path):
  """The whole range of intensities is drawn, and the loss is of other classes."""
  for path in setting.images.iterdir():
    image = png_io.read_png(path)
    png_io.write_png(tmp_path / path.name, image // 8 if 'DAPI' in path.name else image)
  losses = []
  for flag, least, largest in ('', 0, 32), ('DAPI_CONFOCAL', 250, 255):
    stretch = f'--stretch_targets={flag}'
    events = evaluate('STITCH', stretch, _DAPI, images=tmp_path)
    truth = panel_boxes(event_picture(events['target_error_panel']), 14)[5]
    assert least <= truth.max() <= largest
    losses.append(evaluate('LOSS', stretch, images=tmp_path))
  for channel, stretched in ('DAPI_CONFOCAL', True), ('NFH_CONFOCAL', False):
    one, other = (float(by_tag[f'loss/MAXPROJECT/{channel}']) for by_tag in losses)
    assert (one != other) == stretched
