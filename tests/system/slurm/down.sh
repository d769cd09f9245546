#!/bin/bash
# Ends what up.sh started: tests/system/slurm/down.sh FOLDER
folder=$1
export SLURM_CONF=$folder/slurm.conf
scancel --full -u root 2> /dev/null
for name in slurmd.n1 slurmd.n2 slurmctld munged; do
    [ -s "$folder/$name.pid" ] && kill "$(cat "$folder/$name.pid")" 2> /dev/null
done
sleep 1
pkill -9 -f "slurmstepd|-f $SLURM_CONF" 2> /dev/null
exit 0
