#!/usr/bin/env bash
# Start a TEI server here, wait until it answers, print what to run next, and stop it on Ctrl-C.
#
#   run_scripts/start_tei.sh [OPTIONS] [-- OPTIONS OF THE SERVER]
#
# The first of these ways that this machine has is taken:
#   docker    TEI's image: the one for NVIDIA GPUs where nvidia-smi finds one, otherwise the one for processors
#   program   text-embeddings-router on the PATH
#   embedded  Tayyar's own server, with a small model of its own: to try, not for speed
#
# Each option has a variable that is used where the option is not given:
#   --model MODEL            TEI_MODEL             its id on Hugging Face, or a folder
#                                                  (sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2)
#   --revision REVISION      TEI_REVISION          branch, tag or commit (the model's newest)
#   --pooling POOLING        TEI_POOLING           cls, mean, splade or last-token (what the model says)
#   --max_batch_tokens N     TEI_MAX_BATCH_TOKENS  tokens in one batch of the device (the server's: 16384)
#   --port PORT              TEI_PORT              where it answers, on this machine alone (8080)
#   --gpus all               TEI_GPUS              a container for each GPU, all of the same model, at ports PORT,
#                                                  PORT+1, …; without it one server, which uses one GPU
#   --replicas N             TEI_REPLICAS          with --gpus all: containers for the first N GPUs alone
#   --cache FOLDER           TEI_CACHE             where the image keeps its downloads (~/.cache/tei)
#   --image IMAGE            TEI_IMAGE             another image, such as one built for your GPU
#   --way WAY                TEI_WAY               docker, program or embedded
#   --wait SECONDS           TEI_WAIT              for a server's first answer; a large model takes minutes (900)
#
# A model that needs a token to be downloaded: put it into HF_TOKEN. It is passed on by its name.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
. "$(dirname -- "${BASH_SOURCE[0]}")/arguments.sh"

default_model=sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2
images=ghcr.io/huggingface/text-embeddings-inference
model=${TEI_MODEL:-} revision=${TEI_REVISION:-} pooling=${TEI_POOLING:-} max_batch_tokens=${TEI_MAX_BATCH_TOKENS:-}
port=${TEI_PORT:-8080} cache=${TEI_CACHE:-$HOME/.cache/tei} image=${TEI_IMAGE:-} way=${TEI_WAY:-} wait=${TEI_WAIT:-900}
gpus=${TEI_GPUS:-} replicas=${TEI_REPLICAS:-}
# One entry a server: its port, its log, its process, and with Docker its container.
ports=() logs=() servers=() containers=()

# Set the variable of an option: give NAME VALUE.
give() {
    [ $# -eq 2 ] || fail "$1 needs a value; see --help"
    printf -v "${1#--}" %s "$2"
}

while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) help_if_asked "$1" ;;
        --) shift && break ;;
        --model | --revision | --pooling | --max_batch_tokens | --port | --gpus | --replicas | --cache | --image | \
            --way | --wait)
            give "${@:1:2}" && shift 2 ;;
        --model=* | --revision=* | --pooling=* | --max_batch_tokens=* | --port=* | --gpus=* | --replicas=* | \
            --cache=* | --image=* | --way=* | --wait=*)
            give "${1%%=*}" "${1#*=}" && shift ;;
        *) fail "unknown option $1; see --help. Options of the server come after --" ;;
    esac
done
for number in port wait ${max_batch_tokens:+max_batch_tokens} ${replicas:+replicas}; do
    [[ ${!number} =~ ^[1-9][0-9]{0,8}$ ]] || fail "--$number ${!number} is not a whole number above 0"
done
[[ $gpus =~ ^(all)?$ ]] || fail "--gpus $gpus is not supported: give --gpus all, and --replicas N for the first N of them"
[ -n "$gpus" ] || [ -z "$replicas" ] || fail "--replicas $replicas needs --gpus all: each replica has a GPU of its own"

