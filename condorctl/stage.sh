#!/bin/sh
# Runs a stage's command inside its job:
#
#     stage.sh [--final CODE,CODE...] OUTPUT... -- COMMAND [ARGUMENT...]
#
# HTCondor holds a job whose listed output is missing and brings back none of its logs, so a command
# that fails early would wait for a human. Hence each output exists from the start, and a command
# that ends well without writing one is a failure (74, EX_IOERR).
#
# DAGMan takes one exit code that no retry mends; with --final the first stands for all of them. The
# real one is in the job's record, with the machine and the hashes of the outputs, which condorctl
# reads (record.py). A container may have no more than a shell, so whatever else is missing here is
# missing in the record.

record=_condorctl_job
: >"$record"
# Where condorctl.job.checkpoint keeps what the job goes on from, as HTCondor was told.
checkpoints=checkpoints
mkdir -p "$checkpoints"
final=
if [ "$1" = --final ]; then
    final=$2
    shift 2
fi

outputs=
unwritten=
while [ "$1" != -- ]; do
    case $1 in */*) mkdir -p "${1%/*}" ;; esac
    # Listed one a line: HTCondor carries no name with a line break.
    outputs="$outputs$1
"
    # One that is empty may be of an earlier start of the job.
    if [ ! -s "$1" ] && [ ! -d "$1" ]; then
        : >"$1"
        unwritten="$unwritten$1
"
    fi
    shift
done
shift

devices=${CUDA_VISIBLE_DEVICES-$_CONDOR_AssignedGPUs}
gpus=
# HTCondor sets the number 10000 for a job that has no GPU.
[ "$devices" = 10000 ] && devices=
if [ "$devices" ] && command -v nvidia-smi >/dev/null && command -v timeout >/dev/null; then
    # It hangs when the driver is in trouble.
    gpus=$(timeout 20 nvidia-smi --format=csv,noheader,nounits \
        --query-gpu=index,uuid,name,memory.total,driver_version 2>/dev/null)
fi
started=$(date +%s 2>/dev/null)

"$@" &
command=$!
signalled=
# HTCondor signals this shell alone; `wait` returns early for a signal it has a trap for.
for signal in TERM INT HUP QUIT USR1 USR2; do
    trap "kill -s $signal $command 2>/dev/null; signalled=$signal" "$signal"
done
wait "$command"
status=$?
while kill -0 "$command" 2>/dev/null; do
    wait "$command"
    status=$?
done
trap - TERM INT HUP QUIT USR1 USR2
ended=$(date +%s 2>/dev/null)

set -f
IFS='
'
if [ "$status" -eq 0 ]; then
    for output in $unwritten; do
        if [ ! -s "$output" ] && [ ! -d "$output" ]; then
            echo "condorctl: the command ended well but did not write $output" >&2
            status=74
        fi
    done
fi
# Done, it goes on from nowhere; failed, its checkpoints come home with the rest.
[ "$status" -eq 0 ] && rm -rf "$checkpoints" && mkdir "$checkpoints"

{
    echo "condorctl-job 1"
    echo "host $(uname -n)"
    echo "kernel $(uname -srm)"
    echo "start $started"
    echo "end $ended"
    echo "exit $status"
    echo "devices $devices"
    for gpu in $gpus; do
        echo "gpu $gpu"
    done
    echo files
    # A job that must leave its machine has no time for this, and will start again; so will one
    # that ended to have its checkpoint kept (85).
    case $signalled-$status in *-85) ;; -* | USR?-*)
        for output in $outputs; do
            if [ -f "$output" ]; then
                sha256sum "$output"
                stat -c 'bytes %s %n' "$output"
            else
                find -H "$output" -type f -exec sha256sum {} +
                find -H "$output" -type f -exec stat -c 'bytes %s %n' {} +
            fi
        done
        ;;
    esac
} 2>/dev/null >"$record"

IFS=,
for code in $final; do
    if [ "$status" -eq "$code" ]; then
        exit "${final%%,*}"
    fi
done
exit "$status"
