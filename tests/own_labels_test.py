"""Labels and input channels that the original never heard of, through the command line."""

from __future__ import annotations

import json
import math
import pathlib
import shutil

import numpy as np
import pytest
from absl import flags as flags_module
from absl.testing import flagsaver

from isl import command_line, launch
from isl.checkpoints import channels_file
from isl.checkpoints.checkpoint import Checkpoint, find_newest
from isl.core.channels import MAXPROJECT, TARGET_CHANNELS, TRANSMISSION, ImageKey
from isl.core.statistic import Statistic
from isl.data import data_provider
from isl.images import png_folders
from isl.images.pixels import intensity
from isl.inference.controller import HeadGroup, Labeler
from isl.programs import bare_checkpoint, random_checkpoint
from isl.training.start import find_start
from tests.support.program import (
  TrainSetting,
  assert_same_values,
  events,
  files_in,
  make_fovea_shallow,
  run_in_process,
  write_field,
)

_SEED = '--random_seed=5'
_INPUTS = ('POLARIZATION', TRANSMISSION)
# Not the order of their names.
_LABELS = ('RFP', 'GFP')
_CHANNELS = ('--input_channels=TRANSMISSION,POLARIZATION', '--target_channels=RFP,GFP')


class _Setting(TrainSetting):
  """A setting whose field of view has two labels unknown to isl, and a second input channel."""

  def __init__(self, run, tmp_path_factory):
    super().__init__(run, tmp_path_factory)
    shutil.rmtree(self.images)
    write_field(
      self.images, rows=160, columns=160, further_inputs=('POLARIZATION',), channels=('GFP', 'RFP')
    )

  def error(self, base, *flags):
    """Runs a training that is refused, and gives its error of one line; BASE must not change."""
    before = {name: (base / name).read_bytes() for name in files_in(base)}
    outcome = run_in_process(launch.run, *self.flags(base), '--number_of_steps=3', *flags)
    assert outcome.status == 1
    assert {name: (base / name).read_bytes() for name in files_in(base)} == before
    return outcome.error

  def find_start(self, base, *flags):
    """Finds where a training would start from, without training."""
    with flagsaver.flagsaver():
      flags_module.FLAGS(['isl-launch', *self.flags(base), *flags])
      return find_start(command_line.make_experiment())

  def losses(self, base, *flags):
    """Tag -> loss of the newest checkpoint."""
    outcome = run_in_process(
      launch.run,
      '--mode=EVAL_EVAL',
      '--read_pngs',
      f'--dataset_eval_directory={self.images}',
      f'--base_directory={base}',
      '--loss_crop_size=130',
      '--metric_num_examples=3',
      '--eval_once',
      *flags,
    )
    assert outcome.status == 0, outcome.stderr
    found = events(base / 'eval_eval_loss_CROSS_ENTROPY')
    return {tag: float(value) for (_, tag), value in found.items()}


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    yield _Setting(launch.run, tmp_path_factory)


@pytest.fixture(scope='module')
def trained(setting):
  """A training of two steps."""
  return setting.run(*setting.network, _SEED, '--number_of_steps=2', *_CHANNELS)


@pytest.fixture
def base(trained, tmp_path):
  """A copy of its BASE."""
  return pathlib.Path(shutil.copytree(trained.folder.parent, tmp_path / 'base'))


def _describe(folder):
  return Checkpoint(find_newest(folder)).describe()


def test_network_has_these_channels(trained):
  assert trained.steps == [0, 2]
  values = trained.values(2)
  heads = {tuple(name.split('/')[1:3]) for name in values if name.startswith('head/')}
  assert heads == {(str(z), channel) for z in (0.0, 0.5, 1.0) for channel in _INPUTS} | {
    (MAXPROJECT, channel) for channel in _LABELS
  }
  # Two images at each of three depths, with a mask each.
  first = values['lower_scale_0_recursion_0/expand_rv2/BatchNorm/gamma']
  assert first.shape == (2 * 2 * 3,)


