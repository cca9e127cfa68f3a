#!/usr/bin/env bash
# The benchmark: Tayyar beside other ways to do the same work, on this machine. Linux only. Without arguments: all
# contestants; otherwise the arguments of `python -m tests.benchmark`:
#   run_scripts/benchmark.sh compare --documents 50000
#   run_scripts/benchmark.sh --help
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

use_environment benchmark
cd -- "$root"
if [ $# -eq 0 ]; then
    set -- compare
fi
exec "$venv/bin/python" -m tests.benchmark "$@"
