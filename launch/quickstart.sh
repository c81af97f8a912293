#!/bin/bash
# bash launch/quickstart.sh [FOLDER_OF_CLIPS [--consent "who, when, what for"]]: the whole way on this machine's CPU, also where there is a GPU: install,
# pack, pretrain on 2 ranks, adapt with Ray Tune, render, evaluate. What follows the folder goes to `fiag-dist pack`. Without clips: on procedural demo
# heads. Run again it picks up what is there; delete the folder quickstart/ to start over.
set -euo pipefail
export CUDA_VISIBLE_DEVICES= # two ranks and no gsplat: launch/README.md says how to use GPUs
clips=""
if [ $# -gt 0 ]; then
  clips=$(cd "$1" 2>/dev/null && pwd) || { echo "quickstart: $1 is no folder; give a folder of video clips, or nothing for demo heads" >&2; exit 2; }
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."

begun=$SECONDS
step() { printf '\n== %s (at %d min %02d s)\n' "$1" $(((SECONDS - begun) / 60)) $(((SECONDS - begun) % 60)); }

step "1 of 6: installation in .venv"
bash launch/install.sh ingest
export PATH="$PWD/.venv/bin:$PATH"

if [ -n "$clips" ]; then
  work=quickstart/clips
  pretrain=configs/pretrain_cpu.yaml
  adapt=configs/adapt_fast.yaml
  mkdir -p "$work"
  if [ -f "$work/shards/manifest.json" ] && [ "$(cat "$work/clips.txt")" != "$clips" ]; then
    echo "quickstart: $work is of the clips in $(cat "$work/clips.txt"), and a pretraining takes in nobody new; move or delete $work first" >&2
    exit 2
  fi
  echo "$clips" >"$work/clips.txt"
  step "2 of 6: clips to shards"
  fiag-dist weights fetch
  fiag-dist pack "$clips" --out "$work/shards" --max-seconds 10 "${@:2}"
else
  work=quickstart/demo
  pretrain=configs/quickstart_demo_pretrain.yaml
  adapt=configs/quickstart_demo_adapt.yaml
  mkdir -p "$work"
  step "2 of 6: demo heads, straight to shards"
  python shards/make_demo.py --out "$work/shards" --identities 6 --wav "$work/speech.wav"
fi

# The first and the last by name are kept for adaptation, as is everybody who comes later; the others teach the shared field, which takes in nobody new.
mapfile -t people < <(python -c 'import json, sys; print(*sorted(i["name"] for i in json.load(open(sys.argv[1]))["identities"]), sep="\n")' "$work/shards/manifest.json")
if [ "${#people[@]}" -lt 4 ]; then
  echo "quickstart: ${#people[@]} usable clips; pretraining on 2 ranks and 2 people to adapt to need 4 or more" >&2
  exit 2
fi
[ -f "$work/teachers.txt" ] || printf '%s\n' "${people[@]:1:${#people[@]}-2}" >"$work/teachers.txt"
mapfile -t teachers <"$work/teachers.txt"
mapfile -t newcomers < <(printf '%s\n' "${people[@]}" | grep -vxFf "$work/teachers.txt")

step "3 of 6: pretraining on ${#teachers[@]} people, 2 ranks"
torchrun --standalone --nproc-per-node=2 -m fiag_dist.pretrain "$pretrain" \
  --data "$work/shards" --identities "${teachers[@]}" --runs "$work/runs" --name pretrain

step "4 of 6: adaptation to ${newcomers[*]}, in parallel"
fiag-dist adapt "$work/shards" --from "$work/runs/pretrain" --out "$work/identities" --config "$adapt" --scratch --names "${newcomers[@]}"

step "5 of 6: a voice to video"
# The voice is one that this head has never been trained on: of the demo, or of another person.
[ -z "$clips" ] || tar -xOf "$work/shards/${teachers[0]}/meta.tar" --wildcards '*wav' >"$work/speech.wav"
fiag-dist render "$work/identities/${newcomers[0]}" --audio "$work/speech.wav" --out "$work/talking_head.mp4"

step "6 of 6: evaluation on frames that were never trained on"
fiag-dist evaluate --fast "$work/runs/pretrain" "$work/identities"

step "done"
cat <<END
video          $work/talking_head.mp4 (${newcomers[0]} says what is in $work/speech.wav)
identities     $work/identities/NAME: preview.mp4, metrics.json
metrics table  $work/identities/evaluation.md (and results.csv beside it), of the people in pretraining: $work/runs/pretrain/identities/evaluation.md
pictures       strip.png in each identity's folder: truth above render, frames that were never trained on
more metrics   .venv/bin/fiag-dist evaluate $work/identities: lips, eyes, likeness, another person's voice (half a minute a person)
TensorBoard    .venv/bin/tensorboard --logdir $work
END