def test_channels_are_described_and_recorded(trained):
  assert channels_file.read(trained.folder) == channels_file.Channels(
    inputs=_INPUTS, targets=_LABELS
  )
  description = _describe(trained.folder)
  assert (description.inputs.channels, description.targets.channels) == (_INPUTS, _LABELS)
  flags = trained.record['flags']
  assert (flags['input_channels'], flags['target_channels']) == (
    [TRANSMISSION, 'POLARIZATION'],
    list(_LABELS),
  )


def test_describe_says_them(trained):
  outcome = run_in_process(launch.run, '--mode=DESCRIBE', f'--restore_directory={trained.folder}')
  assert outcome.status == 0, outcome.stderr
  lines = outcome.stdout.splitlines()
  assert 'input channels: POLARIZATION, TRANSMISSION' in lines
  assert 'target channels: RFP, GFP' in lines


def test_both_input_channels_are_learned_from(trained):
  """The weights of the first layer that read either have moved."""
  before, after = trained.values(0), trained.values(2)
  name = 'lower_scale_0_recursion_0/expand_rv2/Conv/weights'
  moved = np.abs(after[name] - before[name]).max(axis=(0, 1, 3))
  # [relu, tanh] of z, channel and mask, of which the mask is fastest.
  assert moved.size == 2 * 3 * 2 * 2
  assert moved.reshape(2, 3, 2, 2)[..., 0].min() > 0
  heads = [name for name in after if name.startswith('head/') and name.endswith('/Conv/weights')]
  assert len(heads) == 3 * 2 + 2
  assert all((before[name] != after[name]).any() for name in heads)


def test_resumed_training_is_as_one_in_one_go(setting, base, trained):
  straight = setting.run(*setting.network, _SEED, '--number_of_steps=3', *_CHANNELS)
  resumed = setting.run(_SEED, '--number_of_steps=3', base=base)
  assert_same_values(resumed.values(3), straight.values(3))
  assert channels_file.read(resumed.folder) == channels_file.read(trained.folder)


def test_flags_that_the_training_began_with_in_any_order(setting, base):
  for labels in ('RFP,GFP', 'GFP,RFP'):
    channels = ['--input_channels=POLARIZATION,TRANSMISSION', f'--target_channels={labels}']
    start = setting.find_start(base, *setting.network, *channels)
    assert start.resumes
    assert (start.inputs.channels, start.targets.channels) == (_INPUTS, _LABELS)


@pytest.mark.parametrize(
  ('name', 'was', 'now'),
  [
    ('target_channels', 'RFP,GFP', 'RFP'),
    ('target_channels', 'RFP,GFP', 'RFP,GFP,CFP'),
    ('input_channels', 'POLARIZATION,TRANSMISSION', 'TRANSMISSION'),
    ('input_channels', 'POLARIZATION,TRANSMISSION', 'POLARIZATION,DIC'),
    ('input_range', 'left out', '0,4095'),
    ('input_range', 'left out', 'auto'),
  ],
)
def test_flags_that_the_training_did_not_begin_with(setting, base, name, was, now):
  line = setting.error(base, f'--{name}={now}')
  assert f'was trained with --{name} {was}, not {now}; give that, or another --base_dir' in line


def test_input_range_binds(setting, tmp_path):
  base = tmp_path / 'base'
  begun = ['--input_range=0,4095', _SEED, '--number_of_steps=1']
  setting.run(*setting.network, *_CHANNELS, *begun, base=base)
  line = setting.error(base)
  assert 'was trained with --input_range 0,4095, not left out; give that' in line
  assert setting.find_start(base, '--input_range=0,4095').resumes


def test_input_range_binds_even_a_training_of_before_there_was_one(setting, base):
  path = base / 'train' / 'run.json'
  record = json.loads(path.read_text())
  del record['flags']['input_range']
  path.write_text(json.dumps(record))
  line = setting.error(base, '--input_range=auto')
  assert 'was trained with --input_range left out, not auto' in line


