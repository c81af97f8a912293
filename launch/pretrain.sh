#!/bin/bash
# bash launch/pretrain.sh CONFIG.yaml [--a.b value]: pretraining on all GPUs of 1..N nodes; the same line on each node, with its own NODE_RANK.
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=node0 bash launch/pretrain.sh configs/pretrain_multinode.yaml --data s3://BUCKET/shards --runs s3://BUCKET/runs
# Without a GPU: 2 ranks a node (NPROC overrides). A killed worker is restarted from the newest checkpoint, RESTARTS times.
# With --dry-run-world N it starts nothing, and prints once what each of N ranks would own.
# SIGUSR1 ends the run on all nodes after this step, with a checkpoint and status 0; SIGTERM too, but torchrun then waits 30 seconds at most.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# -gt 0 ] || { sed -n '2,6s/^# *//p' "$0" >&2; exit 2; }
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"
asks_for_plan='--dry[-_]run[-_]world[ =][^0]'
if [[ "$*" =~ $asks_for_plan ]]; then
  exec python -m fiag_dist.pretrain "$@" # under torchrun every rank would print it
fi
nodes=${NNODES:-1}
rank=${NODE_RANK:-0}
if [ "$nodes" -gt 1 ] && [ -z "${MASTER_ADDR:-}" ]; then
  echo "pretrain: NNODES=$nodes needs MASTER_ADDR, the name or address of node 0 as the other nodes see it" >&2
  exit 2
fi
towards=""
[ "$nodes" = 1 ] || [ "$rank" = 0 ] || towards=$MASTER_ADDR
here=$(python -m fiag_dist.dist.node ${towards:+"$towards"})
read -r gpus address <<<"$here"
nproc=${NPROC:-$((gpus > 0 ? gpus : 2))}
rendezvous=(--standalone)
if [ "$nodes" -gt 1 ]; then
  host=$([ "$rank" = 0 ] && echo 1 || echo 0)
  rendezvous=(--node-rank="$rank" --local-addr="${address:-$MASTER_ADDR}" --rdzv-backend=c10d --rdzv-id="${RDZV_ID:-fiag-dist}"
    --rdzv-conf="is_host=$host" --rdzv-endpoint="$MASTER_ADDR:${MASTER_PORT:-29500}")
fi
# torchrun knows nothing of SIGUSR1 and would die of it: it ignores the signal, which its workers, who answer it, get from here.
(
  trap '' USR1
  export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # else ranks that start again may read where the dead ones of the start before listened
  exec torchrun --nnodes="$nodes" --nproc-per-node="$nproc" --max-restarts="${RESTARTS:-3}" "${rendezvous[@]}" -m fiag_dist.pretrain "$@"
) &
agent=$!
trap 'interrupted=1; pkill -USR1 -P "$agent" || true' USR1
trap 'interrupted=1; kill -TERM "$agent" || true' TERM INT
interrupted=1
while [ "$interrupted" ]; do # a signal ends a wait early, with a status of its own
  interrupted=""
  wait "$agent" && status=0 || status=$?
done
exit "$status"
