#!/bin/sh
# How busy a job's GPUs are, while it runs:
#
#     gpus.sh DEVICES FILE
#
# DEVICES is what CUDA_VISIBLE_DEVICES says. FILE gets one line, written anew after each look:
# seconds looked at, mean utilisation of the GPUs in percent, the most memory that one of them had
# in use in MB. It goes on until it is killed; a look that fails says nothing.

devices=$1
file=$2

is_number() {
    case $1 in '' | *[!0-9]*) return 1 ;; esac
}

# CUDA takes numbers, UUIDs, and beginnings of UUIDs.
is_mine() {
    for device in $(echo "$devices" | tr , ' '); do
        case $device in
            "$1") return 0 ;;
            ?????*) case $2 in "$device"*) return 0 ;; esac ;;
        esac
    done
    return 1
}

# Soon at first, for stages that are short, then less and less often: it must cost nothing.
pause=1
looked=0
busy=0
peak=0
while :; do
    sleep "$pause"
    # It hangs when the driver is in trouble.
    seen=$(timeout 20 nvidia-smi --format=csv,noheader,nounits \
        --query-gpu=index,uuid,utilization.gpu,memory.used 2>/dev/null)
    number=0
    sum=0
    while IFS=', ' read -r index uuid utilisation memory; do
        is_number "$utilisation" && is_number "$memory" && is_mine "$index" "$uuid" || continue
        number=$((number + 1))
        sum=$((sum + utilisation))
        if [ "$memory" -gt "$peak" ]; then peak=$memory; fi
    done <<SEEN
$seen
SEEN
    if [ "$number" -gt 0 ]; then
        looked=$((looked + pause))
        busy=$((busy + pause * sum / number))
        echo "$looked $((busy / looked)) $peak" >"$file.new" && mv "$file.new" "$file"
    fi
    if [ "$pause" -lt 16 ]; then pause=$((pause * 2)); fi
done
