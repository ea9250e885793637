"""No flag is dead: each changes the Experiment that the program reads, or how the program ends."""

from __future__ import annotations

import dataclasses

import pytest
import tensorflow.compat.v1 as tf
from absl import flags
from absl.testing import flagsaver

from isl import command_line, launch
from isl.models import tensorcheck
from isl.program_flags import own_flags
from tests.support.program import run_in_process

_IMAGES = ('--read_pngs', '--dataset_train_directory=a', '--dataset_eval_directory=a')
_SHARDS = ('--dataset_pattern=s-%d',)
_INFER = ('--mode=EVAL_EVAL', '--metric=INFER_FULL', *_IMAGES)
_EXPORT = ('--mode=EXPORT', '--metric=STITCH')
_MACHINES = (*_IMAGES, '--ps_hosts=a:1', '--worker_hosts=b:1,c:1')
# What else a flag needs; otherwise a training from images.
_WITH = {
  **dict.fromkeys(('metric', 'dataset_eval_directory'), ('--mode=EVAL_EVAL', *_IMAGES)),
  'read_pngs': (*_SHARDS, *_IMAGES[1:]),
  **dict.fromkeys(('dataset_pattern', 'dataset_num_shards', 'skip_corrupt_shards'), _SHARDS),
  **dict.fromkeys(('data_batch_size', 'data_batch_num_threads', 'data_batch_capacity'), _SHARDS),
  'train_on_full_dataset': _SHARDS,
  **dict.fromkeys(('export_directory', 'export_format'), _EXPORT),
  **dict.fromkeys(('calibrate', 'calibrated', 'overwrite', 'infer_continuously'), _INFER),
  **dict.fromkeys(('dask_scheduler', 'dask_workers'), _INFER),
  **dict.fromkeys(('master', 'task', 'ps_tasks', 'ps_hosts', 'worker_hosts'), _MACHINES),
  'sync_replicas': _MACHINES,
}
# Where any text, or 16 more, would not do.
_VALUES = {
  'input_range': 'auto',
  'infer_statistics': 'MEAN',
  'infer_panels': 'INPUT',
  'ps_hosts': 'd:1',
  'worker_hosts': 'd:1,e:1',
  'task': '1',
}
# What they say is compared with others, and reaches no field: another value is refused.
_REFUSED = {
  'is_recordio': '--is_recordio must be true',
  'master': '--master must be',
  'ps_tasks': '--ps_tasks must be 1',
}


def _another_value(flag: flags.Flag) -> str:
  """A value that a flag does not have by default, as text."""
  if flag.name in _VALUES:
    return _VALUES[flag.name]
  if isinstance(flag, flags.EnumFlag):
    return next(value for value in flag.parser.enum_values if value != flag.default)
  match flag.flag_type():
    case 'bool':
      return str(not flag.default)
    case 'int' | 'float':
      return str((flag.default or 0) + 16)
  return 'b-%d'


def _experiment(*arguments: str):
  with flagsaver.flagsaver():
    flags.FLAGS(['isl-launch', *arguments])
    return dataclasses.replace(command_line.make_experiment(), flags=())


@pytest.mark.parametrize('flag', own_flags(), ids=lambda flag: flag.name)
def test_flag_reaches_the_experiment(flag, monkeypatch):
  monkeypatch.delenv('TF_CONFIG', raising=False)
  given = f'--{flag.name}={_another_value(flag)}'
  others = _WITH.get(flag.name, _IMAGES)
  before = _experiment(*others)
  if flag.name in _REFUSED:
    with pytest.raises(ValueError, match=_REFUSED[flag.name]):
      _experiment(*others, given)
  elif flag.name == 'tensorcheck_enable_checks':
    monkeypatch.setattr(tensorcheck, '_enabled', False)
    outcome = run_in_process(launch.run, '--mode=DESCRIBE', '--restore_directory=/no/such', given)
    assert '/no/such' in outcome.error
    with pytest.raises(ValueError, match='the crop must have the shape'):
      tensorcheck.shaped(tf.zeros([2]), [3], 'the crop')
  else:
    assert _experiment(*others, given) != before
