#!/usr/bin/env bash
# A run on a Cloud TPU slice of any size, from one's own machine: queued resources, all workers, replaced when lost.
#
#   launch/tpu_vm/tpu.sh [--dry-run] COMMAND --name=NAME --zone=ZONE [OPTIONS] [-- ARGUMENTS OF main.py]
#   launch/tpu_vm/tpu.sh watch --name=nas --zone=us-west4-a --type=v5litepod-16 --spot -- \
#     --config=configs/nas_base_4m.py --workdir=gs://BUCKET/runs/nas
#
# Commands
#   create    asks for the slice (a queued resource); nothing if it is there
#   install   copies this checkout to all workers and installs the requirements; nothing that is already installed
#   start     starts main.py on all workers; nothing where it is running
#   watch     all of the above, and stays: replaces the slice when it is preempted or fails, starts all workers again
#             when one of them ended, ends with the run. Only looks every --poll seconds, so it may itself be started again
#   status    the states of the slice and of the workers
#   logs      follows the log of a worker (--worker=0)
#   stop      SIGTERM to all workers, which save; `watch` ends too. The slice stays, and costs
#   delete    gives the slice back
#
# Options
#   --type=TYPE          v5litepod-16, v5p-128, v6e-64 ... (accelerator type of gcloud)
#   --runtime=VERSION    image of the workers; default: the one that Google's page on TPU software gives for the type
#   --spot               cheaper, and may be taken away
#   --project=PROJECT    default: that of gcloud
#   --workers=N          hosts of the slice, for `--dry-run` alone, which asks nobody
#   --worker=N           for logs
#   --poll=SECONDS       60
#   --retries=N          starts of all workers after one of them ended; 100
#   --grace=SECONDS      between SIGTERM and SIGKILL; 300
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"
((BASH_VERSINFO[0] >= 5)) || fail "bash $BASH_VERSION; expected 5 or newer"

port=${PORT:-8476} # of the coordinator; the roll call takes the next one
dry_run=0 name='' zone='' type='' runtime='' spot=0 project='' workers=1 worker=0 poll=60 retries=100 grace=300 command=''
while (($#)); do
  case $1 in
    --dry-run) dry_run=1 ;;
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --spot) spot=1 ;;
    --project=*) project=${1#*=} ;;
    --workers=*) workers=${1#*=} ;;
    --worker=*) worker=${1#*=} ;;
    --poll=*) poll=${1#*=} ;;
    --retries=*) retries=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --)
      shift
      break
      ;;
    create | install | start | watch | status | logs | stop | delete)
      [[ -z $command ]] || fail "two commands: $command and $1"
      command=$1
      ;;
    *) fail "$1; see the head of launch/tpu_vm/tpu.sh for what there is" ;;
  esac
  shift
done
[[ -n $command ]] || fail "no command; expected create, install, start, watch, status, logs, stop or delete"
[[ -n $name && -n $zone ]] || fail "no --name or no --zone"
case $command in
  create | watch) [[ -n $type ]] || fail "no --type, like --type=v5litepod-16" ;;
esac
case $command in
  start | watch) [[ " $*" == *" --workdir=gs://"* ]] ||
    fail "--workdir on the disk of one worker; expected gs://BUCKET/FOLDER, which all of them see and which outlives them" ;;
esac

hardware=''
case $type in
  v5litepod-*) hardware=v5e runtime=${runtime:-v2-alpha-tpuv5-lite} ;;
  v5p-*) hardware=v5p runtime=${runtime:-v2-alpha-tpuv5} ;;
  v6e-*) hardware=v6e runtime=${runtime:-v2-alpha-tpuv6e} ;;
  '') ;;
  *) fail "--type=$type; expected v5litepod-N, v5p-N or v6e-N" ;;
esac

place=("--zone=$zone" --quiet)
[[ -z $project ]] || place+=("--project=$project")

# Runs a command that changes something, or says that it would.
act() {
  if ((dry_run)); then quoted "$@"; else "$@"; fi
}

say() { echo "$(date +%H:%M:%S) $*"; }

