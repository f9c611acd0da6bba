#!/usr/bin/env bash
# A run on four nodes of eight GPUs under SLURM, one process a GPU, as JAX wants it there.
#
#   sbatch slurm.sh
#
# /shared is a folder that all nodes see, with a virtual environment, the photographs, and room for the run.
#SBATCH --job-name=flax-vae
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Two minutes before the time is up every process is asked to save and end; USR1@120 does the same.
#SBATCH --signal=TERM@120

srun --kill-on-bad-exit=1 /shared/venv/bin/flax-vae-train --distributed --preset kl-f8 --dtype bfloat16 \
  --data /shared/photographs --workdir /shared/runs/kl-f8
status=$?

# 128 + SIGTERM: saved, and not finished.  The same job goes on where it was.
if [[ $status -eq 143 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