def test_losses_are_the_same_of_copies_and_without_the_file(setting, base, trained, tmp_path):
  losses = setting.losses(base)
  assert losses.keys() == {
    'total_loss',
    'loss/input',
    'loss/target',
    *(f'loss/{z}/{channel}' for z in (0.0, 0.5, 1.0) for channel in _INPUTS),
    *(f'loss/{MAXPROJECT}/{channel}' for channel in _LABELS),
  }
  assert all(0 < loss < 10 and math.isfinite(loss) for loss in losses.values())
  labels = [losses[f'loss/{MAXPROJECT}/{channel}'] for channel in _LABELS]
  assert losses['loss/target'] == pytest.approx(np.mean(labels))
  assert _describe(base / 'best').targets.channels == _LABELS
  record = json.loads((base / 'best' / 'model.ckpt-2.json').read_text())
  assert record['settings']['input_channels'] == list(_INPUTS)
  assert record['settings']['target_channels'] == list(_LABELS)
  # What they are computed of is the same, whatever the order of the heads.
  for folder in (base / 'best', tmp_path / 'bare'):
    if folder.name == 'bare':
      bare_checkpoint.copy_bare(trained.folder, folder)
    assert setting.losses(tmp_path / folder.name / 'x', f'--restore_directory={folder}') == losses
  (tmp_path / 'bare' / 'channels.json').unlink()
  assert _describe(tmp_path / 'bare').targets.channels == ('GFP', 'RFP')
  found = setting.losses(tmp_path / 'y', f'--restore_directory={tmp_path / "bare"}')
  assert found == pytest.approx(losses, rel=1e-6)


def test_losses_are_those_of_each_head(setting, trained, tmp_path):
  """Every patch of an image of a patch's size is the same."""
  checkpoint = Checkpoint(find_newest(trained.folder))
  description = checkpoint.describe()
  geometry = description.plan().spec.geometry
  write_field(
    tmp_path / 'images',
    rows=geometry.patch,
    columns=geometry.patch,
    further_inputs=('POLARIZATION',),
    channels=_LABELS,
  )
  (field,) = png_folders.find_png_fields(tmp_path / 'images')
  field_of_view = field.select(_INPUTS, _LABELS).read()
  centre = slice(geometry.margin, geometry.margin + geometry.output)
  truth = []
  for key in description.heads:
    # At 0.0, 0.5 and 1.0 of three depths.
    z = key.z if key.z == MAXPROJECT else round(2 * float(key.z))
    recorded = ImageKey(z, 'PHASE_CONTRAST' if key.channel == TRANSMISSION else key.channel)
    truth.append(np.rint(intensity(field_of_view.images[recorded][centre, centre]) * 255))
  labeler = Labeler(
    description.plan(),
    checkpoint,
    groups=[HeadGroup(heads=description.heads, statistics=(Statistic.CROSS_ENTROPY,))],
    batch=1,
    blocks=(1, 1),
  )
  whole = slice(None)
  inputs = data_provider.input_crop(field_of_view, description.inputs, whole, whole)[np.newaxis]
  (outputs,) = labeler(inputs, [np.array(truth, np.uint8)[:, np.newaxis]])
  labeler.close()
  found = setting.losses(
    tmp_path / 'base',
    f'--restore_directory={trained.folder}',
    f'--dataset_eval_directory={tmp_path / "images"}',
    f'--loss_crop_size={geometry.patch}',
  )
  for key, loss in zip(description.heads, outputs[Statistic.CROSS_ENTROPY][:, 0], strict=True):
    assert found[f'loss/{key}'] == pytest.approx(loss.mean(), rel=1e-4), key


