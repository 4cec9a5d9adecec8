#!/bin/sh
# A shard of the clips for each of several machines, which ssh reaches and which have anyv2v:
#
#     HOSTS="gpu-1 gpu-2 gpu-3" sh cloud.sh s3://bucket/jobs.yaml -o s3://bucket/out
#
# A machine that is taken away loses the edit at which it is: run the same again. The exit status is
# 0 if all machines end with 0.
count=$(echo $HOSTS | wc -w) index=0 processes=
for host in $HOSTS; do
    ssh "$host" anyv2v batch "$@" --shard "$index/$count" &
    processes="$processes $!"
    index=$((index + 1))
done
status=0
for process in $processes; do
    wait "$process" || status=$?
done
exit $status
