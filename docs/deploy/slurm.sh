#!/bin/bash
# Train on several hosts under Slurm. Everything after the script's name is for `smallgpt train`:
#   sbatch docs/deploy/slurm.sh --data /shared/data/mine --out /shared/runs/mine
# Shortly before its time is over the job saves, stops and queues again; it then goes on in the same run.
#SBATCH --job-name=smallgpt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
set -u

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MEETING="$first:$((29400 + SLURM_JOB_ID % 1000))"
# Hosts come and go: each round of processes gets a store of its own, on the host that is the first one then.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# Seconds from a stop to the end of a checkpoint, after which torchrun kills.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=150

# The job's number is the same after a requeue, and finds the run again.
srun --no-kill --kill-on-bad-exit=0 bash -c '
  exec torchrun --nnodes "1:$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" --max-restarts 10 \
    --rdzv-backend c10d --rdzv-endpoint "$MEETING" --rdzv-id "slurm-$SLURM_JOB_ID" \
    --rdzv-conf "is_host=$((SLURM_NODEID == 0)),last_call_timeout=60" \
    -m smallgpt train "$@"' torchrun "$@" &
step=$!

stop() {
  trap '' TERM
  kill -TERM "$step" # srun passes it on to every torchrun, and that to its processes
  wait "$step"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}
trap stop TERM

wait "$step"