def test_training_from_own_labels_has_them(setting, trained, tmp_path):
  """Named by the checkpoint alone, whether it has the file or not."""
  folder = pathlib.Path(shutil.copytree(trained.folder, tmp_path / 'copy'))
  restore = f'--restore_directory={folder}'
  start = setting.find_start(tmp_path / 'base', restore)
  assert (start.inputs.channels, start.targets.channels) == (_INPUTS, _LABELS)
  assert not start.fresh
  assert not start.leaves_out_others
  (folder / 'channels.json').unlink()
  run = setting.run(_SEED, '--number_of_steps=1', restore)
  assert run.record['fresh'] == {}
  description = channels_file.Channels(inputs=_INPUTS, targets=('GFP', 'RFP'))
  assert channels_file.read(run.folder) == description


def test_further_labels_start_fresh(setting, trained):
  restore = [f'--restore_directory={trained.folder}', '--target_channels=CFP,GFP']
  run = setting.run(_SEED, '--number_of_steps=1', *restore)
  assert set(run.record['fresh'].values()) == {'not in the checkpoint'}
  assert {'/'.join(name.split('/')[:3]) for name in run.record['fresh']} == {
    f'head/{MAXPROJECT}/CFP'
  }
  assert _describe(run.folder).targets.channels == ('CFP', 'GFP')
  assert f"'{setting.images}': left out RFP; the network predicts CFP, GFP" in run.outcome.stderr
  assert 'No field of view has an image of CFP: its head' in run.outcome.stderr
  # What it goes on with, without the flag.
  assert setting.find_start(run.folder.parent).leaves_out_others


@pytest.fixture(scope='module')
def original(setting):
  """The folder of a checkpoint of the original's channels."""
  folder = setting.new_folder()
  random_checkpoint.write_random_checkpoint(folder, model='FOVEA', base_depth=6, num_z_values=3)
  return folder


def test_own_labels_from_the_originals_checkpoint(setting, original, tmp_path):
  restore = [f'--restore_directory={original}', '--target_channels=GFP']
  start = setting.find_start(tmp_path / 'base', *restore)
  assert (start.inputs.channels, start.targets.channels) == ((TRANSMISSION,), ('GFP',))
  assert {'/'.join(name.split('/')[:3]) for name in start.fresh} == {'head/MAXPROJECT/GFP'}
  assert start.leaves_out_others


def test_some_of_the_originals_labels_are_a_beginning_for_all(setting, tmp_path):
  for folder, labels in (('known', TARGET_CHANNELS[:2]), ('own', ('GFP', TARGET_CHANNELS[0]))):
    random_checkpoint.write_random_checkpoint(
      tmp_path / folder, model='FOVEA', base_depth=6, num_z_values=3, target_channels=labels
    )
    start = setting.find_start(tmp_path / 'base', f'--restore_directory={tmp_path / folder}')
    assert start.targets.channels == (TARGET_CHANNELS if folder == 'known' else labels)


def test_unknown_labels_without_the_flag(setting, original, tmp_path):
  for network in ([f'--restore_directory={original}'], setting.network):
    line = setting.error(tmp_path / 'base', *network)
    assert f"'{setting.images}' has images of GFP, RFP at z MAXPROJECT" in line
    assert f'the network predicts {", ".join(TARGET_CHANNELS)}; give --target_channels GFP,RFP' in (
      line
    )


def test_another_number_of_input_channels(setting, original, tmp_path):
  """Even where as many images come of other z depths, weights would be read in another sense."""
  restore = [f'--restore_directory={original}', *_CHANNELS]
  for depths in (3, 6):
    line = setting.error(tmp_path / 'base', *restore, f'--num_z_values={depths}')
    assert 'it reads TRANSMISSION at each z depth, not POLARIZATION, TRANSMISSION, in' in line
    assert '--input_channels TRANSMISSION' in line
  other = setting.new_folder()
  random_checkpoint.write_random_checkpoint(
    other, model='FOVEA', base_depth=6, num_z_values=6, target_channels=_LABELS
  )
  restore = [f'--restore_directory={other}', *_CHANNELS, '--num_z_values=3']
  line = setting.error(tmp_path / 'base', *restore)
  assert 'or --norestore_inputs to start the first layer fresh' in line
  fresh = setting.find_start(tmp_path / 'base', *restore, '--norestore_inputs').fresh
  assert {n.split('/')[0] for n, why in fresh.items() if why == '--norestore_inputs'} == {
    'lower_scale_0_recursion_0'
  }
  assert {n.split('/')[2] for n, why in fresh.items() if why == 'not in the checkpoint'} <= set(
    _INPUTS
  )


