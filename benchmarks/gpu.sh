#!/usr/bin/env bash
# Everything that wants a GPU, in one command of at most eight minutes, the most valuable first.
#
#     benchmarks/gpu.sh --carry      once, where there is internet: the small packages that a bare machine lacks, as wheels
#     benchmarks/gpu.sh              on the machine with the GPU: results in $OUT (default runs/gpu)
#     benchmarks/gpu.sh --rehearse   the same on a CPU with small sizes: does every part run? ($OUT/parts.txt of the last
#                                    rehearsal is docs/results/gpu_rehearsal.txt)
#
# The machine has Python, jax, flax, optax, orbax, torch and scikit-image, and needs no internet. Every part has its own
# time limit and writes its own files, so that a cut leaves what came before (PARTS="card smoke" runs only those):
#   card       the card, its driver, what JAX and PyTorch see
#   parity     recordings of the PyTorch originals, TF32 off: how far JAX on this card is from them
#   smoke      train, resume, sample, dip, by the commands that a user types
#   train      a training step beside PyTorch eager, channels_last, compile and CUDA graphs (speed.jsonl, speed.md)
#   sampling   1000-step and DDIM sampling, batch 1 to 256, beside the same
#   dip        fits of one picture, and 64 fits in one program
#   tf32       the training rows again, TF32 allowed on both sides (tf32/)
#   large      sampling at batch 16 to 1024
#   digits     the README's first run, timed
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
if [ "${1:-}" = --carry ]; then
  mkdir -p wheels
  exec "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version "${FOR_PYTHON:-3.12}" \
    --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 --dest wheels tyro docstring-parser typeguard typing-extensions tqdm mlxtend \
    safetensors jaxtyping wadler-lindig beartype flatbuffers pytest pluggy iniconfig packaging pygments
fi
export OUT=${OUT:-runs/gpu} MPLBACKEND=Agg PYTHONUNBUFFERED=1
small=${1:-}
[ -z "$small" ] || [ "$small" = --rehearse ] || { echo "error: $small: known are --carry and --rehearse" >&2; exit 2; }
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
for wheel in wheels/*.whl; do # a wheel is a zip file: the machine's own packages stay as they are
  [ -e "$wheel" ] && [ -z "$small" ] && "$PYTHON" -m zipfile -e "$wheel" "$OUT/site"
done
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}:$OUT/site" XDG_CACHE_HOME="$OUT/cache"
export XLA_PYTHON_CLIENT_PREALLOCATE=false # PyTorch wants memory of the same card
if [ -n "$small" ]; then export JAX_PLATFORMS=cpu CUDA_VISIBLE_DEVICES= JAX_DISABLE_MOST_OPTIMIZATIONS=1; fi

part() { # NAME SECONDS COMMAND...: runs it, keeps what it prints in NAME.log
  local name=$1 limit=$2 began=$SECONDS code
  shift 2
  [ -z "${PARTS:-}" ] || [[ " $PARTS " == *" $name "* ]] || return 0
  [ -z "$small" ] || limit=$((20 * limit)) # the rehearsal asks whether, not how fast
  timeout --kill-after=10 "$limit" "$@" >"$OUT/$name.log" 2>&1
  code=$?
  case $code in 0) ;; 124 | 137) echo "  cut after $limit s" ;; *) tail -3 "$OUT/$name.log" | sed 's/^/  /' ;; esac
  echo "$name: status $code, $((SECONDS - began)) s of $limit" | tee -a "$OUT/parts.txt"
}

card() {
  nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total,clocks.max.sm,power.limit --format=csv || true
  "$PYTHON" - <<'PROGRAM'
import jax, torch
print("jax", jax.__version__, jax.devices(), jax.default_backend())
print("torch", torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")
PROGRAM
}

smoke() {
  set -e
  local run="$OUT/smoke" steps=(--steps 400 --save-every 200) tiny=() dip=(--num-steps 300)
  if [ -n "$small" ]; then
    steps=(--steps 8 --save-every 4 --chunk 4)
    tiny=(--network.width 8 --batch-size 8)
    dip=(--num-steps 4 --network conv)
  fi
  rm -rf "$run" "$run-pictures" "$run-dip"
  "$PYTHON" train.py unet "${tiny[@]}" "${steps[@]}" --sample-every 0 --workdir "$run"
  "$PYTHON" train.py --resume --workdir "$run" --steps "$((${steps[1]} * 3 / 2))"
  "$PYTHON" sample.py "$run" --count 16 --out "$run-pictures"
  "$PYTHON" - "$OUT/picture.png" <<'PROGRAM'
import sys, numpy as np
from PIL import Image
y, x = np.mgrid[:64, :64] / 64
clean = 0.5 + 0.3 * np.sin(9 * x) * np.cos(7 * y)
noise = np.random.default_rng(0).normal(0, 0.1, clean.shape)
Image.fromarray(np.uint8(255 * np.clip(clean + noise, 0, 1))).save(sys.argv[1])
PROGRAM
  "$PYTHON" train.py dip --image "$OUT/picture.png" "${dip[@]}" --workdir "$run-dip"
}

speed() { # FOLDER JOBS... : rows of the speed table
  local out="$OUT/$1" quick=()
  shift
  [ -n "$small" ] && quick=(--quick --rounds 1)
  "$PYTHON" benchmarks/speed.py "${quick[@]}" --out "$out" "$@"
}
export -f card smoke speed
export PYTHON small

timeout 60 "$PYTHON" - "$small" >"$OUT/parts.txt" <<'PROGRAM' || echo "# nobody knows which machine" >"$OUT/parts.txt"
import datetime, platform, sys
import jax, torch
kind = "rehearsal on a CPU, small sizes: no figure of it means anything" if sys.argv[1] else jax.devices()[0].device_kind
print(f"# {kind}; {datetime.date.today()}, Python {platform.python_version()}, jax {jax.__version__}, "
      f"torch {torch.__version__}")
PROGRAM
head -1 "$OUT/parts.txt"
part card 20 bash -c card
part parity 80 env JAX_DEFAULT_MATMUL_PRECISION=highest NVIDIA_TF32_OVERRIDE=0 "$PYTHON" -m pytest -q \
  -p no:cacheprovider -p no:xdist -o addopts=--import-mode=importlib \
  ${small:+-k 004_contextunet_narrow} tests/parity/test_torch_parity.py
part smoke 80 bash -c smoke
part train 70 bash -c 'speed speed --jobs 1'
part sampling 60 bash -c 'speed speed --jobs 2'
part dip 60 bash -c 'speed speed --jobs 3 4'
part tf32 35 bash -c 'speed tf32 --jobs 1 --tf32 --no-compile'
part large 25 bash -c 'speed speed --jobs 7 --rows ancestral'
[ -n "$small" ] || part digits 40 "$PYTHON" train.py --workdir "$OUT/digits" --sample-every 0
cat "$OUT/parts.txt"
! grep -v "^#" "$OUT/parts.txt" | grep -qv "status 0,"
