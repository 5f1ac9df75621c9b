#!/usr/bin/env bash
# What launch/tpu_vm/tpu.sh runs on each TPU VM worker, in the copy of the checkout in ~/nas_jax.
#
#   on_worker.sh install            Python and the requirements, once for each version of them
#   on_worker.sh start ARGUMENTS    main.py with these arguments, behind; nothing if it is already running
#   on_worker.sh state              one line: WORKER running | exit CODE | stopped | lost | idle
#   on_worker.sh stop [by-hand]     SIGTERM, so that it saves; SIGKILL after GRACE seconds
#   on_worker.sh logs               follows the log
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
run=$HOME/nas_jax_run # log, number and exit code of the last start
mkdir -p "$run"
cd "$root"

worker_number() { # as jax itself finds it
  curl --silent --fail --header 'Metadata-Flavor: Google' \
    http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number
}

alive() { [[ -s $run/pid ]] && kill -0 "$(<"$run/pid")" 2>/dev/null; }

install() {
  local stamp
  stamp=.venv/.stamp-$(cat requirements.txt setup.py | sha256sum | cut -c1-16)
  if [[ -f $stamp ]]; then
    echo "already installed"
    return
  fi
  # uv brings a Python of its own: the images of TPU VMs have one that is too old.
  python3 -m pip install --quiet --user uv
  [[ -x .venv/bin/python ]] || python3 -m uv venv --quiet --python 3.11 .venv
  python3 -m uv pip install --quiet --python .venv/bin/python -r requirements.txt -e '.[tpu,gcs]'
  touch "$stamp"
}

mount_buckets() { # all that the machine may read, below ~/gcs by name (Cloud Storage FUSE, dynamic mount)
  if ! command -v gcsfuse >/dev/null; then
    local key=/usr/share/keyrings/cloud.google.asc packages=https://packages.cloud.google.com/apt
    curl --silent --fail $packages/doc/apt-key.gpg | sudo tee $key >/dev/null
    echo "deb [signed-by=$key] $packages gcsfuse-$(lsb_release --codename --short) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get update --quiet=2
    sudo apt-get install --quiet=2 --yes gcsfuse
  fi
  mkdir -p "$HOME/gcs"
  # A checkpoint is complete once its folder has its final name, so folders must be renamed.
  mountpoint --quiet "$HOME/gcs" || gcsfuse --implicit-dirs --rename-dir-limit=100000 "$HOME/gcs"
}

start() {
  if alive; then
    echo "already running"
    return
  fi
  [[ "$*" != *gs://* ]] || mount_buckets
  local arguments=("${@//gs:\/\//$HOME/gcs/}")
  rm -f "$run/exit" "$run/stopped"
  PROCESS_ID=$(worker_number)
  export PROCESS_ID
  # A session of its own outlives this connection.
  setsid nohup bash launch/tpu_vm/on_worker.sh _run "${arguments[@]}" >>"$run/log" 2>&1 </dev/null &
  echo $! >"$run/pid"
  echo "started"
}

_run() {
  local code=0
  trap : TERM # main.py gets it too, and this waits for its exit code
  bash launch/worker.sh "$@" &
  while true; do
    code=0
    wait $! || code=$?
    kill -0 $! 2>/dev/null || break
  done
  echo "$code" >"$run/exit"
}

state() {
  local what=idle
  if alive; then
    what=running
  elif [[ -e $run/stopped ]]; then
    what=stopped
  elif [[ -s $run/exit ]]; then
    what="exit $(<"$run/exit")"
  elif [[ -e $run/pid ]]; then
    what=lost # the machine was started again, or the process killed with its shell
  fi
  echo "$(worker_number) $what"
}

stop() {
  [[ ${1:-} != by-hand ]] || touch "$run/stopped"
  alive || return 0
  local pid
  pid=$(<"$run/pid")
  kill -TERM -- "-$pid" 2>/dev/null || true
  for ((i = 0; i < ${GRACE:-300} * 5; i++)); do
    alive || return 0
    sleep 0.2
  done
  kill -KILL -- "-$pid" 2>/dev/null || true
  echo 137 >"$run/exit"
}

logs() { tail -n 50 -F "$run/log"; }

last_lines() { tail -n 20 "$run/log"; }

case ${1:-} in
  install | start | state | stop | logs | last_lines | _run) "$@" ;;
  *)
    echo "error: on_worker.sh ${1:-}; expected install, start, state, stop or logs" >&2
    exit 2
    ;;
esac
