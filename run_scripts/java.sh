#!/usr/bin/env bash
# Java that ends with the process that started it, also if that is killed: given to Beam as --job_server_java_launcher.
# Where there is no setpriv (it is of util-linux), Java is on its own as it would be without this.
if command -v setpriv >/dev/null; then
    exec setpriv --pdeathsig TERM java "$@"
fi
exec java "$@"
