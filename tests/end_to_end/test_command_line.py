"""The command line as a person uses it, in process."""

import json

import pytest
import torch
import yaml

from grok.callbacks import Evaluation
from grok.lightning_cli import GrokCLI, run_lightning
from grok.records import RunRecord


def everything_in(directory):
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_a_run_directory_holds_the_whole_record(run):
    summary = RunRecord(run).summary()
    assert summary["finished"]
    assert summary["step"] == 60
    assert set(summary["accuracy"]) >= {"id_atomic", "ood_atomic", "train_inferred", "test_inferred_iid"}
    assert {"memorised_step", "grok_step", "delay", "wall_seconds", "flops", "id_ood_gap"} <= set(summary)
    rows = RunRecord(run).rows("accuracy")
    assert sorted({row["step"] for row in rows}) == [20, 40, 60]
    for row in rows:
        assert row["low"] <= row["value"] <= row["high"]
        assert row["floor"] == pytest.approx(1 / 12)
        assert row["n"] == summary["queries_in_split"][row["split"]]
    names = {row["name"] for row in RunRecord(run).rows()}
    assert {"training_loss", "learning_rate"} <= names
    assert "weight_norm/blocks.0.mlp.up.weight" in names
    assert "update_norm/blocks.0.mlp.up.weight" in names
    assert (run / "last.ckpt").exists()


def test_the_saved_configuration_runs_again_to_the_same_bits(grok, run, hashes, tmp_path):
    status, _, errors = grok("fit", "--config", run / "config.yaml", "--run_dir", tmp_path / "again")
    assert (status, errors) == (0, "")
    assert hashes(tmp_path / "again") == hashes(run)
    assert yaml.safe_load((tmp_path / "again/config.yaml").read_text()) == yaml.safe_load(
        (run / "config.yaml").read_text()
    )


def test_a_chosen_class_has_its_own_defaults_and_what_was_written(grok, tiny_config):
    chosen = ["--model.optimizer", "SGD", "--model.optimizer.lr", 0.1]
    chosen += ["--model.net", "grok.models.RecursiveTransformer"]
    status, printed, _ = grok("fit", "--config", tiny_config, *chosen, "--print_config")
    assert status == 0
    model = yaml.safe_load(printed)["model"]
    assert model["optimizer"]["init_args"]["weight_decay"] == 0.0  # of AdamW 0.01
    net = model["net"]["init_args"]
    assert (net["positions"], net["tied"]) == ("none", False)  # of LoopedTransformer learned and True
    assert (net["width"], net["heads"], net["layers"]) == (16, 2, 1)
    status, printed, _ = grok("fit", "--model.optimizer", "SGD", "--print_config")  # half a configuration, as a start
    assert (status, yaml.safe_load(printed)["model"]["optimizer"]["init_args"]["weight_decay"]) == (0, 0.0)


def test_a_parser_that_is_used_again_has_forgotten_the_class_that_was_chosen(tiny_config):
    parsed = []

    class Twice(GrokCLI):
        def parse_arguments(self, parser, args):
            for more in ([], ["--model.optimizer", "SGD", "--model.optimizer.lr", "0.1"], []):
                super().parse_arguments(parser, [*args, *more])
                parsed.append(self.config.fit.model.optimizer)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_lightning(["fit", "--config", str(tiny_config)], Twice)
    before, chosen, after = parsed
    assert (chosen.class_path, chosen.init_args.weight_decay) == ("torch.optim.SGD", 0.0)
    assert before == after
    assert before.class_path == "torch.optim.AdamW"


def test_test_validate_and_predict_need_only_the_run_directory(grok, run):
    before = everything_in(run)
    summary = RunRecord(run).summary()
    for command in ("test", "validate"):
        status, output, _ = grok(command, run)
        assert status == 0
        for split, accuracy in summary["accuracy"].items():
            line = next(line for line in output.splitlines() if line.startswith(split + " "))
            assert f"{100 * accuracy:.1f} %" in line
    assert everything_in(run) == before

    assert grok("predict", "--run_dir", run)[0] == 0
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    for split, accuracy in summary["accuracy"].items():
        answers = [line["correct"] for line in lines if line["split"] == split]
        assert len(answers) == summary["queries_in_split"][split]
        assert sum(answers) / len(answers) == pytest.approx(accuracy, abs=1e-6)
    assert lines[0]["input"][0].startswith("<e_")


def test_a_finished_run_is_left_alone(grok, run, tiny_config):
    before = everything_in(run)
    status, output, _ = grok("fit", "--config", tiny_config, "--run_dir", run)
    assert status == 0
    assert "finished; nothing to do" in output
    assert everything_in(run) == before


def test_another_configuration_is_refused_with_the_difference_and_fresh_steps_aside(grok, run, tiny_config):
    before = everything_in(run)
    status, _, errors = grok("fit", "--config", tiny_config, "--run_dir", run, "--data.phi", 1)
    assert status == 2
    assert "data.init_args.phi: 2.0 in the run, 1.0 now" in errors
    assert everything_in(run) == before
    assert grok("fit", "--config", tiny_config, "--run_dir", run, "--data.phi", 1, "--fresh")[0] == 0
    assert RunRecord(run.with_name("run-2")).summary()["finished"]
    assert everything_in(run) == before


