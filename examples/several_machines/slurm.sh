#!/bin/bash
#SBATCH --job-name=gpt2
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --requeue
#SBATCH --signal=TERM@120
# SIGTERM comes 120 s before the time is up; all ranks then save and end, and a job that is
# submitted again goes on from there.
set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Else torch keeps addresses of ranks that are gone; see docs/several-machines.md.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}

srun torchrun \
    --nnodes="1:$SLURM_NNODES" --nproc-per-node="${RANKS_PER_NODE:-8}" --max-restarts=3 \
    --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$first:29400" \
    "$@"
