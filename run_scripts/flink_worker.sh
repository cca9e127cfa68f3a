#!/usr/bin/env bash
# A Python worker as Flink's task managers start it: flink.sh --environment_type PROCESS.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

use_environment local,aws # it is told only later where the files are
exec "$venv/bin/python" "$root/run_scripts/flink_worker.py" "$@"
