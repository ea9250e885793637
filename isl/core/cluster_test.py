"""Tests of cluster.py: who trains together, as flags and TF_CONFIG say it."""

from __future__ import annotations

import json

import pytest

from isl.core import cluster

_PS = ('ps0:2222', '[::1]:2223')
_WORKERS = ('w0:1', 'w1.example.org:65535', '10.0.0.2:3')


def _config(hosts, job='worker', index: object = 0):
  return json.dumps({'cluster': hosts, 'task': {'type': job, 'index': index}})


def _read(hosts, job='worker', index=0):
  return cluster.from_tf_config(_config(hosts, job, index))


def _from_hosts(ps=_PS, workers=_WORKERS, *, is_ps=False, task=0):
  return cluster.from_hosts(ps, workers, is_ps=is_ps, task=task)


@pytest.mark.parametrize('task', range(len(_WORKERS)))
def test_worker_of_flags(task):
  found = _from_hosts(task=task)
  assert found.ps_hosts == _PS
  assert found.workers == (('worker', 0), ('worker', 1), ('worker', 2))
  assert (found.worker_number, found.address) == (task, _WORKERS[task])
  assert found.is_chief == (task == 0)
  assert not found.is_ps
  assert found.device == f'/job:worker/task:{task}'
  assert found.ps_devices == ('/job:ps/task:0', '/job:ps/task:1')


@pytest.mark.parametrize('task', range(len(_PS)))
def test_parameter_server_of_flags(task):
  found = _from_hosts(is_ps=True, task=task)
  assert found.is_ps
  assert not found.is_chief
  assert (found.device, found.address) == (f'/job:ps/task:{task}', _PS[task])


@pytest.mark.parametrize(('is_ps', 'job'), [(False, 'worker'), (True, 'ps')])
def test_environment_says_the_same_as_flags(is_ps, job):
  hosts = {'ps': list(_PS), 'worker': list(_WORKERS)}
  assert _read(hosts, job, 1) == _from_hosts(is_ps=is_ps, task=1)


@pytest.mark.parametrize('chief', ['chief', 'master'])
def test_chief_of_its_own_is_the_first_of_the_workers(chief):
  """The chief is worker 0, as for Kubernetes' TFJob, in whatever order the jobs are given."""
  hosts = {'worker': list(_WORKERS), 'ps': list(_PS), chief: ['c:1']}
  found = [_read(hosts, chief, 0), _read(hosts, 'worker', 0), _read(hosts, 'worker', 2)]
  assert [one.worker_number for one in found] == [0, 1, 3]
  assert [one.is_chief for one in found] == [True, False, False]
  assert found[0].workers[0] == (chief, 0)
  assert len(found[0].workers) == 1 + len(_WORKERS)
  assert found[0].device == f'/job:{chief}/task:0'


def test_index_may_be_text_and_a_job_may_have_no_task():
  found = _read({'ps': list(_PS), 'worker': list(_WORKERS), 'chief': []}, 'worker', '2')
  assert found.task == 2
  assert found.is_chief is False
  assert dict(found.jobs).keys() == {'ps', 'worker'}


