r"""The program: reads the command line and runs what it asks for.

    isl-launch --mode EVAL_EVAL --metric INFER_FULL --restore_directory CHECKPOINTS --read_pngs \
      --dataset_eval_directory IMAGES --base_directory OUT

This is the same as `python -m isl.launch FLAGS` and `bazel run isl:launch -- FLAGS`. The flags
(isl/program_flags.py) become an Experiment (isl/command_line.py), which the modes read.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from absl import app, flags, logging

from isl.command_line import make_experiment
from isl.core.experiment import Experiment, Metric, Mode
from isl.program_flags import FLAGS
from isl.system import quiet

# The exit status if some of several fields of view could not be labeled.
_SOME_FAILED = 3


def _run_mode(experiment: Experiment) -> list[str]:
  """Runs the mode that an experiment asks for.

  Returns:
    A line on each field of view that failed.
  """
  # TensorFlow then leaves out Keras, which nothing here uses: a quarter of its time to load.
  os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')
  # A fifth of what remains is spent on looking for garbage among what is being loaded.
  gc.disable()
  with quiet.quiet_stderr():
    # Not at the top: TensorFlow takes seconds, which a misspelt flag should not have to wait for.
    import tensorflow.compat.v1 as tf

    from isl import dry_run
    from isl.checkpoints.checkpoint import Checkpoint, find_newest
    from isl.evaluation import evaluate
    from isl.export import export
    from isl.inference import infer
    from isl.models import tensorcheck
    from isl.training import cluster_session, train
  gc.enable()

  # TensorFlow warns of functions that its own Saver uses, over several lines.
  tf.logging.set_verbosity(tf.logging.ERROR)
  tensorcheck.enable(FLAGS.tensorcheck_enable_checks)
  if experiment.mode is Mode.DESCRIBE:
    checkpoint = Checkpoint(find_newest(experiment.checkpoint_directory))
    description = checkpoint.describe()
    checkpoint.verify()
    print(f'checkpoint: {checkpoint.prefix}\n{description}')
  elif experiment.dry_run:
    return dry_run.run(experiment)
  elif experiment.cluster is not None and experiment.cluster.is_ps:
    cluster_session.serve(experiment.cluster)
  elif experiment.mode is Mode.TRAIN:
    train.run(experiment)
  elif experiment.mode is Mode.EXPORT:
    export.run(experiment)
  elif experiment.metric is Metric.INFER_FULL:
    return infer.run(experiment)
  else:
    evaluate.run(experiment)
  return []


def main(argv: Sequence[str]) -> None:
  """Runs the mode that the flags name; an error that a user can mend is told in one line."""
  if not FLAGS['verbosity'].present:
    logging.set_verbosity(logging.INFO)
  # TensorFlow's log lines on machines without a GPU would hide what a user has to read.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  try:
    if len(argv) > 1:
      raise ValueError(f'{argv[1]!r} is not a flag; see --helpfull')
    failed = _run_mode(make_experiment())
  except (ValueError, OSError) as e:
    logging.debug('Where it happened:', exc_info=True)
    _exit(e, 1)
  except KeyboardInterrupt:
    _exit('stopped', 130)
  for line in failed:
    print(f'isl-launch: {line}', file=sys.stderr)
  if failed:
    sys.exit(_SOME_FAILED)


def _exit(message: object, status: int) -> NoReturn:
  print(f'isl-launch: {" ".join(str(message).split())}', file=sys.stderr)
  sys.exit(status)


def _parse(argv: Sequence[str]) -> list[str]:
  try:
    return FLAGS(argv)
  except flags.Error as e:
    _exit(e, 1)
  except UnicodeDecodeError as e:
    _exit(f'the --flagfile is not text: {e}', 1)


def run() -> None:
  """Runs the program, as the console script isl-launch."""
  # Bazel starts the program in another folder; relative paths are meant from the user's.
  if here := os.environ.get('BUILD_WORKING_DIRECTORY'):
    os.chdir(here)
  app.run(main, flags_parser=_parse)


if __name__ == '__main__':
  run()
