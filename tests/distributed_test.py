"""Trainings on many machines: real servers, workers and kills, on loopback."""

from __future__ import annotations

import re
import shutil
import signal

import pytest

from isl import launch
from isl.checkpoints.checkpoint import Checkpoint, find_newest
from tests.support.machines import Machines
from tests.support.program import make_fovea_shallow, run_in_process, write_field


@pytest.fixture(scope='module', autouse=True)
def shallow():
  with pytest.MonkeyPatch.context() as monkeypatch:
    make_fovea_shallow(monkeypatch)
    yield


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  folder = tmp_path_factory.mktemp('images')
  write_field(folder, rows=160, columns=160)
  return folder


@pytest.fixture
def make_machines(images, tmp_path):
  made: list[Machines] = []

  def make(*flags, servers=1, workers=2):
    base = tmp_path / f'base{len(made)}'
    made.append(Machines(images, base, servers=servers, workers=workers, flags=flags))
    return made[-1]

  yield make
  for machines in made:
    machines.kill_all()


def _steps_done(log):
  """How many steps a worker did."""
  (steps,) = re.findall(r'Worker \d of \d did (\d+) steps', log)
  return int(steps)


class TestAsynchronous:
  """A training of a parameter server and two workers, of which one is killed and comes back."""

  @pytest.fixture(scope='class')
  def run(self, images, tmp_path_factory):
    machines = Machines(
      images,
      tmp_path_factory.mktemp('base'),
      servers=1,
      workers=2,
      flags=['--learning_rate=2e-3', '--save_interval_secs=1'],
    )
    try:
      own = f'--master=grpc://{machines.worker_hosts[0]}'
      chief = machines.worker(0, own, '--ps_tasks=1')
      # The same in both ways, which may be mixed.
      killed = machines.from_environment('worker', 1)
      chief.wait_for('Waiting for parameter servers: ' + machines.ps_hosts[0])
      server = machines.server(0)
      killed.wait_for(r'step \d+: ')
      chief.wait_for(r'step \d+: ')
      killed.kill()
      before = machines.steps_saved()[-1]
      # Alone, it goes on.
      chief.wait_for('Saved', count=chief.log.count('Saved') + 2)
      after = machines.steps_saved()[-1]
      again = machines.worker(1)
      again.wait_for(r'step \d+: ', count=2)
      chief.process.send_signal(signal.SIGTERM)
      statuses = [machine.end() for machine in (chief, again, server)]
    finally:
      machines.kill_all()
    return {
      'machines': machines,
      'chief': chief,
      'killed': killed,
      'again': again,
      'server': server,
      'statuses': statuses,
      'alone': (before, after),
    }

  def test_all_end_with_the_chief(self, run):
    assert run['statuses'] == [0, 0, 0]
    assert 'Stopped by SIGTERM' in run['chief'].log
    assert all('The chief is done' in run[name].log for name in ('again', 'server'))

  def test_the_steps_of_both_count(self, run):
    own, of_other = (_steps_done(run[name].log) for name in ('chief', 'again'))
    assert own > 0 and of_other > 0
    last = run['machines'].steps_saved()[-1]
    assert last > own
    # Without those of the killed one, and a few that came after the last was saved.
    assert own + of_other < last + 20

  def test_the_others_go_on_without_a_killed_worker(self, run):
    before, after = run['alone']
    assert after > before

  def test_loss_falls(self, run):
    losses = [loss for _, loss in run['chief'].losses()]
    assert losses[-1] < losses[0] - 0.01

  def test_only_the_chief_writes(self, run):
    assert 'Saved' in run['chief'].log
    assert 'Saved' not in run['killed'].log + run['again'].log + run['server'].log
    folder = run['machines'].base / 'train'
    checkpoint = Checkpoint(find_newest(folder))
    checkpoint.verify()
    assert len(list(folder.glob('events.*'))) == 1

  def test_a_training_that_is_done_ends_its_servers(self, run):
    machines = run['machines']
    started = [machines.server(0), machines.worker(0, '--number_of_steps=1')]
    outcome = run_in_process(launch.run, *machines.worker_flags(1, '--number_of_steps=1'))
    assert [outcome.status, *(machine.end() for machine in started)] == [0, 0, 0]
    assert all('Nothing to do' in log for log in (outcome.stderr, started[1].log))

  def test_a_worker_that_missed_the_end_ends(self, run, make_machines):
    """While it waits for servers, which are not there any more."""
    machines = make_machines('--number_of_steps=1')
    worker = machines.worker(1)
    worker.wait_for('Waiting for parameter servers')
    shutil.copytree(run['machines'].base / 'train', machines.base / 'train')
    assert worker.end() == 0
    assert 'The chief is done' in worker.log


def test_a_chief_that_is_stopped_early_ends_its_servers(make_machines):
  machines = make_machines()
  server = machines.server(0)
  server.wait_for('listens on')
  chief = machines.worker(0)
  chief.wait_for('Training starts')
  chief.process.send_signal(signal.SIGTERM)
  assert (chief.end(), server.end()) == (0, 0)
  assert 'Stopped by SIGTERM' in chief.log and 'step 1: ' not in chief.log


