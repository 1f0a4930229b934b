"""Jobs of several processes: two at once on one node do not collide, and one that is stopped goes on."""

import pytest
import yaml
from quick_run import CONFIG

from grok.records import RunRecord

pytestmark = pytest.mark.slurm


def test_two_jobs_of_two_processes_at_once_one_of_them_stopped(cluster, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    parallel = ("--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.max_steps", "400")
    frequent = ("--last.every", "50", "--series.every", "200", "--evaluation.every", "100")

    def submit(name):
        output = tmp_path / f"slurm_{name}.txt"
        command = (
            "sbatch",
            "--partition=shared",
            "--ntasks-per-node=2",
            f"--output={output}",
            cluster.scripts / "multi_node.sh",
        )
        told = cluster.do(*command, "--config", config, "--run_dir", tmp_path / name, *parallel, *frequent)
        return told.split()[-1]

    submit("whole")
    stopped = submit("stopped")
    record = RunRecord(tmp_path / "stopped")
    cluster.wait(lambda: record.metrics_path.exists() and record.rows())
    cluster.signal(stopped)
    cluster.wait_for_end()
    told = (tmp_path / "slurm_stopped.txt").read_text()
    assert "stopped by SIGTERM" in told
    assert "requeueing" in told
    assert "Resuming" in told
    for file in ("series/manifest.json", "metrics.jsonl"):
        assert (tmp_path / "stopped" / file).read_text() == (tmp_path / "whole" / file).read_text()
    assert record.summary()["finished"]
