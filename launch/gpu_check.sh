#!/bin/bash
# bash launch/gpu_check.sh [WHEELS_FOLDER] [ARGUMENTS]: compares, times and trains on one NVIDIA GPU in at most nine minutes, without internet; writes one JSON.
# bash launch/gpu_check.sh --wheels WHEELS_FOLDER [PACKAGE ...]: run first where there is internet; gets what machines with PyTorch lack, and these packages.
# It needs python3 with torch for CUDA (FIAG_PYTHON names another) and nvcc. ARGUMENTS are those of benchmarks/gpu_check.py: --out FILE, --quick.
# FIAG_GPU_KEEP (default .gpu_check) keeps the environment and gsplat's compiled code for the next time. tiny-cuda-nn is tried when WHEELS_FOLDER
# holds a wheel of it or its source as tiny-cuda-nn/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
SECONDS=0
limit_s=540
lacking=(gsplat av tyro typeguard docstring-parser webdataset braceexpand)
# module:package of all that the check imports; torch, and what comes with it, is there
needs=(numpy:numpy scipy:scipy llvmlite:llvmlite numba:numba cv2:opencv-python-headless yaml:pyyaml safetensors:safetensors
  wadler_lindig:wadler-lindig jaxtyping:jaxtyping mdurl:mdurl markdown_it:markdown-it-py pygments:pygments rich:rich
  typeguard:typeguard docstring_parser:docstring-parser tyro:tyro braceexpand:braceexpand webdataset:webdataset av:av)

fail() {
  echo "gpu_check: $1" >&2
  exit 2
}

outer=${FIAG_PYTHON:-python3}
if [ "${1:-}" = --wheels ]; then
  [ $# -ge 2 ] || fail "--wheels: which folder? bash launch/gpu_check.sh --wheels WHEELS_FOLDER"
  folder=$2
  shift 2
  mkdir -p "$folder"
  "$outer" -m pip download -q --no-deps --only-binary=:all: --implementation cp --python-version "${FIAG_WHEELS_FOR:-3.12}" \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    -c launch/constraints.txt -d "$folder" "${lacking[@]}" "$@"
  echo "gpu_check: $(du -sh "$folder" | cut -f1) in $folder; take it along and run: bash launch/gpu_check.sh $folder"
  exit 0
fi

wheels=""
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
  wheels=$(cd "$1" 2>/dev/null && pwd) || fail "$1 is no folder; give the folder that --wheels filled"
  shift
fi
on_cpu=no
[[ " $* " != *" --device cpu "* ]] || on_cpu=yes
"$outer" -c 'import torch' 2>/dev/null || fail "$outer can't import torch; name a Python that can: FIAG_PYTHON=/path/to/python3"
if [ $on_cpu = no ]; then
  device=$("$outer" -c 'import torch; print(torch.__version__, "%d.%d" % torch.cuda.get_device_capability())' 2>/dev/null) ||
    fail "torch of $outer sees no CUDA device; check nvidia-smi, or try the check itself: bash launch/gpu_check.sh --device cpu --quick"
  read -r torch capability <<<"$device"
  needs+=(ninja:ninja packaging:packaging setuptools:setuptools gsplat:gsplat)
fi

keep=${FIAG_GPU_KEEP:-.gpu_check}
mkdir -p "$keep"
keep=$(cd "$keep" && pwd)
python=$keep/venv/bin/python
if ! "$python" -c 'import torch' 2>/dev/null; then
  # An environment made from within another one does not see that one's packages: they are named to it.
  "$outer" -m venv --clear --without-pip --system-site-packages "$keep/venv"
  "$outer" -c 'import sys; print(*(p for p in sys.path if p.endswith("-packages")), sep="\n")' \
    >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth"
fi

missing() {
  "$python" -c 'import importlib.util as u, sys; print(*(n.split(":")[1] for n in sys.argv[1:] if u.find_spec(n.split(":")[0]) is None))' "${needs[@]}"
}
pip=("$python" -m pip --disable-pip-version-check install -q --no-index --no-deps)
read -ra absent <<<"$(missing)"
if [ ${#absent[@]} -gt 0 ]; then
  get="where there is internet, run: bash launch/gpu_check.sh --wheels WHEELS_FOLDER ${absent[*]}"
  [ -n "$wheels" ] || fail "missing here: ${absent[*]}; $get, and give the folder"
  echo "gpu_check: installing ${absent[*]}"
  "${pip[@]}" --find-links "$wheels" "${absent[@]}" || fail "not all of these are in $wheels: ${absent[*]}; $get"
fi

if [ $on_cpu = no ]; then
  MAX_JOBS=$(nproc)
  export MAX_JOBS TORCH_CUDA_ARCH_LIST=$capability TORCH_EXTENSIONS_DIR=$keep/extensions/torch-$torch-sm-$capability
  mkdir -p "$TORCH_EXTENSIONS_DIR"
  source=$(compgen -G "$wheels/tinycudann-*.whl" | head -n 1 || true)
  [ -n "$source" ] || [ ! -d "$wheels/tiny-cuda-nn/bindings/torch" ] || source=$wheels/tiny-cuda-nn/bindings/torch
  if "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("tinycudann") is None)'; then
    echo "gpu_check: tiny-cuda-nn is installed"
  elif [ -z "$wheels" ] || [ -z "$source" ]; then
    echo "gpu_check: tiny-cuda-nn is neither installed nor in the folder of wheels; the torch encoder does the same"
  elif ! TCNN_CUDA_ARCHITECTURES=${capability/./} timeout 200 "${pip[@]}" --no-build-isolation "$source" >"$keep/tinycudann.log" 2>&1; then
    echo "gpu_check: tiny-cuda-nn does not build here ($keep/tinycudann.log); the torch encoder does the same"
  fi
fi

out=benchmarks/results/$(date +%F)_gpu_check.json
[[ " $* " != *" --out"* ]] || out=""
export PYTHONPATH=$PWD OMP_WAIT_POLICY=PASSIVE
exec timeout -k 10 $((limit_s - SECONDS)) "$python" benchmarks/gpu_check.py ${out:+--out "$out"} --budget-s $((limit_s - 20 - SECONDS)) "$@"
