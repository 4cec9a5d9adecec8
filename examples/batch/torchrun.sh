#!/bin/sh
# One process for each GPU of this machine, each with a shard of the clips:
#
#     sh torchrun.sh jobs.yaml -o out
#
# torchrun sets RANK, WORLD_SIZE and LOCAL_RANK, from which anyv2v batch takes its shard and its
# GPU. PROCESSES=4 says how many processes; on a machine without a GPU it must be given. Where an
# edit failed the exit status is 1, by which torchrun would end the other processes too, so it is
# taken for success here: out/failed.jsonl has what failed.
exec torchrun --standalone --nproc-per-node "${PROCESSES:-gpu}" --no-python \
    sh -c 'anyv2v batch "$@" || [ $? -eq 1 ]' sh "$@"
