#!/usr/bin/env bash
# Embeds the sample beside this file with a real model on this machine, shows what comes out, loads it into LanceDB, and
# asks it questions.
# Needs Python 3.10 to 3.13 and, the first time, PyPI.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

use_environment local,load
cd -- "$root"
PATH=$venv/bin:$PATH

heading() { printf '\n== %s\n' "$1"; }
show() {
    printf '$ %s\n' "$*"
    "$@"
}

heading "60 documents, Arabic and English; the model runs on this machine"
show tayyar run --input run_scripts/sample --output demo_output --overwrite

heading "What came out: the embedded documents in data, and in _job what proves them"
find demo_output -type f | sort

heading "One document with its vector, of which only the ends are shown"
sed -n -E '1s/\[([^],]*,[^],]*),[^]]*(,[^],]*)\]/[\1, …\2]/p' demo_output/data/flat-00000.ndjson

heading "The proof: inputs and outputs are read again and compared"
show tayyar verify --output demo_output

heading "The next step: the vectors in a database, LanceDB, which is a folder as well"
rm -rf demo_lance
show python run_scripts/load/lancedb.py --output demo_output --database demo_lance

heading "Three questions to the database: one in Arabic, two across the languages"
python run_scripts/ask.py demo_lance demo_output \
    "لماذا نرى البرق قبل أن نسمع الرعد؟" \
    "ما أكبر حيوان عاش على الأرض؟" \
    "How many players are in a football team?"

heading "Next"
cat <<NEXT
Ask something else:
  ${venv#"$root/"}/bin/python run_scripts/ask.py demo_lance demo_output \\
    "Who was Ibn Battuta and where did he travel?"
Look at the report, in a browser:
  demo_output/_job/report.html
Start a server, and embed your own files with it:
  run_scripts/start_tei.sh
  run_scripts/direct.sh --input 'YOUR/*.ndjson' --output embedded \\
    --endpoint http://127.0.0.1:8080
Read on:
  README.md
NEXT
