#!/usr/bin/env bash
# All that a GPU machine can tell in ten minutes: the recorded step, speed, kernels, and the study.
#
#   benchmarks/accelerator.sh OUT [--budget SECONDS] [--parts NAME,...] [--dry-run]
#   DRY_RUN=1 PYTHON=python3 benchmarks/accelerator.sh OUT
#
# A second call with the same OUT goes on. benchmarks/accelerator.py says what the parts are.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python}
[[ -n ${PYTHON:-} || ! -x $root/.venv/bin/python ]] || python=$root/.venv/bin/python
options=("$@")
[[ ${DRY_RUN:-0} == 0 ]] || options+=(--dry-run)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m benchmarks.accelerator "${options[@]}"
