#!/usr/bin/env bash
# The job on this machine, with the arguments of `tayyar run`:
#   run_scripts/direct.sh --input 'wiki/*.ndjson' --output embedded --endpoint http://127.0.0.1:8080
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

use_environment "$(extra_for "$@")"
exec "$venv/bin/tayyar" run "$@"
