#!/bin/bash
# bash launch/test.sh [PYTEST ARGUMENTS]: installs what is missing, then lint, types and all fast tests, side by side (-n 0: one after another).
# FIAG_CLIPS=FOLDER adds the tests on real clips.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/install.sh ingest,dev
export PATH="$PWD/.venv/bin:$PATH"

step() { echo "== $1 ($((SECONDS / 60)) min $((SECONDS % 60)) s)"; }
step "weights of the pretrained extractors"
fiag-dist weights fetch || echo "test: not all weights could be had; tests that need them are skipped with the reason"
failed=()
fail() {
  failed+=("$1")
  echo "test: failed: $1 (the tests run all the same; the exit status will be 1)" >&2
}
step "ruff"
ruff check . || fail "ruff check"
ruff format --check . || fail "ruff format --check"
step "pyrefly"
pyrefly check || fail "pyrefly"
step "pytest"
cores=$(nproc)
# The long files, of real ranks and servers, come first by name; files of few tests are not left for the end, where other cores would wait for them.
pytest -m "not slow and not gpu" -n $((cores < 4 ? cores : 4)) --dist loadfile --no-loadscope-reorder "$@" || failed+=("pytest")
for check in ${failed[@]+"${failed[@]}"}; do
  echo "test: failed: $check" >&2
done
[ ${#failed[@]} = 0 ]
