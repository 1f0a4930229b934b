"""How the processes of one run find each other, on SLURM and elsewhere."""

from __future__ import annotations

import os

from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

__all__ = ["cluster_environment"]


def cluster_environment() -> ClusterEnvironment | None:
    """How the processes of this run find each other; None leaves it to Lightning.

    Within SLURM, only what `srun` has started as several processes is one run of several processes; Lightning would
    take every job for that. It must not requeue either: tasks that share a directory would load each other's
    checkpoints, and the save would happen in the middle of an update (see `grok.stopping`).
    """
    if "SLURM_JOB_ID" not in os.environ or TorchElasticEnvironment.detect():
        return None
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return SLURMEnvironment(auto_requeue=False)
    return LightningEnvironment()
