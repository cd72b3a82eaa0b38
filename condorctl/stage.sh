#!/bin/sh
# Runs a stage's command inside its job:  stage.sh OUTPUT... -- COMMAND [ARGUMENT...]
#
# HTCondor holds a job whose listed output is missing and brings back none of its logs, so a command
# that fails early would wait for a human. Hence each output exists from the start, and a command
# that ends well without writing one is a failure (74, EX_IOERR).

outputs=
while [ "$1" != -- ]; do
    case $1 in */*) mkdir -p "${1%/*}" ;; esac
    if [ ! -e "$1" ]; then
        : >"$1"
        # Listed one a line: HTCondor carries no name with a line break.
        outputs="$outputs$1
"
    fi
    shift
done
shift

"$@" &
command=$!
# HTCondor signals this shell alone; `wait` returns early for a signal it has a trap for.
for signal in TERM INT HUP QUIT USR1 USR2; do
    trap "kill -s $signal $command 2>/dev/null" "$signal"
done
wait "$command"
status=$?
while kill -0 "$command" 2>/dev/null; do
    wait "$command"
    status=$?
done

if [ "$status" -eq 0 ]; then
    IFS='
'
    for output in $outputs; do
        if [ ! -s "$output" ] && [ ! -d "$output" ]; then
            echo "condorctl: the command ended well but did not write $output" >&2
            status=74
        fi
    done
fi
exit "$status"
