#!/usr/bin/env bash
# Submits a run to SLURM: one process for each node, all GPUs of a node for its process.
#
#   launch/slurm/submit.sh [--dry-run] [SBATCH OPTIONS] -- --config=CONFIG --workdir=DIR [MORE FOR main.py]
#   launch/slurm/submit.sh --nodes=4 --gpus-per-node=8 --time=24:00:00 -- --config=configs/nas_base_4m.py --workdir=runs/nas
#
# DIR must be on a file system that all nodes share. launch/slurm/train.sbatch holds the defaults of the options.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

dry_run=0
options=()
while (($#)) && [[ $1 != -- ]]; do
  if [[ $1 == --dry-run ]]; then dry_run=1; else options+=("$1"); fi
  shift
done
(($#)) || fail "no -- before the arguments of main.py; try: launch/slurm/submit.sh --nodes=2 -- --config=... --workdir=..."
shift
[[ " $*" == *" --workdir="* ]] || fail "no --workdir=DIR among the arguments of main.py"

command=(sbatch --chdir="$root" "${options[@]}" "$root/launch/slurm/train.sbatch" "$@")
if ((dry_run)); then
  quoted "${command[@]}"
  echo "# then, in the job, whose number gives the port:"
  cd "$root"
  DRY_RUN=1 SLURM_JOB_ID=0 SLURM_JOB_NUM_NODES=NODES SLURM_JOB_NODELIST=FIRST_NODE bash launch/slurm/train.sbatch "$@"
  exit 0
fi
exec "${command[@]}"
