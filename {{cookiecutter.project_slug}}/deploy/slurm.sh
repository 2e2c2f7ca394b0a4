#!/bin/bash
# Trains on several machines of a SLURM cluster, from the project's folder, which all of them see (with its .venv):
#   sbatch deploy/slurm.sh [options of the command, as trainer.max_epochs=100]
# The run lies in logs/train/runs/slurm-<number of the job>, also after the job was requeued.
#SBATCH --job-name={{ cookiecutter.package_name }}
#SBATCH --nodes=2
# One process a GPU; not --gpus-per-task, which shows each process its own GPU alone.
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
# SIGTERM to this shell, two minutes before the time is over: enough to end a step and save it, and a validation if one is on.
#SBATCH --signal=B:TERM@120
# SLURM itself begins the job again after it lost a machine, or took one for another job without notice.
#SBATCH --requeue
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append

# A run that comes to no end is not begun again for ever.
most_restarts=20

# In the background, because bash hears a signal only while it waits; srun passes it on to all processes.
srun --kill-on-bad-exit=1 .venv/bin/python -m {{ cookiecutter.package_name }} train strategy=ddp "$@" &
step=$!
trap 'signalled=yes; kill -TERM "$step"' TERM
wait "$step" || wait "$step" # a signal ends the first `wait`, not the step
status=$?

# The exit code does not say why: after a failure, too, srun ends the other processes by SIGTERM. So a job is requeued
# when its time is over, or when it was told that another job takes its machines; not after scancel, which ends its
# state RUNNING, and not after a failure.
job=$(scontrol show job "$SLURM_JOB_ID")
if [[ $status != 0 && $job == *JobState=RUNNING* && (-v signalled || $job == *PreemptTime=[0-9]*) ]]; then
    if ((${SLURM_RESTART_COUNT:-0} < most_restarts)); then
        echo "slurm.sh: requeued, to go on from the last checkpoint."
        scontrol requeue "$SLURM_JOB_ID" && exit
    fi
    echo "slurm.sh: not requeued after $most_restarts restarts." >&2
fi
exit "$status"
