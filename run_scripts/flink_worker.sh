#!/usr/bin/env bash
# A Python worker as Flink's task managers start it: flink.sh --environment_type PROCESS. It installs nothing then: two
# that begin at once would be in each other's way, and may not have the right to write.
#
#   run_scripts/flink_worker.sh install
#       what workers need, once on each of the machines
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
. "$(dirname -- "${BASH_SOURCE[0]}")/arguments.sh"

help_if_asked "$@"
extra=local,aws # workers are told only later where the files are
if [ "${1:-}" = install ]; then
    use_environment "$extra"
    exit
fi
is_installed "$extra" ||
    fail "Tayyar is not installed in $venv. Call this once on this machine: $root/run_scripts/flink_worker.sh install"
export ARROW_DEFAULT_MEMORY_POOL=${ARROW_DEFAULT_MEMORY_POOL:-system} # Arrow's own allocator keeps 20 MB more
exec "$venv/bin/python" "$root/run_scripts/flink_worker.py" "$@"
