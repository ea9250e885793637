"""A plate of fields of view that is stopped by kill -9 again and again, until it is done."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import random
import re
import subprocess

import pytest

from isl import launch
from isl.programs import random_checkpoint
from tests.support.forked import ForkedProgram
from tests.support.program import (
  files_in,
  finish,
  make_fovea_shallow,
  run_in_process,
  write_field,
)


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
  make_fovea_shallow(monkeypatch)


def _flags(tmp_path, *flags):
  return [
    '--mode=EVAL_EVAL',
    '--metric=INFER_FULL',
    '--read_pngs',
    f'--restore_directory={tmp_path / "checkpoint"}',
    f'--dataset_eval_directory={tmp_path / "images"}',
    f'--base_directory={tmp_path / "base"}',
    '--infer_statistics=MEDIAN,QUANTILE_5',
    *flags,
  ]


def _start(tmp_path, *flags):
  return ForkedProgram(*_flags(tmp_path, *flags))


def _make_plate(tmp_path, num_fields):
  random_checkpoint.write_random_checkpoint(
    tmp_path / 'checkpoint',
    model='FOVEA',
    base_depth=5,
    num_z_values=2,
    target_channels=['DAPI_CONFOCAL'],
  )
  wells = [f'{row}{column}' for row in 'ABCD' for column in range(1, 7)][:num_fields]
  return write_field(
    tmp_path / 'images',
    rows=50,
    columns=58,
    depths=2,
    wells=wells,
    channels=['DAPI_CONFOCAL'],
  )


def _begun(outcome):
  """The fields of view that a run has begun, or found to be done."""
  return re.findall(r'\] Field \d+ of \d+: (.+)', outcome.stderr)


def _kill_until_done(tmp_path, fields, rng, *flags):
  """Runs until a run ends by itself; counts how often each field of view is computed.

  Args:
    tmp_path: has the plate.
    fields: their names.
    rng: random.Random, of the moments of the kills.
    *flags: more of the command line.

  Returns:
    (the last run's outcome, how often each field was begun, the number of kills).
  """
  folder = tmp_path / 'base' / 'eval_eval_infer' / '00001000'
  begun: collections.Counter[str] = collections.Counter()
  for kills in range(100):
    done = {field for field in fields if (folder / field / 'field.json').exists()}
    process = _start(tmp_path, *flags)
    # Some fields on, and somewhere in the next: on a slow machine, too, each run gets on.
    lines, fields_left = [], rng.randint(2, 8)
    for line in process.stderr:
      lines.append(line)
      fields_left -= 'blocks done, 00:00 left' in line
      if not fields_left:
        break
    # What it logs in the meantime fits into the pipe.
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(rng.uniform(0, 1))
    process.kill()
    outcome = finish(process)
    outcome = dataclasses.replace(outcome, stderr=''.join(lines) + outcome.stderr)
    begun.update(field for field in _begun(outcome) if field not in done)
    if outcome.status == 0:
      return outcome, begun, kills
    assert outcome.status == -9, outcome.stderr
  raise AssertionError('never done')


def _assert_complete(tmp_path, fields, prediction_format):
  """Every file that a run without kills writes is there, with the same contents."""
  killed = tmp_path / 'base' / 'eval_eval_infer' / '00001000'
  whole = tmp_path / 'whole'
  flags = [f'--prediction_format={prediction_format}', f'--base_directory={whole}']
  outcome = run_in_process(launch.run, *_flags(tmp_path, *flags))
  assert outcome.status == 0, outcome.stderr
  folder = whole / 'eval_eval_infer' / '00001000'
  assert files_in(killed) == files_in(folder)
  assert (killed / 'metrics.csv').read_bytes() == (folder / 'metrics.csv').read_bytes()
  for name in files_in(folder):
    if name.split('/')[0] in fields and not name.endswith(('field.json', '.tif')):
      assert (killed / name).read_bytes() == (folder / name).read_bytes(), name


@pytest.mark.soak
@pytest.mark.parametrize('prediction_format', ['PNG', 'OME_ZARR'])
def test_plate_of_24_fields(tmp_path, prediction_format):
  fields = _make_plate(tmp_path, 24)
  outcome, begun, kills = _kill_until_done(
    tmp_path,
    fields,
    random.Random(0),
    f'--prediction_format={prediction_format}',
  )
  assert kills >= 2
  # Each killed run was at one field of view, which had to be begun again.
  assert set(begun) == set(fields)
  assert sum(begun.values()) <= len(fields) + kills
  assert max(begun.values()) <= 1 + kills
  assert 'is done already' in outcome.stderr
  _assert_complete(tmp_path, fields, prediction_format)


def test_a_few_fields_and_one_kill(tmp_path):
  """Killed when the first field of view is done, so that it is not done again."""
  fields = _make_plate(tmp_path, 3)
  first = tmp_path / 'base' / 'eval_eval_infer' / '00001000' / sorted(fields)[0] / 'field.json'
  process = _start(tmp_path)
  assert any('Field 2 of 3' in line for line in process.stderr)
  process.kill()
  finish(process)
  assert first.exists()
  written = first.stat().st_mtime_ns
  outcome = run_in_process(launch.run, *_flags(tmp_path))
  assert outcome.status == 0, outcome.stderr
  assert set(_begun(outcome)) == set(fields)
  assert first.stat().st_mtime_ns == written
  assert 'Field 1 of 3 is done already' in outcome.stderr
  _assert_complete(tmp_path, fields, 'PNG')
