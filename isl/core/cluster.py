"""Describes which machines train together, and which of them this process is."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

PS = 'ps'
WORKER = 'worker'
# Kubernetes' TFJob knows the chief by either name.
_CHIEFS = ('chief', 'master')
_JOBS = (*_CHIEFS, WORKER, PS)
_ADDRESS = re.compile(r'(\[[0-9A-Fa-f:.]+\]|[^\s:\[\],/]+):([0-9]{1,5})')
_WANTED = 'expected host:port'
_FLAGS = '--ps_hosts and --worker_hosts'
_EXAMPLE = (
  '{"cluster": {"ps": ["host:port"], "worker": ["host:port", ..]},'
  ' "task": {"type": "worker", "index": 0}}'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
  """The machines of a distributed training, and which of them this process is.

  Parameter servers keep the variables, workers compute with them.

  Attributes:
    jobs: for each kind of task (chief or master, worker, ps), its name and the tasks' addresses as
      host:port.
    job: the kind of task that this process is.
    task: the number of this process among the tasks of its kind, from 0.
  """

  jobs: tuple[tuple[str, tuple[str, ...]], ...]
  job: str
  task: int

  @property
  def ps_hosts(self) -> tuple[str, ...]:
    """Addresses of the parameter servers, as host:port."""
    return dict(self.jobs)[PS]

  @property
  def workers(self) -> tuple[tuple[str, int], ...]:
    """The (job, task) of every process that computes; the first is the chief."""
    return tuple((job, i) for job, hosts in self.jobs if job != PS for i in range(len(hosts)))

  @property
  def worker_hosts(self) -> tuple[str, ...]:
    """Addresses of `workers`, as host:port."""
    return tuple(host for job, hosts in self.jobs if job != PS for host in hosts)

  @property
  def worker_number(self) -> int:
    """The position of this process, which is no parameter server, in `workers`."""
    return self.workers.index((self.job, self.task))

  @property
  def is_ps(self) -> bool:
    """Whether this process is a parameter server."""
    return self.job == PS

  @property
  def is_chief(self) -> bool:
    """Whether this process is the worker that writes checkpoints and summaries."""
    return (self.job, self.task) == self.workers[0]

  @property
  def device(self) -> str:
    """TensorFlow's device name of this process: /job:worker/task:1, for example."""
    return f'/job:{self.job}/task:{self.task}'

  @property
  def ps_devices(self) -> tuple[str, ...]:
    """TensorFlow's device names of the parameter servers."""
    return tuple(f'/job:{PS}/task:{i}' for i in range(len(self.ps_hosts)))

  @property
  def address(self) -> str:
    """The address of this process, as host:port."""
    return dict(self.jobs)[self.job][self.task]


def from_tf_config(text: str) -> Cluster | None:
  """Reads the cluster from the environment variable TF_CONFIG.

  Args:
    text: the variable's value: JSON, as TensorFlow's tools and Kubernetes' TFJob set it.

  Returns:
    The cluster; None where TF_CONFIG names a single process, which trains alone.

  Raises:
    ValueError: the text is not JSON, or does not describe a cluster that isl can train on.
  """
  try:
    config: Any = json.loads(text)
  except ValueError as e:
    raise ValueError(f'TF_CONFIG is not JSON ({e}); expected {_EXAMPLE}, got {text!r}') from e
  cluster = config.get('cluster') if isinstance(config, dict) else None
  task = config.get('task') if isinstance(config, dict) else None
  if not isinstance(cluster, dict) or not isinstance(task, dict):
    raise ValueError(f'TF_CONFIG has no cluster or no task; expected {_EXAMPLE}, got {text!r}')
  unknown = [job for job in cluster if job not in _JOBS]
  if unknown:
    raise ValueError(
      f'TF_CONFIG has the tasks {", ".join(map(repr, unknown))} in its cluster; isl knows'
      f' {", ".join(_JOBS)}'
    )
  hosts = {job: _tf_config_hosts(job, cluster[job]) for job in _JOBS if cluster.get(job)}
  if set(_CHIEFS) <= set(hosts):
    raise ValueError("TF_CONFIG has both a 'chief' and a 'master'; expected one of them")
  for chief in _CHIEFS:
    if len(hosts.get(chief, ())) > 1:
      raise ValueError(f'TF_CONFIG has {len(hosts[chief])} tasks of {chief!r}; expected one')
  job, index = task.get('type'), task.get('index')
  if job == 'evaluator':
    raise ValueError(
      "TF_CONFIG makes this process an 'evaluator', which does not train; give it --mode EVAL_EVAL"
      ' or EVAL_TRAIN'
    )
  if not isinstance(job, str) or job not in hosts:
    raise ValueError(
      f'TF_CONFIG makes this process a {job!r}, which its cluster lacks; it has {", ".join(hosts)}'
    )
  # Some tools write the number as text.
  number = int(index) if isinstance(index, str) and index.isdecimal() else index
  if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(hosts[job]):
    raise ValueError(
      f'TF_CONFIG has the index {index!r}; its cluster has {job!r} from 0 to {len(hosts[job]) - 1}'
    )
  if sum(map(len, hosts.values())) == 1 and job != PS:
    return None
  _check_jobs(hosts, 'TF_CONFIG')
  return _make(hosts, job, number, 'TF_CONFIG')


def _tf_config_hosts(job: str, hosts: Any) -> tuple[str, ...]:
  if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
    raise ValueError(f'TF_CONFIG has {hosts!r} for {job!r}; expected a list of host:port')
  return tuple(hosts)


def from_hosts(
  ps_hosts: Sequence[str], worker_hosts: Sequence[str], *, is_ps: bool, task: int
) -> Cluster:
  """Makes a cluster of the addresses that the flags --ps_hosts and --worker_hosts give.

  Args:
    ps_hosts: addresses of the parameter servers, as host:port.
    worker_hosts: addresses of the workers, as host:port; the first is the chief.
    is_ps: whether this process is a parameter server.
    task: the number of this process among the tasks of its kind, from 0.

  Raises:
    ValueError: an address or the task's number is wrong, or there are no parameter servers or no
      workers.
  """
  hosts = {WORKER: tuple(worker_hosts), PS: tuple(ps_hosts)}
  job = PS if is_ps else WORKER
  _check_jobs(hosts, _FLAGS)
  if not 0 <= task < len(hosts[job]):
    raise ValueError(f'--task must be 0 to {len(hosts[job]) - 1}, one of --{job}_hosts, got {task}')
  return _make(hosts, job, task, _FLAGS)


def _check_jobs(hosts: Mapping[str, tuple[str, ...]], origin: str) -> None:
  """Raises ValueError unless there are both a parameter server and a worker."""
  if not hosts.get(PS):
    raise ValueError(
      f'{origin} must name a parameter server (ps), which holds the variables; got none'
    )
  if not any(of_job for job, of_job in hosts.items() if job != PS):
    raise ValueError(f'{origin} must name a worker, which computes; got none')


def _make(hosts: Mapping[str, tuple[str, ...]], job: str, task: int, origin: str) -> Cluster:
  """Makes the cluster; raises ValueError if an address is malformed or occurs twice."""
  every = [host for of_job in hosts.values() for host in of_job]
  for host in every:
    match = _ADDRESS.fullmatch(host)
    if not match or not 0 < int(match[2]) < 1 << 16:
      raise ValueError(f'{origin}: {host!r} is no address; {_WANTED}')
    if every.count(host) > 1:
      raise ValueError(f'{origin}: {host!r} is there twice; expected an address for each task')
  return Cluster(jobs=tuple(hosts.items()), job=job, task=task)