@pytest.mark.parametrize('job', ['chief', 'master', 'worker'])
def test_single_process_needs_no_cluster(job):
  assert _read({job: ['a:1']}, job) is None


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('{', "is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char"),
    ('{', "got '{'"),
    ('[]', "has no cluster or no task; expected {\"cluster\": {\"ps\": [\"host:port\"]"),
    ('{"cluster": {}}', 'has no cluster or no task'),
    ('{"task": {"type": "worker", "index": 0}}', 'has no cluster or no task'),
    ('{"cluster": [], "task": {}}', 'has no cluster or no task'),
    (_config({'gpu': ['a:1'], 'tpu': []}), "the tasks 'gpu', 'tpu' in its cluster; isl knows"),
    (_config({'gpu': ['a:1']}), 'chief, master, worker, ps'),
    (_config({'ps': 'a:1', 'worker': ['b:1']}), "has 'a:1' for 'ps'; expected a list of host:port"),
    (_config({'ps': ['a:1'], 'worker': [2]}), "has [2] for 'worker'; expected a list"),
    (_config({'chief': ['a:1'], 'master': ['b:1'], 'ps': ['c:1']}, 'chief'), "both a 'chief' and"),
    (_config({'chief': ['a:1', 'b:1'], 'ps': ['c:1']}, 'chief'), "has 2 tasks of 'chief'; expecte"),
    (_config({'worker': ['a:1'], 'ps': ['c:1']}, 'evaluator'), 'give it --mode EVAL_EVAL or EVAL_'),
    (_config({'worker': ['a:1'], 'ps': ['c:1']}, 'chief'), "a 'chief', which its cluster lacks;"),
    (_config({'worker': ['a:1'], 'ps': ['c:1']}, 'chief'), 'it has worker, ps'),
    (_config({'worker': ['a:1'], 'ps': ['c:1']}, None), 'a None, which its cluster lacks'),
    (_config({'worker': ['a:1'], 'ps': ['c:1']}, ['worker']), "a ['worker'], which its cluster"),
    (_config({'worker': ['a:1', 'b:1'], 'ps': ['c:1']}, 'worker', 2), "has the index 2; its"),
    (_config({'worker': ['a:1', 'b:1'], 'ps': ['c:1']}, 'worker', 2), "has 'worker' from 0 to 1"),
    (_config({'worker': ['a:1'], 'ps': ['c:1']}, 'worker', -1), 'has the index -1'),
    (_config({'worker': ['a:1'], 'ps': ['c:1']}, 'worker', None), 'has the index None'),
    (_config({'worker': ['a:1'], 'ps': ['c:1']}, 'worker', True), 'has the index True'),
    (_config({'worker': ['a:1'], 'ps': ['c:1']}, 'worker', 0.0), 'has the index 0.0'),
    (_config({'worker': ['a:1'], 'ps': ['c:1']}, 'worker', 'one'), "has the index 'one'"),
    (_config({'worker': ['a:1', 'b:1']}), 'must name a parameter server (ps), which holds'),
    (_config({'ps': ['a:1']}, 'ps'), 'must name a worker, which computes; got none'),
    (_config({'ps': ['a'], 'worker': ['b:1']}), "'a' is no address; expected host:port"),
    (_config({'ps': ['a:1'], 'worker': ['b:1', 'a:1']}), "'a:1' is there twice; expected an addre"),
  ],
)  # fmt: skip
def test_error_of_the_environment(text, words):
  with pytest.raises(ValueError, match=r'^TF_CONFIG') as caught:
    cluster.from_tf_config(text)
  assert words in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'host',
  [
    *('', 'a', ':1', 'a:', 'a:0', 'a:65536', 'a:123456', 'a:-1', 'a:b', 'a b:1', 'a,b:1', 'a/b:1'),
    *('grpc://a:1', '::1:1', '[::1]', '[a:1', '[g::1]:1', 'a:1 ', 'a:\u0661'),
  ],
)
def test_what_is_no_address(host):
  with pytest.raises(ValueError, match=r'is no address; expected host:port') as caught:
    _from_hosts(workers=('w:1', host))
  assert str(caught.value).startswith(f'--ps_hosts and --worker_hosts: {host!r} ')


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ({'task': 3}, '--task must be 0 to 2, one of --worker_hosts, got 3'),
    ({'task': -1}, '--task must be 0 to 2, one of --worker_hosts, got -1'),
    ({'task': 2, 'is_ps': True}, '--task must be 0 to 1, one of --ps_hosts, got 2'),
    ({'workers': (*_WORKERS, _PS[0])}, "'ps0:2222' is there twice; expected an address for each"),
  ],
)
def test_error_of_flags(arguments, words):
  with pytest.raises(ValueError, match=r'^--') as caught:
    _from_hosts(**arguments)
  assert words in str(caught.value)


@pytest.mark.parametrize('is_ps', [False, True])
@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ({'workers': ()}, 'must name a worker, which computes; got none'),
    ({'ps': ()}, 'must name a parameter server (ps), which holds the variables; got none'),
  ],
)
def test_list_that_is_missing(arguments, words, is_ps):
  """Whichever process it is: a server without workers would wait for ever."""
  with pytest.raises(ValueError, match=r'^--ps_hosts and --worker_hosts') as caught:
    _from_hosts(**arguments, is_ps=is_ps)
  assert words in str(caught.value)
