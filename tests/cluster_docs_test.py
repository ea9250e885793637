"""docs/cluster.md: its scripts are dry runs here, of which the program knows every flag."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading

import kubernetes_validate
import pytest
import yaml
from absl.testing import flagsaver

from isl import command_line, launch
from isl.checkpoints.checkpoint import Checkpoint, find_newest
from isl.core.experiment import Experiment
from isl.program_flags import FLAGS
from tests.support.program import REPOSITORY, write_field

# Under Bazel this file is a link into the repository.
_PAGE = (REPOSITORY / 'docs' / 'cluster.md').read_text()

# What a cluster would have in PATH. SLURM sends signals to the tasks, not to the script.
_STAND_INS = {
  'isl-launch': """#!/bin/bash
    printf '%s\\0' "${TF_CONFIG-}" "$@" > "$(mktemp "$RECORDS/isl-launch.XXXXXX")"
  """,
  'sbatch': """#!/bin/bash
    cat "${@: -1}" > "$(mktemp "$RECORDS/sbatch.XXXXXX")"
    echo Submitted batch job 1
  """,
  'scancel': """#!/bin/bash
  """,
  'scontrol': """#!/bin/bash
    [[ "$1 $2" == 'show hostnames' ]] && tr , '\\n' <<< "$3"
  """,
  'srun': f"""#!{sys.executable}
    import os, pathlib, signal, subprocess, sys
    options, command = sys.argv[1:], []
    while not options[-1].startswith('--') or 'bash' in options:
      command.insert(0, options.pop())
    (count,) = (int(x.partition('=')[2]) for x in options if x.startswith('--ntasks='))
    tasks = [
      subprocess.Popen(command, env={{**os.environ, 'SLURM_PROCID': str(rank)}})
      for rank in range(count)
    ]
    signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
    pathlib.Path(os.environ['RECORDS'], 'srun.pid').write_text(str(os.getpid()))
    sys.exit(max(abs(task.wait()) for task in tasks))
  """,
}


def _blocks(language: str) -> list[str]:
  """The page's code in a language, in order."""
  fenced = re.findall(rf'^( *)```{language}\n(.*?)^\1```$', _PAGE, re.MULTILINE | re.DOTALL)
  return [textwrap.dedent(code) for _, code in fenced]


_BY_HAND, _BY_ENVIRONMENT, _SLURM = _blocks('bash')
(_TFJOB,) = _blocks('yaml')
(_DASK,) = _blocks('python')


def _understand(arguments: list[str], tf_config: str) -> Experiment:
  """What the program makes of a command line."""
  with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as monkeypatch:
    monkeypatch.setenv('TF_CONFIG', tf_config)
    assert FLAGS(['isl-launch', *arguments]) == ['isl-launch']
    return command_line.make_experiment()


