#!/bin/sh
# An array of Slurm, with a shard of the clips and a GPU for each of its tasks:
#
#     sbatch slurm.sh jobs.yaml -o /shared/out
#     sbatch --array=0-63 --dependency=singleton slurm.sh jobs.yaml -o /shared/out
#
# anyv2v batch takes its shard from SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT. A task that is
# preempted or comes to its time limit goes on where it was, when it is run again.
#SBATCH --job-name=anyv2v
#SBATCH --array=0-7
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
exec anyv2v batch "$@"