@pytest.mark.parametrize("stopped_at", [10, pytest.param(41, marks=pytest.mark.slow)])
def test_an_interrupted_run_continues_to_the_same_bits(
    grok, run, tiny_config, hashes, tmp_path, monkeypatch, stopped_at
):
    class Power(BaseException):
        """Nothing catches this."""

    def cut(self, trainer, *_):
        original(self, trainer, *_)
        if trainer.global_step >= stopped_at:
            raise Power

    original = Evaluation.on_train_batch_end
    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "on_train_batch_end", cut)
        with pytest.raises(Power):
            grok("fit", "--config", tiny_config, "--run_dir", tmp_path / "cut")
    assert not (RunRecord(tmp_path / "cut").summary() or {"finished": False})["finished"]
    status, output, errors = grok("fit", "--config", tiny_config, "--run_dir", tmp_path / "cut")
    assert (status, errors) == (0, "")
    assert "Resuming" in output
    assert hashes(tmp_path / "cut") == hashes(run)

    def curve(directory):
        return [(row["step"], row["split"], row["name"], row["value"]) for row in RunRecord(directory).rows("accuracy")]

    assert curve(tmp_path / "cut") == curve(run)


def test_by_default_a_run_is_named_by_what_it_is(grok, tiny_config, tmp_path):
    status, output, _ = grok("fit", "--config", tiny_config, "--trainer.max_steps", 2)
    assert status == 0
    assert (tmp_path / "runs/tiny/TwoHopComposition/seed_3/summary.json").exists()
    assert "tensorboard --logdir runs/tiny/TwoHopComposition/seed_3" in output


def test_hyper_parameters_in_a_checkpoint_do_not_override_what_the_user_wrote(grok, run, tmp_path):
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    assert "hyper_parameters" not in checkpoint
    torch.save({**checkpoint, "hyper_parameters": {"ema_decay": 0.5, "block": 1}}, tmp_path / "other.ckpt")
    status, output, _ = grok("test", run, "--ckpt_path", tmp_path / "other.ckpt")
    assert status == 0
    assert f"{100 * RunRecord(run).summary()['accuracy']['id_atomic']:.1f} %" in output