def test_other_input_channels_of_the_same_number(setting, trained, tmp_path):
  """Only their heads are others."""
  restore = [f'--restore_directory={trained.folder}', '--input_channels=DIC,DARKFIELD']
  start = setting.find_start(tmp_path / 'base', *restore)
  assert (start.inputs.channels, start.targets.channels) == (('DARKFIELD', 'DIC'), _LABELS)
  assert {name.split('/')[2] for name in start.fresh} == {'DARKFIELD', 'DIC'}


@pytest.mark.parametrize('flag', ['input_channels', 'target_channels'])
@pytest.mark.parametrize('name', ['GFP 488', 'GFP/RFP', 'Zellkörper', ''])
def test_name_that_no_variable_can_have(setting, tmp_path, flag, name):
  line = setting.error(tmp_path / 'base', *setting.network, f'--{flag}=GFP,{name}')
  assert f'--{flag} has {name!r}; expected names of letters (A-Z, a-z), digits' in line


def test_input_channel_that_the_images_lack(setting, tmp_path):
  flags = [*setting.network, '--target_channels=GFP', '--input_channels=DARKFIELD']
  assert 'has no image of DARKFIELD; expected a z-stack' in setting.error(tmp_path / 'base', *flags)


def test_labels_that_the_images_lack(setting, tmp_path):
  line = setting.error(tmp_path / 'base', *setting.network, '--target_channels=CFP')
  assert f"'{setting.images}' has no target" in line


def test_stretched_own_label(setting, tmp_path):
  base = tmp_path / 'base'
  flags = ['--target_channels=GFP', '--stretch_targets=GFP']
  setting.run(*setting.network, _SEED, '--number_of_steps=1', *flags, base=base)
  line = setting.error(base)
  assert 'was trained with --stretch_targets GFP, not empty' in line
  assert setting.losses(base, '--stretch_targets=GFP')['loss/target'] > 0


@pytest.mark.parametrize(
  ('name', 'words'),
  [
    ('BFP', '--stretch_targets has BFP, which the network does not predict; it predicts RFP, CFP'),
    ('CFP', '--stretch_targets has CFP, of which no field of view has an image; they have RFP'),
  ],
)
def test_stretched_label_that_is_nowhere(setting, tmp_path, name, words):
  flags = [*setting.network, '--target_channels=RFP,CFP', f'--stretch_targets={name}']
  assert words in setting.error(tmp_path / 'base', *flags)
  folder = tmp_path / 'checkpoint'
  random_checkpoint.write_random_checkpoint(
    folder, model='FOVEA', base_depth=6, num_z_values=3, target_channels=('RFP', 'CFP')
  )
  evaluation = [
    '--mode=EVAL_EVAL',
    f'--dataset_eval_directory={setting.images}',
    f'--restore_directory={folder}',
    '--eval_once',
  ]
  line = setting.error(tmp_path / 'base', *evaluation, f'--stretch_targets={name}')
  assert words in line


def test_file_of_other_channels(setting, base):
  path = base / 'train' / 'channels.json'
  channels_file.write(path.parent, channels_file.Channels(inputs=_INPUTS, targets=('GFP', 'CFP')))
  line = setting.error(base)
  assert f'{str(path)!r} is not of model.ckpt-2, which predicts GFP, RFP; delete it' in line
