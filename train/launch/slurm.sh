#!/usr/bin/env bash
# A run on four nodes with eight GPUs each under SLURM, one process per GPU, as JAX expects.
#
#   sbatch slurm.sh
#
# /shared is a folder on all nodes, with a virtual environment, the images, and space for the run.
#SBATCH --job-name=flax-vae
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Two minutes before the time limit, every process receives SIGTERM, saves and ends; USR1@120 works too.
#SBATCH --signal=TERM@120

srun --kill-on-bad-exit=1 /shared/venv/bin/flax-vae-train --distributed --preset kl-f8 --dtype bfloat16 \
  --data /shared/photographs --workdir /shared/runs/kl-f8
status=$?

# 128 + SIGTERM: the run was saved before its end.  The requeued job resumes it.
if [[ $status -eq 143 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
