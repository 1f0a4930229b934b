"""A SLURM cluster of one node for the session, and sweeps to send to it."""

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from quick_run import CONFIG

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts/slurm"


def pytest_collection_modifyitems(items):
    missing = [name for name in ("slurmctld", "slurmd", "munged") if not (shutil.which(name) or _in_sbin(name))]
    reason = f"{missing[0]} is not installed" if missing else "slurmd needs root" if os.geteuid() else None
    for item in items:
        if item.get_closest_marker("slurm") and reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def _in_sbin(name):
    return (Path("/usr/sbin") / name).exists()


class Cluster:
    """What a person does at a shell of the login node."""

    scripts = SCRIPTS

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.program = directory / "grok"
        self.program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m grok "$@"\n')
        self.program.chmod(0o755)
        self.environment = {**os.environ, "GROK": str(self.program), "OMP_NUM_THREADS": "1"}
        self.environment["PATH"] += ":/usr/sbin"
        self.environment["SLURM_CONF"] = str(directory / "slurm.conf")

    def do(self, *command) -> str:
        """Run a command and return what it prints."""
        words = [str(word) for word in command]
        done = subprocess.run(words, env=self.environment, cwd=self.directory, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def signal(self, *options) -> None:
        """Signal a job. scancel takes some answers for a failure and tries again for half a minute: once is enough."""
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(["scancel", "--signal=TERM", *options], env=self.environment, timeout=1)

    def submit(self, sweep: Path, *options) -> str:
        """Submit what is missing of a sweep; returns the job's number, or nothing if nothing is missing."""
        told = self.do(SCRIPTS / "submit", sweep, *options)
        return told.split()[-1] if told.startswith("Submitted") else ""

    def states(self, job: str = "") -> dict[str, str]:
        """State of every task that has not ended."""
        lines = self.do("squeue", "--noheader", "--array", "--format=%i %T", *(["--jobs", job] if job else []))
        return dict(line.split() for line in lines.splitlines())

    def wait(self, what, seconds=180.0):
        """Wait until `what()` is true."""
        deadline = time.monotonic() + seconds
        while not (result := what()):
            assert time.monotonic() < deadline, f"nothing within {seconds} s; the queue: {self.states()}\n{self.logs()}"
            time.sleep(0.25)
        return result

    def wait_for_end(self) -> None:
        """Wait until the queue is empty; a job that is requeued is held for a minute each time."""
        self.wait(lambda: not self.states(), seconds=600.0)

    def logs(self) -> str:
        """The end of every log, for the message of a failing test."""
        paths = sorted(self.directory.parent.rglob("slurm_*.txt"))
        return "\n".join(f"{path}:\n{path.read_text()[-600:]}" for path in paths)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cluster")
    cluster = Cluster(directory)
    cluster.do(SCRIPTS / "local_cluster", "start", directory)
    yield cluster
    cluster.do(SCRIPTS / "local_cluster", "stop", directory)


@pytest.fixture(scope="session")
def plan(cluster, tmp_path_factory):
    """Plan a sweep over seeds; always the same grid."""

    def plan(name: str, seeds: str, *options: str) -> Path:
        directory = tmp_path_factory.mktemp("sweeps")
        (directory / "base.yaml").write_text(yaml.safe_dump(CONFIG))
        asked = ("--base", directory / "base.yaml", "--grid", f"seed_everything={seeds}")
        cluster.do(cluster.program, "sweep", "plan", *asked, *options, "--sweep_dir", directory / name)
        return directory / name

    return plan


@pytest.fixture(scope="session")
def twins(cluster, plan) -> Path:
    """The runs of all seeds, never disturbed, by `grok sweep run`."""
    sweep = plan("twins", "0..7")
    cluster.do(cluster.program, "sweep", "run", sweep, "--workers", "2")
    return sweep
