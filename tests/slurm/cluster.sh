#!/usr/bin/env bash
# A Slurm of two nodes on this machine for tests, from Debian's packages, reachable only from this machine. Each node is
# a slurmd. Tasks are bound to their cores (task/affinity) and, where the kernel lets this user make control groups
# (version 1), to the memory of their job.
#   tests/slurm/cluster.sh install                 installs the packages (needs root)
#   tests/slurm/cluster.sh up FOLDER [accounting]  starts a cluster with all its files in FOLDER; with slurmdbd on MariaDB
#   tests/slurm/cluster.sh down FOLDER             stops the cluster in FOLDER
# Clients find it by SLURM_CONF=FOLDER/slurm.conf. Several can run at once: ports are derived from the folder's name.
set -euo pipefail

die() { echo "cluster.sh: $*" >&2; exit 1; }
running() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

install() {
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge slurmdbd mariadb-server >/dev/null
}

# munge authenticates the daemons' messages; one munge daemon serves all clusters of this machine.
start_munge() {
  munge -n >/dev/null 2>&1 && return
  mkdir -p /run/munge
  [ -s /etc/munge/munge.key ] || head -c 1024 /dev/urandom > /etc/munge/munge.key
  chown -R munge:munge /etc/munge /run/munge /var/lib/munge /var/log/munge
  chmod 400 /etc/munge/munge.key
  chmod 755 /run/munge
  runuser -u munge -- munged
}

# Whether jobs can be held to their memory: controllers of version 1, in which this user may make a group.
has_control_groups() {
  for controller in memory freezer; do
    mkdir "/sys/fs/cgroup/$controller/shaping-test-$$" 2>/dev/null || return 1
    rmdir "/sys/fs/cgroup/$controller/shaping-test-$$"
  done
}

start_database() {
  mkdir -p "$folder/database"
  chown mysql:mysql "$folder/database"
  chmod 755 "$folder"
  mariadb-install-db --user=mysql --datadir="$folder/database" --auth-root-authentication-method=normal >/dev/null
  mariadbd --user=mysql --datadir="$folder/database" --socket="$folder/database/socket" --port=$((port + 3)) \
    --bind-address=127.0.0.1 --pid-file="$folder/database/pid" --innodb-buffer-pool-size=64M \
    --innodb-flush-log-at-trx-commit=0 \
    >"$folder/log/mariadb.log" 2>&1 &
  for _ in $(seq 300); do mariadb-admin --socket="$folder/database/socket" ping >/dev/null 2>&1 && break; sleep 0.2; done
  mariadb --socket="$folder/database/socket" -e "create database accounting;
    create user slurm@localhost identified by 'slurm'; create user slurm@'127.0.0.1' identified by 'slurm';
    grant all on accounting.* to slurm@localhost; grant all on accounting.* to slurm@'127.0.0.1';"
  cat > "$folder/slurmdbd.conf" <<CONF
DbdHost=$host
DbdAddr=127.0.0.1
DbdPort=$((port + 2))
SlurmUser=root
AuthType=auth/munge
LogFile=$folder/log/slurmdbd.log
PidFile=$folder/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((port + 3))
StorageUser=slurm
StoragePass=slurm
StorageLoc=accounting
CONF
  chmod 600 "$folder/slurmdbd.conf"
  SLURM_CONF="$folder/slurm.conf" slurmdbd
  for _ in $(seq 300); do sacctmgr -n show cluster >/dev/null 2>&1 && break; sleep 0.2; done
  sacctmgr -n show cluster >/dev/null 2>&1 || { tail -5 "$folder/log/slurmdbd.log" >&2; die "slurmdbd does not answer"; }
  sacctmgr -i add cluster tests >/dev/null
  sacctmgr -i add account tests Cluster=tests >/dev/null
  sacctmgr -i add user root Account=tests Cluster=tests >/dev/null
}

