#!/usr/bin/env bash
# Starts a TEI server here, waits until it answers, says what to run next, and stops it on Ctrl-C.
#
#   run_scripts/start_tei.sh [OPTIONS] [-- OPTIONS OF THE SERVER]
#
# The first of these ways that is there is taken:
#   docker    TEI's image: the one for NVIDIA GPUs where nvidia-smi finds one, otherwise the one for processors
#   program   text-embeddings-router on the PATH
#   embedded  Tayyar's own server, with a small model of its own: to try, not for speed
#
# Each option has a variable that stands for it where the option is not given:
#   --model MODEL            TEI_MODEL             its id on Hugging Face, or a folder
#                                                  (sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2)
#   --revision REVISION      TEI_REVISION          branch, tag or commit (the model's newest)
#   --pooling POOLING        TEI_POOLING           cls, mean, splade or last-token (what the model says)
#   --max_batch_tokens N     TEI_MAX_BATCH_TOKENS  tokens in one batch of the device (the server's: 16384)
#   --port PORT              TEI_PORT              where it answers, on this machine alone (8080)
#   --cache FOLDER           TEI_CACHE             what the image downloads is kept here (~/.cache/tei)
#   --image IMAGE            TEI_IMAGE             another image, as one built for your GPU
#   --way WAY                TEI_WAY               docker, program or embedded
#   --wait SECONDS           TEI_WAIT              for the first answer; a large model takes minutes (900)
#
# A model that needs a token to be downloaded: put it into HF_TOKEN. It is handed on by its name.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

default_model=sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2
images=ghcr.io/huggingface/text-embeddings-inference
model=${TEI_MODEL:-} revision=${TEI_REVISION:-} pooling=${TEI_POOLING:-} max_batch_tokens=${TEI_MAX_BATCH_TOKENS:-}
port=${TEI_PORT:-8080} cache=${TEI_CACHE:-$HOME/.cache/tei} image=${TEI_IMAGE:-} way=${TEI_WAY:-} wait=${TEI_WAIT:-900}
log='' server='' container=''

usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }

# Sets the variable of an option: give NAME VALUE.
give() {
    [ $# -eq 2 ] || fail "$1 needs a value; see --help"
    printf -v "${1#--}" %s "$2"
}

while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) usage && exit ;;
        --) shift && break ;;
        --model | --revision | --pooling | --max_batch_tokens | --port | --cache | --image | --way | --wait)
            give "${@:1:2}" && shift 2 ;;
        --model=* | --revision=* | --pooling=* | --max_batch_tokens=* | --port=* | --cache=* | --image=* | --way=* | --wait=*)
            give "${1%%=*}" "${1#*=}" && shift ;;
        *) fail "unknown option $1; see --help. Options of the server stand behind --" ;;
    esac
done
for number in port wait ${max_batch_tokens:+max_batch_tokens}; do
    [[ ${!number} =~ ^[1-9][0-9]{0,8}$ ]] || fail "--$number ${!number} is no whole number above 0"
done
url=http://127.0.0.1:$port

has_gpu() { nvidia-smi -L 2>/dev/null | grep -q GPU; }
has_docker() { docker info >/dev/null 2>&1; }

# Prints the first way that can be gone.
find_way() {
    if has_docker; then
        echo docker
    elif command -v text-embeddings-router >/dev/null; then
        echo program
    else
        echo embedded
    fi
}

# Prints the image for this machine.
image_here() {
    if has_gpu; then
        echo "$images:cuda-1.9"
    elif [[ $(uname -m) =~ ^(arm64|aarch64)$ ]]; then
        echo "$images:cpu-arm64-1.9"
    else
        echo "$images:cpu-1.9"
    fi
}

