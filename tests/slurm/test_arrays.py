"""Arrays on a real SLURM: whatever happens to a task, it ends with the bits of its undisturbed twin."""

import json
import subprocess
from collections import Counter

import pytest
from quick_run import CONFIG

from grok.records import RunRecord

pytestmark = pytest.mark.slurm


def insist_on_twins(sweep, twins, seeds):
    """Weights, record and evaluations of every run are those of the twin, and nobody else has written there."""
    names = [f"seed={seed}" for seed in seeds]
    assert sorted(path.name for path in (sweep / "runs").iterdir()) == names
    for name in names:
        run, twin = sweep / "runs" / name, twins / "runs" / name
        for file in ("series/manifest.json", "metrics.jsonl"):
            assert (run / file).read_text() == (twin / file).read_text(), (name, file)
        mine, yours = (
            {key: value for key, value in RunRecord(one).summary().items() if "second" not in key}
            for one in (run, twin)
        )
        assert mine == yours
        assert mine["finished"]
        assert scalars(run) == scalars(twin)


def scalars(run):
    """Every scalar of the event files, with how often it stands there."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return Counter(
        (value.tag, event.step, value.tensor.float_val[0])
        for path in (run / "tensorboard").glob("events*")
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
    )


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
    node = cluster.do("sinfo", "--noheader", "--format=%n").strip()
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
    """Four runs, each disturbed in another way as soon as it is in the middle."""
    sweep = plan("disturbed", "0..3")
    job = cluster.submit(sweep)
    disturbances = {
        0: lambda: cluster.do("scontrol", "requeue", f"{job}_0"),
        1: lambda: cluster.signal("--batch", f"{job}_1"),
        2: lambda: subprocess.run(["pkill", "-KILL", "-f", f"sweep task {sweep} 2"], check=True),
        3: lambda: cluster.do("scancel", f"{job}_3"),
    }

    def disturb():
        for seed in [seed for seed in disturbances if 0 < step(sweep, seed) < CONFIG["trainer"]["max_steps"]]:
            disturbances.pop(seed)()
        return not disturbances

    cluster.wait(disturb)
    cluster.wait_for_end()
    return sweep


@pytest.mark.parametrize(
    ("seed", "told"),
    [(0, "stopped by SIGTERM"), (1, "stopped by SIGTERM"), (2, ""), (3, "stopped by SIGTERM")],
    ids=["scontrol requeue", "scancel --signal=TERM", "SIGKILL", "scancel"],
)
def test_a_disturbed_task_goes_on_to_the_same_end(cluster, disturbed, twins, seed, told):
    if seed == 3:  # cancelled for good: it is not requeued, and comes back when it is submitted again
        summary = RunRecord(disturbed / "runs/seed=3").summary()
        assert not summary["finished"]
        assert cluster.do(cluster.program, "sweep", "status", disturbed, "--missing").strip() == "3"
        cluster.submit(disturbed)
        cluster.wait_for_end()
    assert told in log(disturbed, seed)
    assert "Resuming" in log(disturbed, seed)
    if seed == 3:
        insist_on_twins(disturbed, twins, range(4))


def test_a_time_limit_is_survived_by_the_signal_before_it(cluster, plan, twins):
    sweep = plan("short", "0..1")
    cluster.submit(sweep, "--time=1", "--signal=B:USR1@50")  # at about ten seconds: once or twice before the end
    cluster.wait_for_end()
    assert "stopped by SIGUSR1" in log(sweep, 0) + log(sweep, 1)
    assert "requeueing, it goes on from its last checkpoint" in cluster.logs()
    insist_on_twins(sweep, twins, range(2))


def test_two_arrays_with_one_grid_and_one_array_submitted_twice_share_nothing(cluster, plan, twins):
    one, other = plan("one", "0..1"), plan("other", "0..1")
    first = cluster.submit(one)
    again = cluster.submit(one)  # before any of its runs has begun
    cluster.submit(other)
    assert first != again
    cluster.wait_for_end()
    for sweep in (one, other):
        insist_on_twins(sweep, twins, range(2))
    assert log(one, 0).count("Training in") == 1
    assert "nothing to do" in log(one, 0) or "another process" in log(one, 0)
    assert str(other) not in log(one, 0) + log(one, 1)
