#!/bin/bash
# Trains on five nodes of a SLURM cluster: a parameter server and four workers.
#
#     BASE=/scratch/run IMAGES=/scratch/images sbatch slurm.sh --number_of_steps 100000
#
# BASE is the folder to write to, IMAGES that of images to train on; all nodes see both. Further flags
# of isl-launch follow on the command line. isl-launch has to be on PATH: activate its environment
# first, which sbatch passes on. docs/machines.md says what happens at the time limit, and how several
# jobs follow each other.
#
#SBATCH --job-name=isl
#SBATCH --nodes=5
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=16G
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append

: "${BASE:?is the folder to write to, which all nodes see}"
: "${IMAGES:?is the folder of images to train on, which all nodes see}"

# The first task is the parameter server, the second the chief. Ports count from FIRST_PORT, so that
# several tasks may share a node.
port=${FIRST_PORT:-2222}
addresses=()
for host in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
  for ((i = 0; i < SLURM_NTASKS_PER_NODE; i++)); do
    addresses+=("$host:$((port + ${#addresses[@]}))")
  done
done
export PS_HOSTS=${addresses[0]}
WORKER_HOSTS=$(IFS=,; echo "${addresses[*]:1}")
export WORKER_HOSTS BASE IMAGES
export TF_NUM_INTRAOP_THREADS=$SLURM_CPUS_PER_TASK

# Tasks are numbered host by host, as the addresses are: --distribution=block.
srun --ntasks="${#addresses[@]}" --cpus-per-task="$SLURM_CPUS_PER_TASK" --distribution=block \
  --kill-on-bad-exit=1 --label bash -c '
    role=(--mode TRAIN --task $((SLURM_PROCID - 1)))
    if ((SLURM_PROCID == 0)); then
      role=(--mode PS --task 0)
      # It ends with the chief, who has to save first.
      trap "" TERM
    fi
    exec isl-launch "${role[@]}" --ps_hosts "$PS_HOSTS" --worker_hosts "$WORKER_HOSTS" \
      --base_directory "$BASE" --read_pngs --dataset_train_directory "$IMAGES" "$@"
  ' isl "$@"
