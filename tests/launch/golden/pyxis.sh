#!/bin/bash

# Parameters
#SBATCH --array=0-2%2
#SBATCH --chdir=/shared/runs/quickstart
#SBATCH --comment='egobench quickstart: allocations 12 to 14'
#SBATCH --cpus-per-task=64
#SBATCH --dependency=afterany:17:18_3
#SBATCH --gpus-per-node=4
#SBATCH --job-name=egobench-quickstart-12-beef01
#SBATCH --mem=450G
#SBATCH --nice=20
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/quickstart/slurm/%A_%a_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=240

# setup
ALLOCATION=/shared/runs/quickstart/allocations/"$((12 + SLURM_ARRAY_TASK_ID))"/allocation.json
ulimit -c 0
export PYTHONPATH=/shared/runs/quickstart/code/0123abcd"${PYTHONPATH:+:$PYTHONPATH}"

# command
export SUBMITIT_EXECUTOR=slurm
AGAIN="${ALLOCATION%/*}/again"
rm -f "$AGAIN"
code=0
srun --unbuffered --mpi=none --kill-on-bad-exit=1 --cpu-bind=none --ntasks-per-node=1 --export=ALL --cpus-per-task=64 --container-image=/shared/images/egobench.sqsh --container-mounts=/shared/runs:/shared/runs,/shared/bench:/shared/bench --no-container-mount-home env PYTHONPATH="$PYTHONPATH" /usr/bin/python3 -P -u -m egobench.worker --slurm "$ALLOCATION" || code=$?
if [ "$code" != 0 ] && [ -e "$AGAIN" ]; then code=75; fi
if [ "$code" = 75 ]; then
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" || :
fi
exit "$code"