on_workers() { # WHICH WORDS...: on_worker.sh with these words, on all workers or one
  local which=$1
  shift
  act gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" "--worker=$which" --command="$(quoted "$@")"
}

# A field of something that gcloud describes; MISSING if there is no such thing, UNKNOWN if nobody answers.
described() { # WORDS OF THE COMMAND... FORMAT
  local answer
  if answer=$(gcloud compute tpus "$1" describe "$name" "${place[@]}" --format="$2" 2>&1); then
    echo "${answer:-UNKNOWN}"
  elif [[ $answer == *NOT_FOUND* ]]; then
    echo MISSING
  else
    echo UNKNOWN
  fi
}

slice_state() { # of the queued resource; then of its machine, where there is one
  local state
  state=$(described queued-resources 'value(state.state)')
  if [[ $state == ACTIVE ]]; then
    state=$(described tpu-vm 'value(state)')
    [[ $state != MISSING ]] || state=LOST
  fi
  echo "$state"
}

addresses() { # of the workers, in their order
  if ((dry_run)); then
    for ((i = 0; i < workers; i++)); do echo "ADDRESS_OF_WORKER_$i"; done
  else
    gcloud compute tpus tpu-vm describe "$name" "${place[@]}" --format='value[delimiter="\n"](networkEndpoints[].ipAddress)'
  fi
}

worker_states() { # a line for each: NUMBER STATE
  gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=all \
    --command='bash nas_jax/launch/tpu_vm/on_worker.sh state' 2>/dev/null |
    { grep -E '^[0-9]+ [a-z]' || true; } | sort -n || true
}

create() {
  local state=MISSING
  ((dry_run)) || state=$(slice_state)
  if [[ $state != MISSING ]]; then
    say "$name is there already: $state"
    return
  fi
  local options=("--node-id=$name" "--accelerator-type=$type" "--runtime-version=$runtime")
  ((!spot)) || options+=(--spot)
  # The scope lets the workers mount buckets.
  options+=(--scopes=https://www.googleapis.com/auth/cloud-platform)
  act gcloud compute tpus queued-resources create "$name" "${place[@]}" "${options[@]}"
}

delete() { act gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force; }

install() { # `watch` calls it where a failure does not end the script by itself: hence `return`
  local archive folder=''
  archive=nas_jax.tar.gz
  if ! ((dry_run)); then
    folder=$(mktemp -d)
    archive=$folder/$archive
  fi
  act tar --create --gzip --file="$archive" --directory="$root" --exclude=__pycache__ \
    main.py nas_jax configs launch requirements.txt setup.py || return
  act gcloud compute tpus tpu-vm scp "$archive" "$name:nas_jax.tar.gz" "${place[@]}" --worker=all || return
  [[ -z $folder ]] || rm -r "$folder"
  on_workers all bash -c 'mkdir -p nas_jax && tar --extract --gzip --file=nas_jax.tar.gz --directory=nas_jax && bash nas_jax/launch/tpu_vm/on_worker.sh install'
}

start() { # ARGUMENTS of main.py
  local list
  mapfile -t list < <(addresses)
  if ((!${#list[@]})); then
    say "nobody says which workers there are" >&2
    return 1
  fi
  local settings=("HARDWARE=${hardware:-$(hardware_of_slice)}" "COORDINATOR=${list[0]}:$port" "NUM_PROCESSES=${#list[@]}")
  settings+=("START_TIMEOUT=${START_TIMEOUT:-300}")
  on_workers all env "${settings[@]}" bash nas_jax/launch/tpu_vm/on_worker.sh start "$@"
}

hardware_of_slice() {
  ((!dry_run)) || fail "no --type, like --type=v5litepod-16"
  case $(gcloud compute tpus tpu-vm describe "$name" "${place[@]}" --format='value(acceleratorType)') in
    v5litepod-*) echo v5e ;;
    v5p-*) echo v5p ;;
    v6e-*) echo v6e ;;
    *) fail "the slice has chips that this script does not know" ;;
  esac
}

stop_workers() { on_workers all env "GRACE=$grace" bash nas_jax/launch/tpu_vm/on_worker.sh stop "$@"; }

