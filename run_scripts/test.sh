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
# One process more than there are cores, because many tests wait for a server; as each ends, it takes another's tests.
python -m pytest --numprocesses "$(python -c 'import os; print(1 + (os.cpu_count() or 1))')" --dist worksteal "$@"
