"""What no table thinks of: numbers out of range, garbage for YAML, flipped and missing bytes.

A change that leaves a file valid is no mistake: then the command must do what it was asked.
"""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

quick = settings(
    max_examples=6, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
many = settings(quick, max_examples=40)

below_one = st.integers(-(2**40), 0)
below_zero = st.integers(-(2**40), -1)
no_share = st.floats(1.0001, 1e9) | st.floats(-1e9, -0.0001)
not_positive = st.floats(-1e9, 0)

# Every number that has a range, in groups of at most ten, all told at once; each with values beyond it.
RANGES = {
    "data": {
        "data.entities": below_one, "data.relations": below_one, "data.out_degree": below_one, "data.phi": not_positive,
        "data.ood": no_share, "data.iid": no_share, "data.test_size": below_one, "data.batch": below_one,
        "data.evaluation_batch": below_one,
    },
    "model": {
        "model.net.width": below_one, "model.net.layers": below_one, "model.net.loops": below_one,
        "model.net.heads": below_one, "model.net.hidden": below_one, "model.net.dropout": no_share,
        "model.clip": not_positive, "model.ema_decay": no_share, "model.block": below_one,
    },
    "schedule": {
        "model.schedule.warmup": below_zero, "evaluation.every": below_one, "series.every": below_one,
        "last.every": below_one, "monitor.threshold": no_share, "monitor.window": below_one,
        "monitor.stop_after": below_zero, "start.step": below_zero, "trainer.max_steps": below_one,
    },
    "analyses": {
        "lens.every": below_one, "lens.examples": below_one, "lens.batch": below_one, "tracing.every": below_one,
        "tracing.examples": below_one, "probes.examples": below_one, "attention.examples": below_one,
        "cosine.examples": below_one, "found.examples": below_one,
    },
    "seeds": {
        "data.graph_seed": below_zero | st.integers(2**32, 2**80), "model.init_seed": below_zero,
        "data.order_seed": below_zero | st.integers(2**32, 2**80),
    },
}  # fmt: skip


@pytest.mark.parametrize("group", RANGES)
@given(data=st.data())
@settings(quick, max_examples=3)
def test_numbers_out_of_range(refused, tiny, group, data):
    values = {key: data.draw(values, key) for key, values in RANGES[group].items()}
    told = [f"{key.rpartition('.')[2]}={value!r}: " for key, value in values.items()]
    refused(
        "fit", "--config", tiny, *(f"--{key}={value!r}" for key, value in values.items()), told=told, counts="refused"
    )


words = st.text(st.characters(codec="utf-8"), max_size=8)
plain = st.none() | st.booleans() | st.integers() | st.floats() | words
nested = st.recursive(plain, lambda inside: st.lists(inside, max_size=3) | st.dictionaries(words, inside, max_size=3))


@given(content=st.binary(max_size=40) | st.text("{}[]:,-&*!|>'\"#%@` \n\tab1", max_size=40).map(str.encode))
@many
def test_garbage_for_a_configuration(refused, tmp_path, content):
    (tmp_path / "garbage.yaml").write_bytes(content)
    refused("fit", "--config", "garbage.yaml", told=(), counts="refused")


SECTIONS = ("trainer", "data", "model", "evaluation", "series", "lens", "start", "experiment")


@given(content=st.dictionaries(st.sampled_from(SECTIONS) | words, nested, min_size=1, max_size=2))
@quick
def test_plain_data_that_is_no_configuration(refused_or_done, tmp_path, content):
    (tmp_path / "strange.yaml").write_text(yaml.safe_dump({**content, "trainer": {"max_steps": 0}}))
    assert refused_or_done("fit", "--config", "strange.yaml")  # never done: there are no steps


@given(content=st.lists(nested, max_size=3) | st.dictionaries(words, nested, max_size=3) | plain)
@many
def test_plain_data_that_is_no_sweep(refused, tmp_path, content):
    (tmp_path / "strange.yaml").write_text(yaml.safe_dump(content))
    refused("sweep", "plan", "strange.yaml", told=(), counts="refused")


# ------------------------------------------------------------------ bytes

cuts = st.tuples(st.just("cut"), st.floats(0, 0.999), st.just(0))
flips = st.tuples(st.just("flip"), st.floats(0, 0.999), st.integers(1, 255))
wounds = cuts | flips


@contextmanager
def wounded(path: Path, wound):
    """A file with its end cut off, or with a byte changed, for a while."""
    kind, share, bits = wound
    whole = path.read_bytes()
    at = int(share * len(whole))
    path.write_bytes(whole[:at] if kind == "cut" else whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :])
    try:
        yield
    finally:
        path.write_bytes(whole)


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made.run, tmp_path / "run")
    shutil.copytree(made.sweep, tmp_path / "sweep")
    shutil.copy(made.config, tmp_path / "small.yaml")
    return tmp_path / "run"