up() {
  [ "$(id -u)" = 0 ] || die "it must run as root"
  for program in slurmctld slurmd munged; do
    command -v "$program" >/dev/null || die "$program is not installed; tests/slurm/cluster.sh install"
  done
  host=$(hostname -s)
  port=$((20000 + $(cksum <<<"$folder" | cut -d' ' -f1) % 1000 * 10))
  # Names differ between clusters, since a node's name is part of the path of its control groups.
  nodes=("a$port" "b$port")
  mkdir -p "$folder"/{controller,log} "${nodes[@]/#/$folder/}"
  cpus=$(getconf _NPROCESSORS_ONLN)  # nproc heeds OMP_NUM_THREADS
  [ "$cpus" -le 2 ] || cpus=2
  tracking=proctrack/linuxproc tasks=task/affinity
  if has_control_groups; then
    tracking=proctrack/cgroup tasks=task/cgroup,task/affinity
    printf '%s\n' CgroupPlugin=cgroup/v1 CgroupAutomount=no ConstrainRAMSpace=yes ConstrainCores=no > "$folder/cgroup.conf"
  else
    echo "CgroupAutomount=no" > "$folder/cgroup.conf"
  fi
  storage="AccountingStorageType=accounting_storage/none"
  [ -z "$accounting" ] || storage="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((port + 2))"
  # cred_expire: a requeued job waits until its credential expires, by default two minutes.
  cat > "$folder/slurm.conf" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
MpiDefault=none
ProctrackType=$tracking
TaskPlugin=$tasks
TaskPluginParam=autobind=cores
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/%n.log
StateSaveLocation=$folder/controller
SlurmdSpoolDir=$folder/%n
SlurmdTimeout=20
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1500
SlurmdParameters=config_overrides
MaxArraySize=101
EnforcePartLimits=ALL
KillWait=5
$storage
NodeName=${nodes[0]} NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1)) Sockets=1 CoresPerSocket=$cpus ThreadsPerCore=1 RealMemory=4000 State=UNKNOWN
NodeName=${nodes[1]} NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 4)) Sockets=1 CoresPerSocket=$cpus ThreadsPerCore=1 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes=ALL MaxTime=1 State=UP
CONF
  export SLURM_CONF="$folder/slurm.conf"
  start_munge
  [ -z "$accounting" ] || running "$folder/slurmdbd.pid" || start_database
  running "$folder/slurmctld.pid" || slurmctld -f "$SLURM_CONF"
  for node in "${nodes[@]}"; do
    running "$folder/$node.pid" || slurmd -N "$node" -f "$SLURM_CONF"
  done
  for _ in $(seq 150); do
    [ "$(sinfo -h -N -p main -o %T 2>/dev/null | grep -cE '^(idle|mixed|allocated)$')" = "${#nodes[@]}" ] && return
    sleep 0.2
  done
  tail -5 "$folder"/log/*.log >&2
  die "the nodes did not become idle"
}

# Jobs are cancelled first, since a step retries for ever to report its end to the controller.
down() {
  export SLURM_CONF="$folder/slurm.conf"
  if running "$folder/slurmctld.pid"; then
    squeue -h -o %A | sort -u | xargs -r scancel || true
    for _ in $(seq 50); do [ -z "$(squeue -h 2>/dev/null)" ] && break; sleep 0.3; done
  fi
  for pid in "$folder"/*.pid "$folder/database/pid"; do
    running "$pid" && kill "$(cat "$pid")" 2>/dev/null || true
  done
  for process in /proc/[0-9]*; do  # steps that are still running
    case "$(cat "$process/comm" 2>/dev/null)" in slurmstepd*|slurmd*) ;; *) continue ;; esac
    if tr '\0' '\n' 2>/dev/null <"$process/environ" | grep -qx "SLURM_CONF=$SLURM_CONF"; then
      kill -9 "${process#/proc/}" 2>/dev/null || true
    fi
  done
}

case "${1:-}" in
  install) install ;;
  up) folder=$2 accounting=${3:-}; up ;;
  down) folder=$2; down ;;
  *) die "install, up FOLDER [accounting] or down FOLDER" ;;
esac
