#!/bin/bash
# One Slurm job: a Ray cluster over its nodes, and a run on it. The words after the script are those of `rlkit train`:
#
#     sbatch --nodes=4 examples/cluster/slurm.sh algorithms/grpo steps=500 cluster='{engines: 16, learners: 16}'
#
# The current folder, `out` and RLKIT_ENV (a virtual environment with rlkit) must be seen by all nodes. Before the job's time is over the
# run writes a checkpoint; then the job is queued again, and continues from it.
#SBATCH --job-name=rlkit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

PATH="${RLKIT_ENV:-.venv}/bin:$PATH"
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs may share a node
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}'):$port

# Whoever reaches an open Ray may run programs as you: this one asks for a token that only you can read.
RAY_AUTH_TOKEN_PATH=$(umask 077 && mktemp "$PWD/.ray-token-XXXXXX")
export PATH RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH RAY_USAGE_STATS_ENABLED=0
od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH"
trap 'kill $(jobs -p) 2>/dev/null; wait; rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT

srun --nodes=1 --ntasks=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" --nodelist="$head" \
    ray start --head --node-ip-address="${address%:*}" --port="$port" --num-cpus="$SLURM_CPUS_ON_NODE" --include-dashboard=false --block &
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    timeout 600 bash -c "until (echo >/dev/tcp/${address/://}) 2>/dev/null; do sleep 1; done"
    srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" --exclude="$head" \
        ray start --address="$address" --num-cpus="$SLURM_CPUS_ON_NODE" --block &
fi
timeout 600 python - "$address" "$SLURM_JOB_NUM_NODES" <<'PYTHON'
import sys, time
import ray

while True:
    try:
        ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
        break
    except ConnectionError:
        time.sleep(1)
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]):
    time.sleep(1)
PYTHON

if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
    set -- "$@" --resume
fi
code=0
rlkit train "$@" "cluster.address=$address" || code=$?
if [ "$code" -eq 3 ]; then # the time limit was near
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
