# shellcheck shell=bash
# Sourced by the other scripts: a virtual environment with Tayyar in it, made once and used again.
#
#   TAYYAR_PYTHON  the Python to make it with; otherwise the first that fits of python3, python3.13 … python3.10
#   TAYYAR_VENV    where it is; otherwise .venv beside setup.py

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
venv=${TAYYAR_VENV:-$root/.venv}
fits='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'

fail() {
    printf '%s: %s\n' "$(basename -- "$0")" "$1" >&2
    exit 1
}

# Prints the Python to make the environment with.
find_python() {
    local candidate without_venv='' candidates=(python3 python3.13 python3.12 python3.11 python3.10)
    if [ -n "${TAYYAR_PYTHON:-}" ]; then
        candidates=("$TAYYAR_PYTHON")
    fi
    for candidate in "${candidates[@]}"; do
        "$candidate" -c "$fits" 2>/dev/null || continue
        if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$candidate"
            return
        fi
        without_venv=$candidate
    done
    if [ -n "$without_venv" ]; then
        fail "$without_venv cannot make virtual environments. On Debian and Ubuntu: apt install $("$without_venv" \
            -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    fi
    fail "Tayyar needs Python 3.10, 3.11, 3.12 or 3.13, and ${TAYYAR_PYTHON:-python3} is none of them.
Install one, or name it: TAYYAR_PYTHON=/path/to/python3.12 $0"
}

# Prints the extra for the job on this machine with some arguments: s3:// needs a library of its own.
extra_for() {
    if [[ " $* " == *[\ =]s3://* ]]; then
        echo local,aws
    else
        echo local
    fi
}

# Prints what the package is installed as in the environment: this setup.py in this place.
stamp() {
    echo "$root $(cksum <"$root/setup.py")"
}

# Whether the environment has the package with an extra.
is_installed() {
    local extra=$1 installed
    # dev holds all of local,aws and local,load, and each of these all of local.
    for installed in local local,aws local,load dev gcp benchmark; do
        case $installed/$extra in
            "$extra/$extra" | local,aws/local | local,load/local | dev/local | dev/local,aws | dev/local,load) ;;
            *) continue ;;
        esac
        if [ "$(cat "$venv/tayyar-$installed" 2>/dev/null)" = "$(stamp)" ]; then
            return
        fi
    done
    return 1
}

# Draws each line over the former one, so that a person sees that something goes on; shows nothing elsewhere.
show_last_line() {
    local line columns
    if ! [ -t 1 ]; then
        cat >/dev/null
        return
    fi
    columns=$(stty size <&1 2>/dev/null | cut -d ' ' -f 2) || true
    while IFS= read -r line; do
        printf '\r\033[K%.*s' "$((${columns:-80} - 1))" "$line"
    done
    printf '\r\033[K'
}

# Makes the environment and installs the package with an extra, unless that was done for this setup.py in this place.
use_environment() {
    local extra=$1 python
    if [ ! -e "$venv" ]; then
        python=$(find_python)
        echo "Making a virtual environment: $venv"
        "$python" -m venv "$venv"
    elif ! "$venv/bin/python" -c "import pip; $fits" 2>/dev/null; then
        fail "$venv is there, but has no Python from 3.10 to 3.13 with pip. Delete it, or name another: TAYYAR_VENV=… $0"
    fi
    if is_installed "$extra"; then
        return
    fi
    echo "Installing Tayyar and what it needs; this takes some minutes, once."
    (
        set -o pipefail
        "$venv/bin/python" -m pip install --disable-pip-version-check --editable "${root}[$extra]" | show_last_line
    )
    stamp >"$venv/tayyar-$extra"
}
