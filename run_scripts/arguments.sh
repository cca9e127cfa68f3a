# shellcheck shell=bash
# Sourced by the scripts that print their own help, or add options of Beam to those that they are given, in the array
# `arguments`.

# Prints the comment at the script's beginning and ends it, where help is asked for.
help_if_asked() {
    if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
        sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0"
        exit
    fi
}

# Takes `check` off the beginning: the same options, but ten documents instead of the job.
# shellcheck disable=SC2034 # whoever calls it uses them
take_command() {
    command=run arguments=("$@")
    if [ "${1:-}" = check ]; then
        command=check arguments=("${@:2}")
    fi
}

# Prints the value of an option among the arguments; fails if it is not there.
value_of() {
    local name=--$1 argument next=''
    for argument in "${arguments[@]+"${arguments[@]}"}"; do
        if [ -n "$next" ]; then
            echo "$argument" && return
        fi
        case $argument in
            "$name") next=yes ;;
            "$name"=*) echo "${argument#*=}" && return ;;
        esac
    done
    return 1
}

# Adds an option unless it was given.
default() {
    value_of "$1" >/dev/null || arguments+=("--$1" "$2")
}
