#!/usr/bin/env bash
# The job on Apache Flink, with the arguments of `tayyar run` and Beam's own. Needs Java 11 or 17.
#
#   run_scripts/flink.sh --input 'wiki/*.ndjson' --output embedded --endpoint http://HOST:PORT
#       a Flink of its own on this machine, to try it
#
#   run_scripts/flink.sh --flink_master HOST:8081 --input gs://… --output gs://… --endpoint http://HOST:PORT
#       a cluster: its version and its number of slots are asked of it. Python workers are expected beside each
#       task manager at localhost:50000, which is what this starts there:
#
#   run_scripts/flink.sh workers [PORT]
#       The workers take from their own environment what they need: STORAGE and AWS variables, the token's variable.
#       WARNING: the pool listens on every address of its machine and asks nobody for a password: whoever reaches its
#       port runs programs as you, with that environment. Let nobody else reach it: the task manager beside it comes
#       by localhost, so a firewall may drop all else (nft add rule inet filter input iif != lo tcp dport 50000 drop).
#
#   run_scripts/flink.sh --environment_type PROCESS --flink_master HOST:8081 …
#       no pool, and no port that is open: task managers start workers themselves, by run_scripts/flink_worker.sh in
#       this same folder on their machines. Call it there once before, as `run_scripts/flink_worker.sh install`: a worker
#       that starts installs nothing, and Beam shows nobody what it says ("Process died with exit code 1").
#       Workers get Beam's options, and have their task manager's environment.
#
#   run_scripts/flink.sh check --flink_master HOST:8081 --output gs://… --endpoint http://HOST:PORT
#       ten documents through all of it, before the job: workers, their way to the endpoint, token, right to write
#
# Whatever is given is kept: --parallelism, --flink_version, --flink_job_server_jar (otherwise Beam fetches it from
# Maven Central, once), --environment_type DOCKER with --environment_config IMAGE, --number_of_execution_retries, …
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
. "$(dirname -- "${BASH_SOURCE[0]}")/arguments.sh"

help_if_asked "$@"
if [ "${1:-}" = workers ]; then
    use_environment local,aws # they are told only later where the files are
    port=${2:-50000}
    echo "Workers wait at port $port, on every address of this machine, and do what anybody tells them who reaches it." \
        "Close it to others with a firewall." >&2
    PATH=$venv/bin:$PATH exec "$venv/bin/python" -m apache_beam.runners.worker.worker_pool_main \
        --service_port="$port"
fi
use_environment "$(extra_for "$@")"

# Prints the cluster's version and its number of slots.
overview() {
    "$venv/bin/python" - "$1" <<'PYTHON'
import json, sys, urllib.request

master = sys.argv[1] if "://" in sys.argv[1] else f"http://{sys.argv[1]}"
try:
    found = json.load(urllib.request.urlopen(f"{master.rstrip('/')}/overview", timeout=20))
    print(found["flink-version"], found["slots-total"])
except (OSError, ValueError, KeyError) as error:
    sys.exit(str(error))
PYTHON
}

command -v java >/dev/null || fail "Flink needs Java, and there is no java on the PATH. On Debian: apt install default-jre-headless"
take_command "$@"
default runner FlinkRunner
default job_server_java_launcher "$root/run_scripts/java.sh"
default flink_master '[local]'
master=$(value_of flink_master)
if [ "$master" != '[local]' ] && [ "$master" != '[auto]' ]; then
    found=$(overview "$master") || fail "no Flink answers at $master; give its REST address: --flink_master HOST:8081"
    read -r version slots <<<"$found"
    default flink_version "${version%.*}"
    default parallelism "$slots"
    default environment_type EXTERNAL
    if [ "$(value_of environment_type)" = EXTERNAL ]; then
        default environment_config localhost:50000
    fi
fi
if [ "$(value_of environment_type)" = PROCESS ]; then
    default environment_config "{\"command\": \"$root/run_scripts/flink_worker.sh\"}"
fi
exec "$venv/bin/tayyar" "$command" "${arguments[@]}"
