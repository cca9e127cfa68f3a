#!/usr/bin/env bash
# All checks: formatting, lint, types, tests. Arguments go to pytest: run_scripts/test.sh -k splice
# TAYYAR_CHECKS=tests leaves out all but the tests.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

use_environment dev
cd -- "$root"
PATH=$venv/bin:$PATH

if [ "${TAYYAR_CHECKS:-all}" != tests ]; then
    ruff format --check .
    ruff check .
    mypy
fi
# Tests' files are in memory where there is room: the job syncs each of its files to the disk, which tests would wait for.
# Some tests start programs from there, or make devices.
mounted=$(findmnt --noheadings --output OPTIONS /dev/shm 2>/dev/null || true)
if [[ -w /dev/shm && -n $mounted && $mounted != *noexec* && $mounted != *nodev* ]] &&
    (($(df -k --output=avail /dev/shm | tail -n 1) > 4 << 20)); then
    export PYTEST_DEBUG_TEMPROOT=${PYTEST_DEBUG_TEMPROOT:-/dev/shm}
fi

# Two processes more than there are cores, because many tests wait for a server; as each ends, it takes another's tests.
python -m pytest --numprocesses "$(python -c 'import os; print(2 + (os.cpu_count() or 1))')" --dist worksteal "$@"
