"""`grok fit` on several processes, as a person starts it: what happens when one of them dies, and on two "nodes"."""

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from tiny_configuration import TINY

from grok.callbacks import Evaluation
from grok.errors import BadInput
from grok.records import RunRecord

DYING = """
import os, signal, time
import lightning as L

class Dies(L.Callback):
    def __init__(self, rank: int = 1, how: str = "kill"):
        self.rank, self.how = rank, how

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_rank == self.rank and trainer.global_step >= 25:
            if self.how in ("kill", "kill while the other is busy"):
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError("a mistake in a callback")
        elif self.how == "kill while the other is busy" and trainer.global_step >= 25:
            time.sleep(20)
"""
ROOT = Path(__file__).resolve().parents[2]
GROK = [sys.executable, "-m", "grok"]


def torchrun(*options):
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m", "grok"]


def start(directory, program, *arguments):
    """A `grok fit` of two processes that would go on for ever."""
    (directory / "dying.py").write_text(DYING)
    (directory / "endless.yaml").write_text(TINY.replace("max_steps: 60", "max_steps: 1000000"))
    command = [*program, "fit", "--config", "endless.yaml", "--trainer.strategy", "ddp", *map(str, arguments)]
    path = f"{directory}{os.pathsep}{ROOT}"
    return subprocess.Popen(
        command, cwd=directory, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("program", [GROK, torchrun("--standalone", "--nproc-per-node", "2")], ids=["grok", "torchrun"])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("how", ["kill", "raise"])
def test_a_process_that_dies_ends_the_others_and_the_error_is_visible(tmp_path, program, rank, how):
    callback = ["--trainer.callbacks", "dying.Dies", "--trainer.callbacks.rank", rank, "--trainer.callbacks.how", how]
    began = time.monotonic()
    process = start(tmp_path, program, "--trainer.devices", 2, "--run_dir", "run", *callback)
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert time.monotonic() - began < 60 + 30  # half a minute to start
    assert process.returncode != 0
    if how == "raise":
        assert "ZeroDivisionError: a mistake in a callback" in output
    else:
        assert "another process of this run has ended" in output or "SIGKILL" in output
    for _ in range(100):
        if not _running_in(tmp_path):
            break
        time.sleep(0.1)
    assert not _running_in(tmp_path)


def _running_in(directory):
    """Processes by their working directory: their command lines do not all name it."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            found += [place] if place.readlink() == directory else []
    return found


@pytest.mark.slow
def test_a_process_that_dies_while_the_first_is_busy_is_told(tmp_path):
    how = ["--trainer.callbacks", "dying.Dies", "--trainer.callbacks.how", "kill while the other is busy"]
    process = start(tmp_path, GROK, "--trainer.devices", 2, "--run_dir", "run", *how)
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode != 0
    assert "terminated with code -9" in output


@pytest.mark.slow
def test_a_run_of_two_processes_that_diverges_says_so_once(tmp_path):
    diverging = ["--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=1e30", "--model.schedule=null"]
    process = start(tmp_path, GROK, "--trainer.devices", 2, "--run_dir", "run", "--last.every=1", *diverging)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert output.count("error: the ") == 1
    assert "last good checkpoint: run/last.ckpt, of step" in output


@pytest.mark.slow
def test_two_nodes_of_two_processes_meet_and_train_what_one_process_trains(grok, tmp_path):
    """As scripts/slurm/README.md says for machines without SLURM, with both nodes on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    usual = ["--trainer.max_steps", 40, "--trainer.precision", "64-true", "--model.net.dropout", 0]
    nodes = []
    for node in (0, 1):
        options = ["--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "2"]
        options += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
        nodes.append(
            start(
                tmp_path,
                torchrun(*options),
                *usual,
                "--trainer.num_nodes",
                2,
                "--trainer.devices",
                2,
                "--run_dir",
                "run",
            )
        )
    for node in nodes:
        output, _ = node.communicate(timeout=300)
        assert node.returncode == 0, output[-3000:]
    assert grok("fit", "--config", "endless.yaml", "--run_dir", "alone", *usual)[0] == 0
    one, four = (
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"] for name in ("alone", "run")
    )
    torch.testing.assert_close(four, one, rtol=1e-9, atol=1e-9)
    assert RunRecord(tmp_path / "run").rows("accuracy") == RunRecord(tmp_path / "alone").rows("accuracy")


@pytest.mark.slow
def test_where_a_run_is_computed_may_change_when_it_goes_on(grok, tiny_config, tmp_path, monkeypatch, hashes):
    run = tmp_path / "run"
    assert grok("fit", "--config", tiny_config, "--run_dir", tmp_path / "whole")[0] == 0

    def cut(self, trainer, *_):
        if trainer.global_step == 30:
            raise BadInput("cut")
        original(self, trainer)

    original = Evaluation.on_train_batch_end
    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "on_train_batch_end", cut)
        assert grok("fit", "--config", tiny_config, "--run_dir", run, "--trainer.devices", 1)[0] == 2
    before = (run / "config.yaml").read_text()
    ddp = ("--trainer.strategy", "lightning.pytorch.strategies.DDPStrategy", "--trainer.strategy.timeout", "2:00:00")
    status, output, _ = grok("fit", "--config", tiny_config, "--run_dir", run, "--trainer.devices", 1, *ddp)
    assert (status, "Resuming" in output) == (0, True)
    assert hashes(run) == hashes(tmp_path / "whole")
    moved = ("--trainer.devices", "auto", "--trainer.strategy", "ddp", "--trainer.accelerator", "auto")
    status, output, _ = grok("fit", "--config", tiny_config, "--run_dir", run, *moved)
    assert (status, "is finished; nothing to do" in output) == (0, True)
    patient = (
        "--trainer.strategy",
        "lightning.pytorch.strategies.DDPStrategy",
        "--trainer.strategy.timeout",
        "2:00:00",
    )
    assert grok("fit", "--config", tiny_config, "--run_dir", run, "--trainer.devices", 1, *patient)[0] == 0
    assert (run / "config.yaml").read_text() == before
    status, _, errors = grok("fit", "--config", tiny_config, "--run_dir", run, *moved, "--trainer.max_steps", 80)
    assert (status, "trainer.max_steps: 60 in the run, 80 now" in errors) == (2, True)
