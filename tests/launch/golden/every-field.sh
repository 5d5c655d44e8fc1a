#!/bin/bash

# Parameters
#SBATCH --account=a
#SBATCH --array=0-2%2
#SBATCH --chdir=/shared/runs/quickstart
#SBATCH --comment='egobench quickstart: allocations 12 to 14'
#SBATCH --constraint='x&y'
#SBATCH --cpus-per-task=6
#SBATCH --dependency=afterany:17:18_3
#SBATCH --exclude=n1,n2
#SBATCH --exclusive
#SBATCH --gres=gpu:a100:2
#SBATCH --job-name=egobench-quickstart-12-beef01
#SBATCH --mail-type=FAIL,TIME_LIMIT
#SBATCH --mail-user=me@example.org
#SBATCH --mem=15G
#SBATCH --nice=20
#SBATCH --no-requeue
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/quickstart/slurm/%A_%a_log.out
#SBATCH --partition=p
#SBATCH --qos=q
#SBATCH --signal=USR2@90
#SBATCH --time=240
#SBATCH --wckey=w

# setup
ALLOCATION=/shared/runs/quickstart/allocations/"$((12 + SLURM_ARRAY_TASK_ID))"/allocation.json
ulimit -c 0
command -v module >/dev/null || . /etc/profile
module load cuda/12.8 gcc
export A='b c'
source /shared/venv/bin/activate
export TMPDIR="$SLURM_TMPDIR/x"
srun --mpi=none --ntasks-per-node=1 mkdir -p "$TMPDIR"
export PYTHONPATH=/shared/runs/quickstart/code/0123abcd"${PYTHONPATH:+:$PYTHONPATH}"

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --mpi=none --kill-on-bad-exit=1 --cpu-bind=none --ntasks-per-node=1 --export=ALL --cpus-per-task=6 --label '/opt/py thon' -P -u -m egobench.worker --slurm "$ALLOCATION"