# Asks the server whether it is well. Behind a port that Docker publishes, a connection may be made and reset.
answers() {
    local status=''
    { exec 3<>"/dev/tcp/127.0.0.1/$port"; } 2>/dev/null || return 1
    printf 'GET /health HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' >&3 2>/dev/null && read -r -t 5 status <&3 || true
    exec 3>&-
    [[ $status == HTTP/*\ 200* ]]
}

is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; }

# Starts the server in the background, its output in the log.
start() {
    "$@" >"$log" 2>&1 &
    server=$!
}

start_docker() {
    has_docker || fail "docker does not answer. Start Docker, or see whether you may use it: docker info"
    image=${image:-$(image_here)}
    local options=(--rm --name "tayyar-tei-$port" -p "127.0.0.1:$port:80" -v "$cache:/data")
    if has_gpu; then
        options+=(--gpus all)
    fi
    if [ -n "${HF_TOKEN:-}" ]; then
        options+=(-e HF_TOKEN)
    fi
    if [ -d "$model" ]; then # a folder of this machine is to be seen in the container
        options+=(-v "$(CDPATH='' cd -- "$model" && pwd):/model:ro")
        model_options[1]=/model
    fi
    mkdir -p "$cache"
    echo "Starting $image with $model; the first time, image and model are downloaded."
    container=tayyar-tei-$port
    start docker run "${options[@]}" "$image" "${model_options[@]}" "$@"
}

start_program() {
    command -v text-embeddings-router >/dev/null || fail "text-embeddings-router is not on the PATH"
    echo "Starting text-embeddings-router with $model."
    start text-embeddings-router "${model_options[@]}" --hostname 127.0.0.1 --port "$port" "$@"
}

start_embedded() {
    if [ -n "$asked_for" ]; then
        fail "${asked_for% } needs TEI itself, and neither Docker nor text-embeddings-router is here. Install one of them, \
or leave the option out: Tayyar's own server has a small model of its own, intfloat/multilingual-e5-small."
    fi
    use_environment local
    echo "Starting Tayyar's own server with intfloat/multilingual-e5-small: to try, not for speed."
    # shellcheck disable=SC2086 # two words, or none
    start "$venv/bin/tayyar" serve --port "$port" ${max_batch_tokens:+--max_batch_tokens $max_batch_tokens} "$@"
}

# Shows the end of the log, and ends.
give_up() {
    printf '%s: %s. What it said last:\n' "$(basename -- "$0")" "$1" >&2
    tail -n 20 "$log" >&2
    exit 1
}

# Stops what was started, however this script ends.
# shellcheck disable=SC2329 # the trap calls it
stop() {
    trap - EXIT INT TERM
    if [ -n "$container" ]; then
        docker stop "$container" >/dev/null 2>&1 || true
    fi
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -f "$log"
}

asked_for=${model:+--model }${revision:+--revision }${pooling:+--pooling }
model=${model:-$default_model}
model_options=(--model-id "$model" ${revision:+--revision "$revision"} ${pooling:+--pooling "$pooling"}
    ${max_batch_tokens:+--max-batch-tokens "$max_batch_tokens"})
way=${way:-$(find_way)}
if is_taken; then
    fail "port $port is taken, perhaps by a server that runs already. Stop it, or give another port: --port $((port + 1))"
fi

log=$(mktemp)
trap stop EXIT
trap 'echo "Stopping."; exit 130' INT TERM
case $way in
    docker) start_docker "$@" ;;
    program) start_program "$@" ;;
    embedded) start_embedded "$@" ;;
    *) fail "--way $way is none of docker, program and embedded" ;;
esac
echo "Waiting for its first answer, at most $wait s. What it says: tail -f $log"
deadline=$((SECONDS + wait))
until answers; do
    if ! kill -0 "$server" 2>/dev/null; then
        give_up "the server ended before it answered"
    elif [ "$SECONDS" -ge "$deadline" ]; then
        give_up "the server does not answer after $wait s (--wait)"
    fi
    sleep 0.5
done
cat <<READY
$url answers. Next, in another terminal:
  run_scripts/direct.sh --input 'YOUR/*.ndjson' --output embedded --endpoint $url
Ctrl-C stops the server.
READY
wait "$server" || true
give_up "the server has ended"