# What to do about the workers of a slice that is up: wait, start, done, stopped, unreachable or `failed WORKER CODE`.
verdict() { # NUMBER OF WORKERS; their states on standard input
  local expected=$1 number what code seen=0 running=0 finished=0 failed=''
  while read -r number what code; do
    seen=$((seen + 1))
    case $what in
      running) running=$((running + 1)) ;;
      stopped)
        echo stopped
        return
        ;;
      exit)
        if ((code == 0)); then finished=$((finished + 1)); fi
        if hopeless "$code"; then failed="failed $number $code"; fi
        ;;
    esac
  done
  if [[ -n $failed ]]; then
    echo "$failed"
  elif ((!expected)); then
    echo wait # nobody said how many there are
  elif ((finished == expected)); then
    echo "done"
  elif ((running + finished == expected)); then
    echo wait
  elif ((seen < expected)); then
    echo unreachable
  else
    echo start
  fi
}

look() { worker_states | verdict "$(addresses | grep -c .)"; }

watch() { # ARGUMENTS of main.py
  if ((dry_run)); then
    create
    echo "# once the slice is ready:"
    install
    start "$@"
    echo "# then every $poll s the states of slice and workers. A slice that was preempted or failed:"
    delete
    echo "# and all of the above again. A worker that ended with an error, $retries times at most:"
    stop_workers
    start "$@"
    return
  fi
  local starts=-1 installed=0 silent=0 seen_running=0 state what
  while true; do
    state=$(slice_state)
    case $state in
      MISSING)
        say "asking for $name"
        create || say "that failed; trying again"
        installed=0
        ;;
      READY)
        if ((!installed)) && [[ $(look) == wait ]]; then
          say "running already"
          installed=1 seen_running=1
        elif ((!installed)); then
          say "installing"
          if install; then installed=1; else say "installing failed; trying again"; fi
        else
          what=$(look)
          # Of what was stopped before, `watch` is the new start.
          [[ $what != stopped ]] || ((starts >= 0 || seen_running)) || what=start
          [[ $what != wait ]] || seen_running=1
          [[ $what == unreachable ]] || silent=0
          case $what in
            wait) ;;
            done)
              say "finished"
              return 0
              ;;
            stopped)
              say "stopped by hand"
              return 0
              ;;
            failed*)
              read -r _ number code <<<"$what"
              say "worker $number ended with exit code $code, and would again:"
              on_workers "$number" bash nas_jax/launch/tpu_vm/on_worker.sh last_lines
              return "$code"
              ;;
            unreachable) # a worker does not answer: it may be starting, or gone for good
              silent=$((silent + 1))
              say "not all workers answer ($silent of 5)"
              if ((silent >= 5)); then
                say "replacing the slice"
                delete || say "that failed; trying again"
                silent=0
              fi
              ;;
            start)
              starts=$((starts + 1))
              if ((starts > retries)); then
                say "$retries retries are used up"
                return 1
              fi
              ((starts == 0)) || say "a worker ended; starting all of them again (retry $starts of $retries)"
              stop_workers || true # who does not answer is not running either
              start "$@" || say "not all workers started"
              ;;
          esac
        fi
        ;;
      FAILED | SUSPENDED | PREEMPTED | TERMINATED | STOPPED | LOST)
        say "the slice is $state: giving it back and asking for another"
        delete || say "that failed; trying again"
        installed=0
        ;;
      *) say "the slice is $state" ;; # WAITING_FOR_RESOURCES, PROVISIONING, SUSPENDING, DELETING, CREATING, REPAIRING ...
    esac
    sleep "$poll"
  done
}

status() {
  ((!dry_run)) || { act gcloud compute tpus queued-resources describe "$name" "${place[@]}" && return; }
  local state
  state=$(slice_state)
  say "slice: $state"
  [[ $state != READY ]] || worker_states
}

case $command in
  create | install | delete | status) "$command" ;;
  start | watch) "$command" "$@" ;;
  logs) on_workers "$worker" bash nas_jax/launch/tpu_vm/on_worker.sh logs ;;
  stop) stop_workers by-hand ;;
esac
