"""The files in examples/ can be read by whoever is to run them, and name flags that there are."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess

import yaml
from absl.testing import flagsaver

from isl import command_line
from isl.core.experiment import Experiment
from isl.program_flags import FLAGS
from tests.support.program import REPOSITORY

_EXAMPLES = REPOSITORY / 'examples'
_SLURM = _EXAMPLES / 'slurm.sh'
# Of SLURM; srun says what its tasks would know.
_COMMANDS = """
  scontrol() { printf '%s\\n' a b; }
  srun() { echo "$PS_HOSTS;$WORKER_HOSTS;${*: -2}"; }
  source "$0" --number_of_steps 7
"""


def _understand(arguments: list[str]) -> Experiment:
  """What the program makes of a command line."""
  with flagsaver.flagsaver():
    assert FLAGS(['isl-launch', *arguments]) == ['isl-launch']
    return command_line.make_experiment()


def _check_bash_reads(code: str) -> None:
  done = subprocess.run(['bash', '-n'], input=code, capture_output=True, text=True, check=False)
  assert (done.returncode, done.stderr) == (0, '')


def test_slurm_script():
  code = _SLURM.read_text()
  _check_bash_reads(code)
  # What srun runs has no quotes of this kind in it.
  _, of_task, _ = re.split(r"^.* bash -c '$|^  ' isl", code, flags=re.M)
  _check_bash_reads(of_task)
  named = set(re.findall(r'--(\w+)', of_task))
  assert named <= set(FLAGS) and {'ps_hosts', 'worker_hosts', 'task'} <= named


def test_slurm_script_knows_its_tasks():
  environment = {
    'SLURM_JOB_NODELIST': 'a,b',
    'SLURM_NTASKS_PER_NODE': '2',
    'SLURM_CPUS_PER_TASK': '1',
  }
  folders = {'BASE': '/base', 'IMAGES': '/images'}
  done = subprocess.run(
    ['bash', '-c', _COMMANDS, _SLURM],
    env={**os.environ, **environment, **folders},
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout == 'a:2222;a:2223,b:2224,b:2225;--number_of_steps 7\n'


def test_tfjob(monkeypatch):
  claim, job = yaml.safe_load_all((_EXAMPLES / 'tfjob.yaml').read_text())
  replicas = job['spec']['tfReplicaSpecs']
  assert list(replicas) == ['PS', 'Chief', 'Worker']
  cluster = {
    name.lower(): [f'{name}-{i}:2222' for i in range(replica['replicas'])]
    for name, replica in replicas.items()
  }
  for name, replica in replicas.items():
    (container,), (volume,) = (replica['template']['spec'][x] for x in ('containers', 'volumes'))
    assert volume['persistentVolumeClaim']['claimName'] == claim['metadata']['name']
    # As the operator sets it, for the container of this name.
    assert container['name'] == 'tensorflow'
    config = {'cluster': cluster, 'task': {'type': name.lower(), 'index': 0}}
    monkeypatch.setenv('TF_CONFIG', json.dumps(config))
    program, *arguments = container['command']
    assert program == 'isl-launch'
    found = _understand(arguments).cluster
    assert found and (found.is_ps, found.is_chief) == (name == 'PS', name == 'Chief')


def test_dask_on_slurm():
  example = runpy.run_path(str(_EXAMPLES / 'dask_slurm.py'))
  with example['make_cluster']() as cluster:
    job, command = cluster.job_script(), example['command'](cluster.scheduler_address)
    _check_bash_reads(job)
    assert f'dask_worker {cluster.scheduler_address} --name' in job and '--nthreads 1 ' in job
    dask = _understand(command[1:]).dask
    assert dask and dask.scheduler == cluster.scheduler_address