@given(wound=wounds)
@many
def test_a_series_with_a_wound_is_never_as_it_was_saved(refused, run, wound):
    with wounded(run / "series/step_000000002.safetensors", wound):
        refused("verify", "run", told=["step_000000002.safetensors", "content differs"], counts="refused")


@given(wound=wounds)
@many
def test_a_manifest_with_a_wound(refused_or_done, run, wound):
    with wounded(run / "series/manifest.json", wound):
        refused_or_done("verify", "run")


@given(wound=wounds)
@many
def test_a_sweep_with_a_wound(refused_or_done, run, wound):
    for name in ("manifest.jsonl", "sweep.yaml", "base.yaml"):
        with wounded(run.with_name("sweep") / name, wound):
            refused_or_done("sweep", "status", "sweep")


@given(wound=wounds)
@quick
def test_records_with_a_wound(refused_or_done, run, monkeypatch, wound):
    monkeypatch.setattr("grok.verdict.command.find_spec", lambda _: None)  # no figures, which take a second
    for name in ("metrics.jsonl", "summary.json", "config.yaml"):
        with wounded(run / name, wound):
            refused_or_done("verdict", "run")


@given(wound=wounds)
@settings(quick, max_examples=5)
def test_a_summary_with_a_wound_of_a_finished_run(refused_or_done, run, wound):
    with wounded(run / "summary.json", wound):
        content = (run / "summary.json").read_bytes()
        if b'"finished": true' in content or not content.endswith(b"}\n"):  # else it would be trained on
            refused_or_done("fit", "--config", "small.yaml", "--run_dir", "run")


@given(wound=wounds)
@quick
def test_a_checkpoint_with_a_wound(refused_or_done, run, wound):
    shutil.copy(run / "last.ckpt", "other.ckpt")
    with wounded(Path("other.ckpt"), wound):
        refused_or_done("test", "run", "--ckpt_path", "other.ckpt")


@given(wound=wounds)
@settings(quick, max_examples=5)
def test_weights_with_a_wound_that_a_checksum_does_not_tell(refused_or_done, run, wound):
    from grok.files import sha256

    path = run / "series/step_000000004.safetensors"
    manifest = run / "series/manifest.json"
    entries = json.loads(manifest.read_text())
    shutil.rmtree("new", ignore_errors=True)
    with wounded(path, wound):
        manifest.write_text(json.dumps([*entries[:-1], entries[-1] | {"sha256": sha256(path)}]))
        arguments = ("--run_dir", "new", "--start.run", "run", "--trainer.max_steps", "0")  # looked at, never trained
        refused_or_done("fit", "--config", "small.yaml", *arguments)


@given(wound=wounds)
@quick
def test_a_data_file_with_a_wound(refused_or_done, tmp_path, wound):
    from test_bad_data_files import TRAIN
    from tiny_reference_files import store
    from tiny_reference_files import tiny as tiny_files

    data = store(tmp_path / "data", tiny_files())
    (tmp_path / "train.yaml").write_text(TRAIN)
    shutil.rmtree("new", ignore_errors=True)
    with wounded(data / "train.json", wound):
        refused_or_done("fit", "--config", "train.yaml", "--run_dir", "new")
