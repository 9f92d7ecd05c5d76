"""A private SLURM of one node, started from Debian's packages in a temporary folder and bound to the loopback alone."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What is unusual, each found by trying: processes are followed by /proc (no cgroups); cred_expire is also how long a requeued job
# waits; a job that is pre-empted gets the signal that it has asked for (newer SLURM: PreemptParameters=send_user_signal); the node
# has more CPUs than the machine.
CONFIG = """
ClusterName=guidedgen
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=1,sched_min_interval=0,requeue_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=5
MinJobAge=300
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=8000 Gres=gpu:4 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=10 GraceTime=20
PartitionName=urgent Nodes={host} MaxTime=INFINITE State=UP PriorityTier=20 PreemptMode=OFF
"""

# What submitit asks of sacct, which needs a database: the states of jobs, from scontrol.
SACCT = r"""#!/bin/sh
echo 'JobID|State|NodeList'
scontrol -o show jobs | sed -nE \
    's/^JobId=([0-9]+)( ArrayJobId=([0-9]+) ArrayTaskId=([0-9]+))?.* JobState=([A-Z]+).*/\1 \3_\4|\5|/p' \
    | sed -E 's/^([0-9]+) _/\1/; s/^[0-9]+ ([0-9]+_)/\1/'
"""


SWEEP = ["reward._target_=held.Held", "allow_targets=[held.]", "reward=compressibility", "seed=0,1,2", "method.num_particles=2",
         "dataset.limit=2", "scheduler.num_steps=4", "batch_size=1", "tracker=none", "device=cpu", "reference=none",
         "metrics=none"]  # fmt: skip
# A reward that waits at the second prompt while a file is there, so that a run is caught in the middle.
HELD = """
import os, time
from guidedgen.rewards.compressibility import Compressibility
class Held(Compressibility):
    first = None
    def __call__(self, images, tasks):
        Held.first = Held.first or tasks[0].id
        while tasks[0].id != Held.first and os.path.exists(os.environ["HOLD"]):
            time.sleep(0.02)
        return super().__call__(images, tasks)
"""


class Cluster:
    """The commands of the one-node SLURM in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = f"{folder}:/usr/sbin:{os.environ['PATH']}"
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": path, "OMP_NUM_THREADS": "1"}

    def __call__(self, *command: str, check: bool = True, cwd: Path | None = None) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=60, cwd=cwd)
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout.strip()

    def start(self) -> None:
        self._configure()
        munge = {name: str(self.folder / f"munge.{name}") for name in ("key", "socket", "log", "pid", "seed")}
        (self.folder / "munge.key").write_bytes(os.urandom(1024))
        (self.folder / "munge.key").chmod(0o600)
        options = {"key": "key-file", "socket": "socket", "log": "log-file", "pid": "pid-file", "seed": "seed-file"}
        self("munged", "--force", *(f"--{options[name]}={file}" for name, file in munge.items()))
        self("slurmctld", "-c")
        self("slurmd")
        wait(lambda: self("sinfo", "-h", "-p", "main", "-o", "%T", check=False) == "idle", "SLURM did not come up", 20)

    def _configure(self) -> None:
        host = socket.gethostname().split(".")[0]
        with socket.socket() as one, socket.socket() as other:
            for listener in (one, other):
                listener.bind(("127.0.0.1", 0))
            ports = [listener.getsockname()[1] for listener in (one, other)]
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        (self.folder / "slurm.conf").write_text(CONFIG.format(folder=self.folder, host=host, ports=ports))
        for i in range(4):  # stand-ins of GPUs: granted, and named in CUDA_VISIBLE_DEVICES
            self("mknod", str(self.folder / f"gpu{i}"), "c", "1", "3")
        (self.folder / "gres.conf").write_text("".join(f"Name=gpu File={self.folder}/gpu{i}\n" for i in range(4)))
        (self.folder / "sacct").write_text(SACCT)
        (self.folder / "sacct").chmod(0o755)

    def stop(self) -> None:
        self("scancel", "-u", "root", check=False)
        for name in ("slurmd", "slurmctld", "munge"):
            file = self.folder / f"{name}.pid"
            if file.exists():
                self("kill", file.read_text().strip(), check=False)
        wait(lambda: not any((self.folder / f"{name}.pid").exists() for name in ("slurmd", "slurmctld")), "SLURM goes on", 20)

    def job(self, number: str) -> dict[str, str]:
        """What SLURM says of a job or an array's task, as in 3 or 3_1."""
        return dict(re.findall(r"(\w+)=(\S*)", self("scontrol", "-o", "show", "job", number)))

    def wait_for(self, number: str, state: str, seconds: float = 60) -> dict[str, str]:
        wait(lambda: self.job(number)["JobState"] == state, lambda: f"{state} expected: {self.job(number)}", seconds)
        return self.job(number)


def wait(condition: Callable[[], object], message: str | Callable[[], str], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, message if isinstance(message, str) else message()
        time.sleep(0.1)


def lasting(folder: Path) -> dict[str, Any]:
    """Everything of a study that may not depend on how it was run, by its path."""
    kept: dict[str, Any] = {}
    for file in sorted(folder.glob("*/**/*")):
        name = str(file.relative_to(folder))
        if file.suffix == ".png" or file.name in ("trace.jsonl", "DONE"):
            kept[name] = file.read_bytes()
        elif file.name == "records.jsonl":
            kept[name] = [plain(json.loads(line)) for line in file.read_text().splitlines()]
        elif file.name == "metrics.json":
            kept[name] = plain(json.loads(file.read_text()))
    return kept


def plain(value: Any) -> Any:
    """Without what is measured of the machine."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in ("seconds", "peak_memory_mib")}
    return value


def python(*arguments: str, folder: Path, **environment: str) -> str:
    """Runs a script as a user does who stands in the folder, and returns what it prints."""
    known = {"PYTHONPATH": f"{folder}:{ROOT}", "HOLD": str(folder / "hold"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env={**os.environ, **known, **environment}, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if not all(shutil.which(name, path=f"/usr/sbin:{os.environ['PATH']}") for name in ("slurmctld", "slurmd", "sbatch", "munged")):
        pytest.skip("there is no SLURM here: apt-get install slurmctld slurmd slurm-client munge")
    if os.geteuid() != 0:
        pytest.skip("a SLURM of one's own needs root")
    made = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a local sweep of SWEEP leaves."""
    folder = tmp_path_factory.mktemp("local")
    (folder / "held.py").write_text(HELD)
    python(str(ROOT / "run.py"), "-m", *SWEEP, "outputs=here", folder=folder)
    left = lasting(folder / "here")
    assert len(left) == 3 * 7  # two images and their grid, records, trace, metrics, DONE
    return left