@dataclasses.dataclass(frozen=True)
class Cluster:
  """A machine with stand-ins for what a cluster has.

  Attributes:
    folder: of the stand-ins.
    records: the folder of what they were given.
  """

  folder: pathlib.Path
  records: pathlib.Path

  def environment(self, **more: object) -> dict[str, str]:
    path = f'{self.folder}{os.pathsep}{os.environ["PATH"]}'
    texts = {name: str(value) for name, value in more.items()}
    python = {'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
    return {**os.environ, **python, 'PATH': path, 'RECORDS': str(self.records), **texts}

  def run(self, command: list[object], **environment: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
      [str(x) for x in command],
      env=self.environment(**environment),
      cwd=self.records,
      capture_output=True,
      text=True,
      timeout=120,
      check=False,
    )

  def recorded(self, name: str) -> list[str]:
    return [path.read_text() for path in self.records.glob(f'{name}.*')]

  def experiments(self) -> list[Experiment]:
    """Of the command lines that isl-launch was called with."""
    every = [text.split('\0')[:-1] for text in self.recorded('isl-launch')]
    return [_understand(arguments, tf_config) for tf_config, *arguments in every]


@pytest.fixture
def cluster(tmp_path):
  made = Cluster(folder=tmp_path / 'bin', records=tmp_path / 'records')
  made.folder.mkdir()
  made.records.mkdir()
  for name, code in _STAND_INS.items():
    _write_program(made.folder / name, code)
  return made


def _write_program(path: pathlib.Path, code: str) -> None:
  first, _, rest = code.partition('\n')
  path.write_text(f'{first}\n{textwrap.dedent(rest)}')
  path.chmod(0o755)


def _slurm(nodes: int, per_node: int, **more: object) -> dict[str, object]:
  """The environment of a batch script."""
  return {
    'SLURM_JOB_NODELIST': ','.join(f'node{i}' for i in range(nodes)),
    'SLURM_NTASKS_PER_NODE': per_node,
    'SLURM_CPUS_PER_TASK': 1,
    **more,
  }


def _check_tasks(experiments: list[Experiment], *, servers: int, workers: int) -> tuple[str, ...]:
  """There is each task once, and all know each other; returns the addresses, servers first."""
  clusters = [e.cluster for e in experiments]
  assert None not in clusters
  (jobs,) = {c.jobs for c in clusters if c}
  assert sorted((c.is_ps, c.task) for c in clusters if c and c.is_ps) == [
    (True, i) for i in range(servers)
  ]
  assert sorted(c.worker_number for c in clusters if c and not c.is_ps) == list(range(workers))
  addresses = dict(jobs)
  return addresses.pop('ps') + tuple(a for of_job in addresses.values() for a in of_job)


@pytest.mark.parametrize('code', [_BY_HAND, _BY_ENVIRONMENT, _SLURM])
def test_bash_reads_it(code):
  done = subprocess.run(['bash', '-n'], input=code, capture_output=True, text=True, check=False)
  assert (done.returncode, done.stderr) == (0, '')


def test_by_hand(cluster):
  done = cluster.run(['bash', '-c', _BY_HAND], BASE='/base', IMAGES='/images')
  assert done.returncode == 0, done.stderr
  experiments = cluster.experiments()
  assert len(_check_tasks(experiments, servers=1, workers=2)) == 3
  assert {str(e.base_directory) for e in experiments} == {'/base'}


def test_by_environment(cluster):
  done = cluster.run(['bash', '-c', _BY_ENVIRONMENT], BASE='/base', IMAGES='/images')
  assert done.returncode == 0, done.stderr
  (experiment,) = cluster.experiments()
  assert experiment.cluster is not None
  assert (experiment.cluster.worker_number, experiment.cluster.address) == (1, 'c:2222')


@pytest.mark.parametrize(('nodes', 'per_node'), [(5, 1), (2, 3)])
def test_slurm_script(cluster, nodes, per_node):
  script = cluster.records / 'train.sh'
  script.write_text(_SLURM)
  environment = _slurm(nodes, per_node, BASE='/a base', IMAGES='/images')
  done = cluster.run(['bash', script, '--number_of_steps', 7], **environment)
  assert done.returncode == 0, done.stderr
  experiments = cluster.experiments()
  count = nodes * per_node
  # In the order of the tasks, as SLURM spreads them.
  expected = tuple(f'node{i // per_node}:{2222 + i}' for i in range(count))
  assert _check_tasks(experiments, servers=1, workers=count - 1) == expected
  assert {e.training.number_of_steps for e in experiments} == {7}
  assert {str(e.base_directory) for e in experiments} == {'/a base'}


def test_slurm_script_without_a_folder(cluster):
  done = cluster.run(['bash', '-c', _SLURM], **_slurm(1, 2, BASE='/base', IMAGES=''))
  assert done.returncode != 0
  assert 'IMAGES: is the folder' in done.stderr
  assert not cluster.recorded('isl-launch')


class TestTfjob:
  """The manifest, and what the operator would make of it."""

  @pytest.fixture(scope='class')
  def documents(self):
    return {document['kind']: document for document in yaml.safe_load_all(_TFJOB)}

  @pytest.fixture(scope='class')
  def replicas(self, documents):
    return documents['TFJob']['spec']['tfReplicaSpecs']

  def test_kinds(self, documents, replicas):
    assert documents['TFJob']['apiVersion'] == 'kubeflow.org/v1'
    assert replicas.keys() == {'PS', 'Chief', 'Worker'}
    assert replicas['Chief']['replicas'] == 1

  def test_pods(self, documents, replicas):
    newest = kubernetes_validate.latest_version()
    kubernetes_validate.validate(documents['PersistentVolumeClaim'], newest, strict=True)
    for replica in replicas.values():
      assert replica['restartPolicy'] in ('Always', 'OnFailure', 'Never', 'ExitCode')
      pod = {'apiVersion': 'v1', 'kind': 'Pod', 'metadata': {'name': 'isl'}, **replica['template']}
      kubernetes_validate.validate(pod, newest, strict=True)
      (container,) = pod['spec']['containers']
      # The one that is given a TF_CONFIG.
      assert container['name'] == 'tensorflow'
      (volume,) = pod['spec']['volumes']
      claim = documents['PersistentVolumeClaim']['metadata']['name']
      assert volume['persistentVolumeClaim']['claimName'] == claim
      (mount,) = container['volumeMounts']
      assert mount['name'] == volume['name']

  def test_commands(self, replicas):
    addresses = {
      job.lower(): [f'isl-{job.lower()}-{i}.default.svc:2222' for i in range(replica['replicas'])]
      for job, replica in replicas.items()
    }
    experiments = []
    for job, replica in replicas.items():
      (container,) = replica['template']['spec']['containers']
      program, *arguments = container['command']
      assert program == 'isl-launch'
      for index in range(replica['replicas']):
        task = {'type': job.lower(), 'index': index}
        config = {'cluster': addresses, 'task': task, 'environment': 'cloud'}
        experiment = _understand(arguments, json.dumps(config))
        experiments.append(experiment)
        assert experiment.cluster is not None
        assert experiment.cluster.is_ps == (job == 'PS')
        assert experiment.cluster.is_chief == (job == 'Chief')
        (mount,) = container['volumeMounts']
        for folder in (experiment.base_directory, *experiment.image_directories):
          assert folder.is_relative_to(mount['mountPath'])
    servers = replicas['PS']['replicas']
    workers = 1 + replicas['Worker']['replicas']
    _check_tasks(experiments, servers=servers, workers=workers)


def test_dask_jobqueue(cluster):
  done = cluster.run([sys.executable, '-c', _DASK])
  assert done.returncode == 0, done.stderr
  (experiment,) = cluster.experiments()
  assert experiment.dask is not None
  scheduler = experiment.dask.scheduler
  submitted = set(cluster.recorded('sbatch'))
  assert len(cluster.recorded('sbatch')) == int(re.findall(r'jobs=(\d+)', _DASK)[0])
  # But for the numbers of the workers, the printed one.
  anonymous = {re.sub(r'--name \S+', '--name dummy-name', job) for job in submitted}
  (job,) = anonymous
  assert done.stdout.strip() == job.strip()
  read = subprocess.run(['bash', '-n'], input=job, capture_output=True, text=True, check=False)
  assert (read.returncode, read.stderr) == (0, '')
  *_, command = job.strip().splitlines()
  assert f'distributed.cli.dask_worker {scheduler} ' in command and '--nthreads 1 ' in command
  # What the page says of it.
  (quoted,) = re.findall(r'^    (#!/usr/bin/env bash\n.*?)^    \S+/python', _PAGE, re.M | re.S)
  assert set(textwrap.dedent(f'    {quoted}').split('\n')) <= set(job.split('\n'))


def test_tables_are_those_of_the_benchmark():
  done = subprocess.run(
    [sys.executable, REPOSITORY / 'benchmarks' / 'scaling.py'],
    capture_output=True,
    text=True,
    check=True,
    timeout=120,
  )
  printed = _rows(done.stdout, r' *\d')
  rows = _rows(_PAGE, r'\| \d')
  assert rows == printed and len(rows) > 10


def _rows(text: str, start: str) -> list[list[str]]:
  """The numbers of the lines that start so."""
  return [re.findall(r'[\d.]+', line) for line in text.splitlines() if re.match(start, line)]


def _first_free_port(count: int) -> int:
  """Of so many in a row that nobody listens on."""
  for first in range(20000, 60000, 100):
    sockets = []
    try:
      for port in range(first, first + count):
        sockets.append(socket.create_server(('', port)))
    except OSError:
      continue
    finally:
      for s in sockets:
        s.close()
    return first
  pytest.fail('there are no free ports')


@pytest.mark.soak
def test_slurm_script_trains(cluster, tmp_path):
  """Real processes: to the last step, and once more, until a signal comes to all."""
  _write_program(
    cluster.folder / 'isl-launch',
    f'#!/bin/bash\nexec {sys.executable} -m {launch.__name__} "$@"\n',
  )
  script = tmp_path / 'train.sh'
  script.write_text(_SLURM)
  base, images = tmp_path / 'base', tmp_path / 'images'
  images.mkdir()
  write_field(images, rows=160, columns=160)
  flags = ['--model=FOVEA', '--base_depth=6', '--num_z_values=3', '--loss_crop_size=130']
  environment = cluster.environment(
    **_slurm(1, 3, BASE=base, IMAGES=images, FIRST_PORT=_first_free_port(3))
    | {'SLURM_JOB_NODELIST': 'localhost'}
  )

  def train(*more: str, stop_after: str | None = None) -> tuple[int, str]:
    process = subprocess.Popen(
      ['bash', script, *flags, '--preprocess_batch_size=2', *more],
      env=environment,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )
    timer = threading.Timer(300, os.killpg, [process.pid, signal.SIGKILL])
    timer.start()
    log = ''
    assert process.stderr is not None
    for line in process.stderr:
      log += line
      if stop_after and re.search(stop_after, line):
        stop_after = None
        os.kill(int((cluster.records / 'srun.pid').read_text()), signal.SIGTERM)
    process.stderr.close()
    status = process.wait()
    timer.cancel()
    return status, log

  def newest_step() -> int:
    checkpoint = Checkpoint(find_newest(base / 'train'))
    checkpoint.verify()
    return checkpoint.describe().global_step

  status, log = train('--number_of_steps=3')
  assert status == 0, log
  # One for the other worker, at most.
  assert newest_step() in (3, 4)
  assert 'Parameter server 0 listens' in log and 'The chief is done' in log
  before = newest_step()
  status, log = train(stop_after=r'step \d+: loss')
  assert status == 0, log
  assert log.count('Stopped by SIGTERM') == 2
  assert newest_step() > before