# Print the indices of the GPUs, one a line; MIG devices are indented below theirs, and do not count.
gpu_indices() { nvidia-smi -L 2>/dev/null | sed -n 's/^GPU \([0-9]*\):.*/\1/p'; }
has_gpu() { [ -n "$(gpu_indices)" ]; }
has_docker() { docker info >/dev/null 2>&1; }

# Print the first way that this machine has.
find_way() {
    if has_docker; then
        echo docker
    elif command -v text-embeddings-router >/dev/null; then
        echo program
    else
        echo embedded
    fi
}

# Print the image for this machine.
image_here() {
    if has_gpu; then
        echo "$images:cuda-1.9"
    elif [[ $(uname -m) =~ ^(arm64|aarch64)$ ]]; then
        echo "$images:cpu-arm64-1.9"
    else
        echo "$images:cpu-1.9"
    fi
}

# Ask the server at a port for its health. Behind a port that Docker publishes, a connection may be made and reset.
answers() {
    local status=''
    { exec 3<>"/dev/tcp/127.0.0.1/$1"; } 2>/dev/null || return 1
    printf 'GET /health HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' >&3 2>/dev/null && read -r -t 5 status <&3 || true
    exec 3>&-
    [[ $status == HTTP/*\ 200* ]]
}

is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Start the server of a port in the background, with a log of its own: start PORT COMMAND…
start() {
    local log
    log=$(mktemp)
    ports+=("$1") logs+=("$log")
    "${@:2}" >"$log" 2>&1 &
    servers+=("$!")
}

# Start a container: start_docker PORT GPUS OPTIONS OF THE SERVER…, where GPUS is as for docker, or empty for none.
start_docker() {
    local name=tayyar-tei-$1
    local options=(--rm --name "$name" -p "127.0.0.1:$1:80" -v "$cache:/data")
    if [ -n "$2" ]; then
        options+=(--gpus "$2")
    fi
    if [ -n "${HF_TOKEN:-}" ]; then
        options+=(-e HF_TOKEN)
    fi
    if [ -d "$model" ]; then # a container sees only the folders that are mounted in it
        options+=(-v "$(CDPATH='' cd -- "$model" && pwd):/model:ro")
        model_options[1]=/model
    fi
    mkdir -p "$cache"
    containers+=("$name")
    start "$1" docker run "${options[@]}" "$image" "${model_options[@]}" "${@:3}"
}

start_program() {
    command -v text-embeddings-router >/dev/null || fail "text-embeddings-router is not on the PATH"
    echo "Starting text-embeddings-router with $model."
    start "$port" text-embeddings-router "${model_options[@]}" --hostname 127.0.0.1 --port "$port" "$@"
}

start_embedded() {
    if [ -n "$given" ]; then
        fail "${given% } needs TEI itself, and neither Docker nor text-embeddings-router is here. Install one of them, \
or leave the option out: Tayyar's own server has a small model of its own, intfloat/multilingual-e5-small."
    fi
    use_environment local
    echo "Starting Tayyar's own server with intfloat/multilingual-e5-small."
    echo "It is there to try things, not for speed."
    # shellcheck disable=SC2086 # two words, or none
    start "$port" "$venv/bin/tayyar" serve --port "$port" ${max_batch_tokens:+--max_batch_tokens $max_batch_tokens} "$@"
}

# Print the end of a server's log, and exit: give_up INDEX REASON.
give_up() {
    printf '%s: %s. The end of its log:\n' "$(basename -- "$0")" "$2" >&2
    tail -n 20 "${logs[$1]}" >&2
    exit 1
}

# Exit if a server has ended.
require_running() {
    local index
    for index in "${!servers[@]}"; do
        kill -0 "${servers[index]}" 2>/dev/null ||
            give_up "$index" "the server at port ${ports[index]} has ended${1:-}"
    done
}

# Wait for the first answer of a server: wait_for INDEX.
wait_for() {
    local deadline=$((SECONDS + wait))
    echo "Waiting for the first answer at port ${ports[$1]}, at most $wait s. Its log:"
    echo "  tail -f ${logs[$1]}"
    until answers "${ports[$1]}"; do
        require_running " before it answered"
        if [ "$SECONDS" -ge "$deadline" ]; then
            give_up "$1" "the server at port ${ports[$1]} does not answer after $wait s (--wait)"
        fi
        sleep 0.5
    done
}

# Stop all that was started, however this script ends.
# shellcheck disable=SC2329 # the trap calls it
stop() {
    trap - EXIT
    trap '' INT TERM # a second Ctrl-C must not leave half of them running
    if [ ${#containers[@]} -gt 0 ]; then
        docker stop "${containers[@]}" >/dev/null 2>&1 || true # all at once
    fi
    if [ ${#servers[@]} -gt 0 ]; then
        kill "${servers[@]}" 2>/dev/null || true
        wait "${servers[@]}" 2>/dev/null || true
        rm -f "${logs[@]}"
    fi
}

given=${model:+--model }${revision:+--revision }${pooling:+--pooling }
model=${model:-$default_model}
model_options=(--model-id "$model" ${revision:+--revision "$revision"} ${pooling:+--pooling "$pooling"}
    ${max_batch_tokens:+--max-batch-tokens "$max_batch_tokens"})
way=${way:-$(find_way)}
[[ $way =~ ^(docker|program|embedded)$ ]] || fail "--way $way must be docker, program or embedded"

# What each container gets as its GPUs. A container that sees all of them uses the first alone.
devices=('')
if [ "$way" = docker ]; then
    has_docker || fail "docker does not answer. Start Docker, or check that you may use it: docker info"
    image=${image:-$(image_here)}
    if has_gpu; then
        devices=(all)
    fi
fi
if [ -n "$gpus" ]; then
    [ "$way" = docker ] || fail "--gpus all starts containers, and this machine would use the $way instead: install Docker"
    devices=()
    for index in $(gpu_indices); do
        devices+=("device=$index")
    done
    [ ${#devices[@]} -gt 0 ] || fail "--gpus all: nvidia-smi finds no GPU here. Leave the option out for one server without"
    [ "${replicas:-0}" -le ${#devices[@]} ] ||
        fail "--replicas $replicas is more than the GPUs of this machine, ${#devices[@]}. Each replica needs its own"
    devices=("${devices[@]:0:${replicas:-${#devices[@]}}}")
fi
count=${#devices[@]}
for ((number = port; number < port + count; number++)); do
    if is_taken "$number"; then
        fail "port $number is taken, perhaps by a server that runs already. Stop it, or give another port: --port $((number + 1))"
    fi
done

trap stop EXIT
trap 'echo "Stopping."; exit 130' INT TERM
case $way in
    docker)
        echo "Starting $image with $model; the first time, image and model are downloaded."
        start_docker "$port" "${devices[0]}" "$@"
        ;;
    program) start_program "$@" ;;
    embedded) start_embedded "$@" ;;
esac
wait_for 0
# The others start now: the first one has downloaded image and model for all of them.
for ((index = 1; index < count; index++)); do
    start_docker $((port + index)) "${devices[index]}" "$@"
done
for ((index = 1; index < count; index++)); do
    wait_for "$index"
done

endpoints=''
for number in "${ports[@]}"; do
    endpoints+=$' \\\n    --endpoint http://127.0.0.1:'$number
done
if [ "$count" -eq 1 ]; then
    echo "http://127.0.0.1:$port answers. Next, in another terminal:"
else
    echo "$count servers answer, each with a GPU of its own. Next, in another terminal:"
fi
cat <<READY
  run_scripts/direct.sh --input 'YOUR/*.ndjson' --output embedded$endpoints
Ctrl-C stops what was started here.
READY
while :; do
    require_running
    sleep 1 &
    wait "$!" # unlike a sleep in the foreground, this ends at once on a signal
done
