#!/bin/bash
# bash launch/install.sh [EXTRAS]: makes .venv in the checkout and installs fiag_dist with its tested versions. EXTRAS: ingest (default), or ingest,dev.
# For GPUs: ingest,cuda. Run again it does nothing, in a second, until pyproject.toml, constraints.txt or EXTRAS change.
# FIAG_PYTHON names another interpreter (3.11 or 3.12).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extras=${1:-ingest}
stamp=.venv/.fiag-installed # line 1: hash of what was asked; 2: extras that are in; 3: where it was made

fail() {
  echo "install: $1" >&2
  exit 1
}

wanted=$(cat pyproject.toml launch/constraints.txt launch/install.sh | sha256sum | cut -d' ' -f1)
have=""
place=$(sed -n 3p "$stamp" 2>/dev/null || true)
if [ -n "$place" ] && [ "$place" != "$PWD" ]; then # its commands begin with the path of their Python
  echo "install: .venv was made in $place; making it anew"
  rm -rf .venv
fi
if [ -f "$stamp" ] && .venv/bin/python -c '' 2>/dev/null; then
  have=$(sed -n 2p "$stamp")
  missing=$(comm -23 <(tr ',' '\n' <<<"$extras" | sort -u) <(tr ',' '\n' <<<"$have" | sort -u))
  if [ "$(sed -n 1p "$stamp")" = "$wanted" ] && [ -z "$missing" ]; then
    echo "install: .venv is up to date ($have)"
    exit 0
  fi
fi
extras=$(tr ',' '\n' <<<"$extras,$have" | sed '/^$/d' | sort -u | paste -sd,)

command -v g++ >/dev/null ||
  fail "no g++ on PATH: DeepSpeed builds one small operator when training starts; run: apt-get install g++ (Debian, Ubuntu) or dnf install gcc-c++"

# A candidate must run and be 3.11 or 3.12: version managers leave launchers behind for interpreters that are not there.
python=""
for candidate in ${FIAG_PYTHON:-python3.11 python3.12 python3 python}; do
  if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' >/dev/null 2>&1; then
    python=$(command -v "$candidate")
    break
  fi
done
[ -n "$python" ] || fail "${FIAG_PYTHON:-PATH} has no Python 3.11 or 3.12; install one, or name it: FIAG_PYTHON=/path/to/python3.12 bash launch/install.sh"
[ -f "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ||
  fail "$python has no Python.h, which the operator that DeepSpeed builds includes; run: apt-get install python3-dev"

if ! .venv/bin/python -c '' 2>/dev/null; then
  echo "install: making .venv with $("$python" --version) ($python)"
  "$python" -m venv --clear .venv || fail "$python can't make a virtual environment; run: apt-get install python3-venv"
fi
rm -f "$stamp"
pip=(.venv/bin/python -m pip --disable-pip-version-check)
get=("${pip[@]}" install --no-compile -q) # all cores compile below; pip would take one, a minute long
"${get[@]}" "$(grep -x 'pip==.*' launch/constraints.txt)" 2>/dev/null || true # Python's own takes twice as long

# torch goes first and exactly: a range would let pip take a newer build for CUDA, several GB. The CPU build is taken where there is no NVIDIA GPU: from
# a folder of wheels that pip is set up with, if it has one, else from PyTorch's own index. With a GPU, or with the extra cuda (an image is built, and a
# cluster's login node installs, where there is none): the build of the usual index, also in the place of a CPU build that is there.
torch=$(grep -x 'torch==.*' launch/constraints.txt)
unfit="v.split('+')[0] != '${torch#*==}'"
cuda=0
if [[ ",$extras," == *,cuda,* ]]; then
  cuda=1
  unfit+=" or v.endswith('+cpu')"
fi
if ! .venv/bin/python -c "import importlib.metadata as m, sys; v = m.version('torch'); sys.exit($unfit)" 2>/dev/null; then
  echo "install: $torch"
  if [ "$cuda" = 1 ] || nvidia-smi -L >/dev/null 2>&1 || [ "$(uname -s)" != Linux ]; then
    "${pip[@]}" uninstall -q -y torch # pip takes a CPU build of the same version for what is asked
    "${get[@]}" "$torch"
  elif ! "${get[@]}" --no-index --no-deps "$torch" 2>/dev/null; then
    "${get[@]}" --extra-index-url https://download.pytorch.org/whl/cpu "$torch"
  fi
fi
echo "install: fiag_dist with [$extras]"
"${get[@]}" -c launch/constraints.txt -e ".[$extras]"
.venv/bin/python -m compileall -qq -j 0 -x '/tests?/' .venv/lib || true # some packages carry templates that are no Python

if [[ ",$extras," == *,ingest,* ]]; then
  .venv/bin/python -c 'import cv2, dlib, mediapipe' ||
    fail "mediapipe, dlib or OpenCV does not load (above); if a libGL, libEGL or libGLESv2 is missing, run: apt-get install libgl1 libegl1 libgles2"
fi
printf '%s\n' "$wanted" "$extras" "$PWD" >"$stamp"
echo "install: done, $(du -sh .venv | cut -f1) in .venv"
