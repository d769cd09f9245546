#!/bin/bash
# A Slurm of two nodes with two fake GPUs each, on this machine: tests/system/slurm/up.sh FOLDER
# Needs root and Debian's slurm-wlm and munge. All of it stays on the loopback. down.sh ends it.
set -eu
folder=$1
mkdir -p "$folder"/{state,log,spool.n1,spool.n2}
chmod 755 "$folder"
export SLURM_CONF=$folder/slurm.conf
host=$(hostname)
dd if=/dev/urandom of="$folder/munge.key" bs=1 count=1024 status=none
chmod 400 "$folder/munge.key"
cat > "$SLURM_CONF" <<CONF
ClusterName=photozhpc
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=26817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.sock,cred_expire=20
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=6
InactiveLimit=0
KillWait=5
MinJobAge=3600
Waittime=0
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0,requeue_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
PropagateResourceLimits=NONE
GresTypes=gpu
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=27001 CPUs=2 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=27002 CPUs=2 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 OverSubscribe=NO
PartitionName=high Nodes=ALL Default=NO MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=off
PartitionName=low Nodes=ALL Default=NO MaxTime=INFINITE State=UP PriorityTier=0 PreemptMode=REQUEUE GraceTime=30
CONF
for number in 0 1; do
    [ -e "$folder/fakegpu$number" ] || mknod "$folder/fakegpu$number" c 1 3
done
echo "Name=gpu File=$folder/fakegpu[0-1]" > "$folder/gres.conf"
/usr/sbin/munged --force --key-file="$folder/munge.key" --socket="$folder/munge.sock" \
    --pid-file="$folder/munged.pid" --log-file="$folder/log/munged.log" \
    --seed-file="$folder/munge.seed"
slurmctld -f "$SLURM_CONF"
slurmd -N n1 -f "$SLURM_CONF"
slurmd -N n2 -f "$SLURM_CONF"
for _ in $(seq 120); do
    [ "$(sinfo -h -N -p main -o %T 2> /dev/null | grep -c idle)" = 2 ] && exit 0
    sleep 0.25
done
sinfo >&2
exit 1
