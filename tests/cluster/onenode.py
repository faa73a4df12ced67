"""A one-node SLURM without accounting in a folder of its own, started and stopped by process id."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

MUNGE = Path("/run/munge")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
CONFIGURATION = """\
ClusterName=ci
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=256
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={controller}
SlurmdPort={node}
MinJobAge=300
KillWait=20
SlurmdTimeout=60
SlurmctldTimeout=60
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
CGROUP = "CgroupPlugin=cgroup/v1\nConstrainCores=no\nConstrainRAMSpace=no\n"


def missing() -> str:
    """Why there can be no SLURM here; an empty text where there can."""
    if os.geteuid() != 0:
        return "SLURM's services are started as root, and this is another user"
    absent = [name for name in PROGRAMS if _program(name) is None]
    return f"{absent[0]} is not installed (tests/cluster/packages.sh installs it)" if absent else ""


class OneNode:
    """A controller and a node on this machine; `environment` is what a client needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.munge: int | None = None
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        """Start munged (unless one runs), slurmctld and slurmd; wait until the node is idle."""
        self._configure()
        if not _alive(_pid(MUNGE / "munged.pid")):
            self._start_munge()
        for name in ("slurmctld", "slurmd"):
            subprocess.run([_program(name), "-f", str(self.folder / "slurm.conf")], check=True, env=os.environ | self.environment)
        wait_until(lambda: self.client("sinfo", "--noheader", "--format=%T") == "idle", "an idle node")

    def stop(self) -> None:
        """End what was started."""
        self.client("scancel", "--user=root")
        wait_until(lambda: not self.client("squeue", "--noheader"), "an empty queue")
        for pid in (_pid(self.folder / "slurmd.pid"), _pid(self.folder / "slurmctld.pid"), self.munge):
            _end(pid)

    def client(self, *command: str) -> str:
        """What one of SLURM's commands prints."""
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | self.environment)
        return done.stdout.strip()

    def _configure(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        memory = int(Path("/proc/meminfo").read_text().split()[1]) // 1024 - 512
        values = {"host": socket.gethostname().partition(".")[0], "cpus": os.cpu_count(), "memory": memory}
        text = CONFIGURATION.format(folder=self.folder, controller=_free_port(), node=_free_port(), **values)
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "cgroup.conf").write_text(CGROUP)

    def _start_munge(self) -> None:
        for folder in (MUNGE, Path("/var/log/munge"), Path("/var/lib/munge")):
            folder.mkdir(parents=True, exist_ok=True)
            shutil.chown(folder, "munge", "munge")
        MUNGE.chmod(0o755)
        subprocess.run(["runuser", "-u", "munge", "--", _program("munged"), f"--pid-file={MUNGE}/munged.pid"], check=True)
        wait_until((MUNGE / "munge.socket.2").exists, "munge's socket")
        self.munge = _pid(MUNGE / "munged.pid")


def wait_until(holds: Callable[[], object], what: str, seconds: float = 240) -> None:
    """Poll; AssertionError after `seconds`."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, f"{what} did not come in {seconds:.0f} s"
        time.sleep(0.2)


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _pid(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _alive(pid: int | None) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return pid is not None and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _end(pid: int | None) -> None:
    if _alive(pid):
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not _alive(pid), f"the end of process {pid}")
