#!/usr/bin/env bash
# One process of a run: `python main.py` with the options and the compile cache of its hardware. All launchers end here.
#
#   HARDWARE=gpu GPUS=8 COORDINATOR=node0:8476 NUM_PROCESSES=4 PROCESS_ID=2 launch/worker.sh --config=... --workdir=...
#   launch/worker.sh --dry-run --config=configs/demo.py --workdir=runs/nas
#
# From the environment, all optional:
#   HARDWARE       cpu, gpu, v5e, v5p or v6e; default cpu
#   COORDINATOR    HOST:PORT of process 0; the port after it must be free too. Unset: one process, or a TPU slice on GKE
#   NUM_PROCESSES  how many
#   PROCESS_ID     which one; default: what SLURM, Kubernetes or GKE's TPU slice say
#   GPUS           GPUs of this machine, all for this process
#   START_TIMEOUT  seconds until all processes must be there
#   COMPILE_CACHE  folder of compiled programs; default: compile_cache beside the work directory
#   RETRIES        starts after a failure, in the same work directory; default 0
#   PYTHON         default: .venv/bin/python of this checkout if there is one, else python3
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

dry_run=0
if [[ ${1:-} == --dry-run ]]; then
  dry_run=1
  shift
fi

workdir=
for argument in "$@"; do
  case $argument in --workdir=*) workdir=${argument#--workdir=} ;; esac
done
[[ -n $workdir ]] || fail "no --workdir=DIR among the arguments of main.py"
[[ "$*" != *gs://* ]] || fail "gs:// among the arguments of main.py; expected a folder where the bucket is mounted"

hardware=${HARDWARE:-cpu}
settings=("JAX_COMPILATION_CACHE_DIR=${COMPILE_CACHE:-$(dirname "$workdir")/compile_cache}" PYTHONUNBUFFERED=1)
case $hardware in
  cpu | v5p | v6e) ;; # nothing in the guides beside the defaults that a step like ours would use
  gpu)
    # Communication overlaps with computation. "GPU performance tips", docs.jax.dev/en/latest/gpu_performance_tips.html
    settings+=("XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true ${XLA_FLAGS:-}")
    ;;
  v5e)
    # Asynchronous all-reduce, two options that belong together. "XLA Flags Guidance", openxla.org/xla/flags_guidance
    settings+=("LIBTPU_INIT_ARGS=--xla_tpu_enable_async_collective_fusion=true \
--xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true ${LIBTPU_INIT_ARGS:-}")
    ;;
  *) fail "HARDWARE=$hardware; expected cpu, gpu, v5e, v5p or v6e" ;;
esac
if [[ -n ${GPUS:-} ]]; then
  # Under SLURM jax would give each process one GPU, even where there is one process for the whole machine.
  settings+=("JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((GPUS - 1)))")
fi

if [[ -z ${COORDINATOR:-} && ${TPU_WORKER_HOSTNAMES:-} == *,* ]]; then # a slice of several hosts that GKE describes
  COORDINATOR=${TPU_WORKER_HOSTNAMES%%,*}:8476
  NUM_PROCESSES=$(tr ',' '\n' <<<"$TPU_WORKER_HOSTNAMES" | grep -c .)
  PROCESS_ID=${PROCESS_ID:-${TPU_WORKER_ID:-}}
fi
processes=()
if [[ -n ${COORDINATOR:-} && ${NUM_PROCESSES:-1} -gt 1 ]]; then
  index=${PROCESS_ID:-${SLURM_PROCID:-${JOB_COMPLETION_INDEX:-}}}
  [[ -n $index ]] || fail "NUM_PROCESSES=$NUM_PROCESSES, and nothing says which one this is; set PROCESS_ID"
  processes=("--coordinator=$COORDINATOR" "--num_processes=$NUM_PROCESSES" "--process_id=$index")
  processes+=("--start_timeout=${START_TIMEOUT:-300}")
fi

python=${PYTHON:-$root/.venv/bin/python}
[[ -n ${PYTHON:-} || -x $python ]] || python=python3
command=(env "${settings[@]}" "$python" main.py "$@" "${processes[@]}")

if ((dry_run)); then
  quoted cd "$root"
  quoted "${command[@]}"
  exit 0
fi

cd "$root"
retries=${RETRIES:-0}
((retries)) || exec "${command[@]}"

child=
stopped=0
# bash runs a trap only between two commands: so main.py runs behind, and `wait` is what a signal interrupts.
trap 'stopped=1; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM INT
for ((start = 0; ; start++)); do
  "${command[@]}" &
  child=$!
  code=0
  wait "$child" || code=$?
  while ((stopped)) && kill -0 "$child" 2>/dev/null; do # the first wait ended with the signal, not with main.py
    code=0
    wait "$child" || code=$?
  done
  if ((code == 0 || stopped || start >= retries)) || hopeless "$code" || told_to_stop "$code"; then
    exit "$code"
  fi
  echo "exit code $code: starting again in the same work directory (retry $((start + 1)) of $retries)" >&2
done
