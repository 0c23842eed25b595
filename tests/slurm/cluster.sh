#!/usr/bin/env bash
# A one-node Slurm on this machine for tests, from Debian's packages, reachable only from this machine.
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
  mkdir -p "$folder"/{controller,node,log}
  storage="AccountingStorageType=accounting_storage/none"
  [ -z "$accounting" ] || storage="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((port + 2))"
  # cred_expire: a requeued job waits until its credential expires, by default two minutes.
  cat > "$folder/slurm.conf" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
StateSaveLocation=$folder/controller
SlurmdSpoolDir=$folder/node
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MaxArraySize=101
EnforcePartLimits=ALL
KillWait=5
$storage
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes=$host MaxTime=1 State=UP
CONF
  echo "CgroupAutomount=no" > "$folder/cgroup.conf"
  export SLURM_CONF="$folder/slurm.conf"
  start_munge
  [ -z "$accounting" ] || running "$folder/slurmdbd.pid" || start_database
  running "$folder/slurmctld.pid" || slurmctld -f "$SLURM_CONF"
  running "$folder/slurmd.pid" || slurmd -f "$SLURM_CONF"
  for _ in $(seq 150); do
    case "$(sinfo -h -p main -o %T 2>/dev/null)" in idle|mixed|allocated) return ;; esac
    sleep 0.2
  done
  tail -5 "$folder"/log/*.log >&2
  die "the node did not become idle"
}

# Jobs are cancelled first, since a step retries for ever to report its end to the controller.
down() {
  export SLURM_CONF="$folder/slurm.conf"
  if running "$folder/slurmctld.pid"; then
    squeue -h -o %A | sort -u | xargs -r scancel || true
    for _ in $(seq 50); do [ -z "$(squeue -h 2>/dev/null)" ] && break; sleep 0.3; done
  fi
  for pid in slurmd.pid slurmctld.pid slurmdbd.pid database/pid; do
    running "$folder/$pid" && kill "$(cat "$folder/$pid")" 2>/dev/null || true
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
