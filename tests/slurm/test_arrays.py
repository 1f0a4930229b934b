"""Arrays on a real SLURM: whatever happens to a task, it ends with the bits of its undisturbed twin."""

import json
import subprocess

import pytest
from quick_run import CONFIG

from grok.records import RunRecord
from grok.report.tensorboard import read_scalars

pytestmark = pytest.mark.slurm


def insist_on_twins(sweep, twins, seeds):
    """Every run equals its twin, and nothing else lies there."""
    assert sorted(path.name for path in (sweep / "runs").iterdir()) == [f"seed={seed}" for seed in seeds]
    for seed in seeds:
        insist_on_twin(sweep / f"runs/seed={seed}", twins / f"runs/seed={seed}")


def insist_on_twin(run, twin):
    """Weights, record and events of a run are those of the twin, and nobody else has written there."""
    for file in ("series/manifest.json", "metrics.jsonl"):
        assert (run / file).read_text() == (twin / file).read_text(), file
    mine, yours = (
        {key: value for key, value in RunRecord(one).summary().items() if "second" not in key} for one in (run, twin)
    )
    assert mine == yours
    assert mine["finished"]
    assert read_scalars(run) == read_scalars(twin)


def log(sweep, seed):
    return (sweep / f"logs/seed={seed}.log").read_text()


def step(sweep, seed):
    """Step of the last checkpoint of a run."""
    try:
        return json.loads((sweep / f"runs/seed={seed}/saved.json").read_text())[0]["step"]
    except (FileNotFoundError, json.JSONDecodeError):
        return -1


def test_an_array_of_eight_over_two_cores_with_the_node_drained_and_returned(cluster, plan, twins):
    sweep = plan("eight", "0..7")
    job = cluster.submit(sweep)
    node = cluster.do("sinfo", "--noheader", "--Node", "--format=%N").split()[0]
    cluster.wait(lambda: step(sweep, 0) >= 0)
    cluster.do("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    cluster.wait(lambda: set(cluster.states(job).values()) == {"PENDING"})  # what ran has come to its end
    assert RunRecord(sweep / "runs/seed=0").summary()["finished"]
    assert step(sweep, 7) == -1
    cluster.do("scontrol", "update", f"nodename={node}", "state=resume")
    cluster.wait_for_end()
    insist_on_twins(sweep, twins, range(8))
    assert cluster.submit(sweep) == ""  # nothing is missing


@pytest.fixture(scope="module")
def disturbed(cluster, plan):
    """Five runs, each disturbed in another way as soon as it is in the middle."""
    sweep = plan("disturbed", "0..4")
    job = cluster.submit(sweep)
    disturbances = {
        0: lambda: cluster.do("scontrol", "requeue", f"{job}_0"),
        1: lambda: cluster.signal("--batch", f"{job}_1"),
        2: lambda: subprocess.run(["pkill", "-KILL", "-f", f"sweep task {sweep} 2"], check=True),
        3: lambda: cluster.do("scancel", f"{job}_3"),
        4: lambda: cluster.do("sbatch", "--partition=urgent", "--ntasks=2", "--output=/dev/null", "--wrap=sleep 1"),
    }

    def disturb():
        for seed in [seed for seed in disturbances if 0 < step(sweep, seed) < CONFIG["trainer"]["max_steps"]]:
            disturbances.pop(seed)()
        return not disturbances

    cluster.wait(disturb)
    cluster.wait_for_end()
    return sweep


@pytest.mark.parametrize(
    ("seed", "told", "requeued"),
    [
        (0, "stopped by SIGTERM", "status 75 (stopped by a signal, everything is saved)\n"),  # SLURM does it
        (1, "stopped by SIGTERM", "status 75 (stopped by a signal, everything is saved): requeueing"),
        (2, "Training in", "status 137 (killed by signal 9): requeueing"),
        (4, "stopped by SIGTERM", "status 75 (stopped by a signal, everything is saved)\n"),
    ],
    ids=["scontrol requeue", "scancel --signal=TERM", "SIGKILL", "preemption"],
)
def test_a_disturbed_task_goes_on_to_the_same_end(disturbed, twins, seed, told, requeued):
    assert told in log(disturbed, seed)
    assert "Resuming" in log(disturbed, seed)
    assert requeued in next((disturbed / "logs").glob(f"slurm_*_{seed}.txt")).read_text()
    insist_on_twin(disturbed / f"runs/seed={seed}", twins / f"runs/seed={seed}")


def test_a_cancelled_task_is_not_requeued_and_comes_back_when_it_is_submitted_again(cluster, disturbed, twins):
    assert not RunRecord(disturbed / "runs/seed=3").summary()["finished"]
    assert cluster.do(cluster.program, "sweep", "status", disturbed, "--missing").strip() == "3"
    cluster.submit(disturbed)
    cluster.wait_for_end()
    insist_on_twin(disturbed / "runs/seed=3", twins / "runs/seed=3")


def test_a_time_limit_is_survived_by_the_signal_before_it(cluster, plan):
    """The warning comes up to half a minute early or late: the run must need more than the minute it is given."""
    longer = ("--set", "trainer.max_steps=10000", "--set", "evaluation.every=2000", "--set", "last.every=5000")
    sweep, twin = plan("limited", "0..0", *longer), plan("unlimited", "0..0", *longer)
    cluster.submit(sweep, "--time=1", "--signal=B:USR1@40")
    cluster.do(cluster.program, "sweep", "run", twin, "--workers", "1")
    cluster.wait_for_end()
    assert "stopped by SIGUSR1" in log(sweep, 0)
    assert "requeueing, it goes on from its last checkpoint" in next((sweep / "logs").glob("slurm_*")).read_text()
    insist_on_twins(sweep, twin, range(1))


def test_one_array_submitted_twice_and_two_arrays_with_one_grid_share_nothing(cluster, plan, twins):
    one, other = plan("one", "0..0"), plan("other", "0..0")
    (one / "logs").mkdir()  # where SLURM writes must be there
    output = f"--output={one}/logs/slurm_%A_%a.txt"
    for _ in range(2):  # without asking what is missing: both start at once
        cluster.do("sbatch", "--array=0", output, cluster.scripts / "array.sh", one)
    cluster.submit(other)
    cluster.wait_for_end()
    for sweep in (one, other):
        insist_on_twins(sweep, twins, range(1))
    assert log(one, 0).count("Training in") == 1
    told = "".join(path.read_text() for path in (one / "logs").glob("slurm_*"))
    assert "another process is training" in told or "is being trained by another process" in told
    assert str(other) not in told