def test_synchronous(make_machines):
  machines = make_machines('--number_of_steps=12', '--sync_replicas', '--random_seed=3', servers=2)
  servers = [machines.server(0), machines.from_environment('ps', 1)]
  workers = [machines.worker(0), machines.worker(1)]
  assert [machine.end() for machine in (*workers, *servers)] == [0] * 4
  # A step is of one batch of each.
  assert [_steps_done(worker.log) for worker in workers] == [12, 12]
  assert machines.steps_saved()[-1] == 12
  # With the same seed, they have different crops.
  first = [worker.losses()[0] for worker in workers]
  assert first[0][0] == first[1][0] and first[0][1] != first[1][1]


def test_a_signal_ends_who_waits(make_machines):
  machines = make_machines()
  worker = machines.worker(1)
  worker.wait_for('Waiting for parameter servers')
  worker.process.send_signal(signal.SIGTERM)
  assert worker.end() == 0
  assert 'Stopped by SIGTERM' in worker.log


def test_taken_port(make_machines):
  machines = make_machines()
  server = machines.server(0)
  server.wait_for('listens on')
  error = run_in_process(launch.run, *machines.server_flags(0)).error
  assert re.match(rf'isl-launch: port \d+ of {machines.ps_hosts[0]} cannot be listened on', error)
  server.process.send_signal(signal.SIGINT)
  assert server.end() == 130


@pytest.mark.soak
def test_lost_servers_and_chiefs(make_machines):
  """kill -9 of the parameter server, then of the chief: each time the newest checkpoint goes on."""
  machines = make_machines('--save_interval_secs=2')
  server, chief, other = machines.server(0), machines.worker(0), machines.worker(1)
  chief.wait_for('Saved', count=3)
  other.wait_for(r'step \d+: ')
  server.kill()
  saved = machines.steps_saved()[-1]
  server = machines.server(0)
  assert int(chief.wait_for(r'Resuming from \S+, step (\d+)')[1]) >= saved
  chief.wait_for('Saved', count=chief.log.count('Saved') + 2)
  other.wait_for(r'step \d+: ', count=len(other.losses()) + 2)
  chief.kill()
  saved = machines.steps_saved()[-1]
  # The others go on without it.
  other.wait_for(r'step \d+: ', count=len(other.losses()) + 2)
  chief = machines.worker(0)
  assert int(chief.wait_for(r'Resuming from \S+, step (\d+)')[1]) >= saved
  chief.wait_for('Saved', count=2)
  chief.process.send_signal(signal.SIGTERM)
  assert [machine.end() for machine in (chief, other, server)] == [0, 0, 0]
  assert machines.steps_saved()[-1] > saved
  Checkpoint(find_newest(machines.base / 'train')).verify()


def _ignore_sigterm():
  signal.signal(signal.SIGTERM, signal.SIG_IGN)


@pytest.mark.soak
def test_a_signal_to_all(make_machines):
  """A batch system sends it at the time limit: a server that ignores it outlasts the chief."""
  machines = make_machines()
  server = machines.server(0, before=_ignore_sigterm)
  workers = [machines.worker(0), machines.worker(1)]
  for worker in workers:
    worker.wait_for(r'step \d+: ')
  for machine in (server, *workers):
    machine.process.send_signal(signal.SIGTERM)
  assert [machine.end() for machine in (server, *workers)] == [0] * 3
  assert all('Stopped by SIGTERM' in worker.log for worker in workers)
  assert 'The chief is done' in server.log
  assert machines.steps_saved()[-1] > 0


@pytest.mark.soak
def test_a_lost_worker_of_a_synchronous_training(make_machines):
  machines = make_machines('--number_of_steps=100', '--sync_replicas', '--save_interval_secs=2')
  server, chief, other = machines.server(0), machines.worker(0), machines.worker(1)
  other.wait_for(r'step \d+: ')
  chief.wait_for('Saved', count=2)
  other.kill()
  again = machines.worker(1)
  assert [machine.end() for machine in (chief, again, server)] == [0, 0, 0]
  assert machines.steps_saved()[-1] == 100


@pytest.mark.soak
def test_two_signals_end_who_waits_in_a_step(make_machines):
  machines = make_machines('--sync_replicas')
  server, chief, other = machines.server(0), machines.worker(0), machines.worker(1)
  chief.wait_for(r'step \d+: ')
  other.kill()
  chief.process.send_signal(signal.SIGTERM)
  chief.wait_for('a second signal stops in')
  # Or more, from those who have no patience.
  for _ in range(3):
    chief.process.send_signal(signal.SIGTERM)
  assert chief.end() == 128 + signal.SIGTERM
  server.process.send_signal(signal.SIGTERM)
  server.end()


@pytest.mark.soak
def test_one_of_two_lost_servers_ends_a_synchronous_training(make_machines):
  """The training ends with an error, since queues are closed; started again, it goes on."""
  machines = make_machines('--sync_replicas', '--save_interval_secs=2', servers=2)
  servers, workers = [machines.server(0), machines.server(1)], [machines.worker(0)]
  workers.append(machines.worker(1))
  workers[0].wait_for('Saved', count=2)
  servers[1].kill()
  servers[1] = machines.server(1)
  assert [worker.end() for worker in workers] == [1, 1]
  assert all('was broken off' in worker.log for worker in workers)
  for server in servers:
    server.kill()
  again = [machines.server(0), machines.server(1)]
  again += [machines.worker(i, '--number_of_steps=1000') for i in (0, 1)]
  again[2].wait_for(r'step \d+: ', count=2)
  again[2].process.send_signal(signal.SIGTERM)
  assert [machine.end() for machine in again] == [0] * 4