def test_verify_names_a_damaged_and_a_missing_file(grok, run):
    assert grok("verify", run)[0] == 0
    first, second, *_ = sorted((run / "series").glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    second.unlink()
    status, _, errors = grok("verify", run)
    assert status == 2
    assert f"{first}: content differs" in errors
    assert f"{second}: missing" in errors


def test_unknown_keys_of_a_file_are_told_with_the_nearest_one(grok, tiny_config):
    for line, wrong, right in (
        ("max_steps", "trainer.max_stepz", "trainer.max_steps"),
        ("every: 20", "evaluation.evry", "evaluation.every"),
        ("entities", "data.entitys", "entities"),
    ):
        leaf, wrong_leaf = line.partition(":")[0], wrong.rpartition(".")[2]
        path = tiny_config.with_name("wrong.yaml")
        path.write_text(tiny_config.read_text().replace(line, line.replace(leaf, wrong_leaf)))
        status, _, errors = grok("fit", "--config", path)
        assert (status, errors) == (2, f"error: {wrong}: no such key; did you mean {right}?\n")


def test_all_problems_of_a_configuration_are_told_at_once(grok, tiny_config):
    arguments = ["--data.entities", -4, "--data.ood", 3, "--model.net.heads", 5, "--model.clip", -1]
    arguments += ["--model.schedule.warmup", -1, "--evaluation.every", 0, "--monitor.threshold", 2]
    status, _, errors = grok("fit", "--config", tiny_config, *arguments)
    assert status == 2
    expected = [
        "data.init_args.entities=-4",
        "data.init_args.ood=3.0",
        "model.net.init_args.heads=5",
        "model.clip=-1.0",
    ]
    expected += ["model.schedule.init_args.warmup=-1", "evaluation.every=0", "monitor.threshold=2.0"]
    for key in expected:
        assert key in errors


def test_commands_and_directories_that_do_not_exist_are_named(grok, tmp_path):
    assert "did you mean fit?" in grok("fti")[2]
    assert "not a run directory" in grok("test", tmp_path)[2]
    assert "nope.yaml" in grok("fit", "--config", "nope.yaml")[2]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")


def test_a_directory_with_other_files_is_not_taken_over(grok, tiny_config, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    status, _, errors = grok("fit", "--config", tiny_config, "--run_dir", tmp_path / "mine")
    assert (status, "holds other files and no run" in errors) == (2, True)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_help_names_the_commands(grok):
    status, output, _ = grok("--help")
    assert status == 0
    for command in ("grok fit", "grok test RUN", "grok predict RUN", "grok verify RUN"):
        assert command in output
    status, output, _ = grok("fit", "--help")
    assert (status, output.split("\n\n")[0]) == (0, "usage: grok [options] fit --config CONFIG [--KEY VALUE …]")
    assert "--model.optimizer" in output


@pytest.mark.slow
def test_nothing_is_evaluated_with_untrained_weights(grok, tiny_config, run, tmp_path):
    before = everything_in(tmp_path)
    for command in ("test", "validate", "predict"):
        status, _, errors = grok(command, "--config", tiny_config, "--run_dir", tmp_path / "never")
        assert (status, "no trained weights there" in errors) == (2, True)
    assert everything_in(tmp_path) == before
    assert grok("predict", "--config", tiny_config, "--run_dir", run)[0] == 0
    with_configuration = (run / "predictions.jsonl").read_bytes()
    assert grok("predict", f"--run_dir={run}")[0] == 0
    assert (run / "predictions.jsonl").read_bytes() == with_configuration


@pytest.mark.slow
def test_a_damaged_checkpoint_and_one_of_another_model_are_named(grok, run):
    status, _, errors = grok("test", run, "--model.net.width", 32)
    assert (status, "of another model" in errors) == (2, True)
    (run / "last.ckpt").write_bytes(b"garbage")
    status, _, errors = grok("test", run)
    assert (status, f"{run / 'last.ckpt'}: damaged or replaced" in errors) == (2, True)
    assert f"--ckpt_path {run / 'previous.ckpt'} is the last good one" in errors
    assert grok("test", run, "--ckpt_path", run / "previous.ckpt")[0] == 0
    (run / "saved.json").unlink()  # then the file speaks for itself
    status, _, errors = grok("test", run)
    assert (status, f"{run / 'last.ckpt'}: not a checkpoint" in errors) == (2, True)


def test_a_run_that_is_out_of_time_is_not_finished_and_goes_on(grok, tiny_config, tmp_path):
    arguments = ("fit", "--config", tiny_config, "--run_dir", tmp_path / "run", "--trainer.max_time", "00:00:00:01")
    arguments += ("--trainer.max_steps", 100_000, "--series.enabled", "false")
    assert grok(*arguments)[0] == 75
    first = RunRecord(tmp_path / "run").summary()
    assert not first["finished"]
    status, output, _ = grok(*arguments, "--trainer.max_time", "00:00:00:02")
    assert (status, "Resuming" in output) == (75, True)
    assert RunRecord(tmp_path / "run").summary()["step"] > first["step"]  # the time is this attempt's


def test_two_processes_do_not_write_one_record(grok, tiny_config, run, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    with (run / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        summary = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps(summary | {"finished": False}))
        status, _, errors = grok("fit", "--config", tiny_config, "--run_dir", run)
    assert (status, "another process is training here" in errors) == (2, True)


def test_a_mistake_found_late_does_not_block_the_corrected_run(grok, tiny_config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("model: {clip: 3}")  # what a crash before the first step leaves
    assert grok("fit", "--config", tiny_config, "--run_dir", tmp_path / "run", "--trainer.max_steps", 3)[0] == 0


def test_callbacks_of_a_user_are_checked_whatever_their_arguments(grok, tiny_config, tmp_path):
    status, _, errors = grok(
        "fit", "--config", tiny_config, "--trainer.max_steps", 3, "--run_dir", tmp_path / "run",
        "--trainer.callbacks", "lightning.pytorch.callbacks.Timer",
    )  # fmt: skip
    assert (status, errors) == (0, "")


def test_a_termination_signal_has_its_own_status(grok, tiny_config, tmp_path, monkeypatch):
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    def terminated(*_):
        raise SIGTERMException

    monkeypatch.setattr(Evaluation, "on_train_batch_end", terminated)
    status, _, errors = grok("fit", "--config", tiny_config, "--run_dir", tmp_path / "run")
    assert (status, "the same command continues" in errors) == (143, True)


def test_help_is_told_without_importing_anything_that_takes_seconds():
    import subprocess
    import sys

    program = (
        "import sys; sys.argv = ['grok', '--help']\n"
        "from grok.__main__ import run; run()\n"
        "assert not {'torch', 'lightning', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "grok fit --config configs/quickstart.yaml" in done.stdout


@pytest.mark.slow
def test_a_run_that_was_begun_before_a_setting_existed_has_its_default(grok, tiny_config, run):
    saved = run / "config.yaml"
    old = yaml.safe_load(saved.read_text())
    del old["model"]["fast"], old["record"]["norms"]
    saved.write_text(yaml.safe_dump(old))
    status, output, _ = grok("fit", "--config", tiny_config, "--run_dir", run)
    assert (status, "is finished; nothing to do" in output) == (0, True)
    status, _, errors = grok("fit", "--config", tiny_config, "--run_dir", run, "--model.fast", "true")
    assert status == 2
    assert "model.fast: False in the run, True now" in errors
