"""Labels a plate's fields of view on 32 jobs of a SLURM cluster, by way of dask-jobqueue.

    pip install dask-jobqueue
    python dask_slurm.py

It runs on a machine that the jobs can reach, and prints the job that it submits 32 times. Edit the
numbers, the folders and the flags. The images, the checkpoint and the folder to write to are on a
file system that all jobs see.
"""

from __future__ import annotations

import subprocess

from dask_jobqueue import SLURMCluster

CORES = 16
JOBS = 32


def make_cluster() -> SLURMCluster:
  """Starts a scheduler in this process, without jobs yet."""
  return SLURMCluster(
    cores=1,  # A field of view at a time; TensorFlow takes the job's cores.
    processes=1,
    job_cpu=CORES,
    memory='8GB',
    walltime='04:00:00',
    local_directory='/tmp',
    job_script_prologue=[f'export TF_NUM_INTRAOP_THREADS={CORES}'],
  )


def command(scheduler: str) -> list[str]:
  """Makes the command that labels the plate.

  Args:
    scheduler: address of the scheduler.
  """
  return [
    'isl-launch',
    '--mode=EVAL_EVAL',
    '--metric=INFER_FULL',
    f'--dask_scheduler={scheduler}',
    '--restore_directory=checkpoints',
    '--read_pngs',
    '--dataset_eval_directory=/scratch/plate',
    '--base_directory=/scratch/predictions',
  ]


if __name__ == '__main__':
  with make_cluster() as cluster:
    print(cluster.job_script())
    cluster.scale(jobs=JOBS)  # Or cluster.adapt(maximum_jobs=JOBS).
    subprocess.run(command(cluster.scheduler_address), check=True)
