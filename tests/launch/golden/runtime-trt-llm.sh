# array 2: 1 node x 1 GPUs, 30 min 00 s, set up for tensorrt_llm; 1 tasks, 1 at once; 2 trials, expected 10 min 00 s a task at most
#!/bin/bash

# Parameters
#SBATCH --array=0-0%1
#SBATCH --chdir=/shared/sweeps/runs/deployed
#SBATCH --comment='egobench deployed: allocation 2'
#SBATCH --dependency='afterany:<array 1>'
#SBATCH --gpus-per-node=1
#SBATCH --job-name=egobench-deployed-2-000000
#SBATCH --nice=10
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/shared/sweeps/runs/deployed/slurm/%A_%a_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=30

# setup
ALLOCATION=/shared/sweeps/runs/deployed/allocations/"$((2 + SLURM_ARRAY_TASK_ID))"/allocation.json
ulimit -c 0
command -v module >/dev/null || . /etc/profile
module load cuda/12.8
export A=site
export B=runtime
ulimit -n 8192
export TRTLLM_LOG=warning
export PYTHONPATH=/shared/sweeps/runs/deployed/code/CODE"${PYTHONPATH:+:$PYTHONPATH}"

# command
export SUBMITIT_EXECUTOR=slurm
AGAIN="${ALLOCATION%/*}/again"
rm -f "$AGAIN"
code=0
srun --unbuffered --mpi=none --kill-on-bad-exit=1 --cpu-bind=none --ntasks-per-node=1 --export=ALL '--container-image=nvcr.io#nvidia/tensorrt-llm/release:1.0.0' --container-mounts=/shared/sweeps/runs:/shared/sweeps/runs,/shared/sweeps:/shared/sweeps env PYTHONPATH="$PYTHONPATH" /usr/bin/python3 -P -u -m egobench.worker --slurm "$ALLOCATION" || code=$?
if [ "$code" != 0 ] && [ -e "$AGAIN" ]; then code=75; fi
if [ "$code" = 75 ]; then
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" || :
fi
exit "$code"

