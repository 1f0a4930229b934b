"""Circuit analyses through the command line: live, after the fact, and on a checkpoint, all giving the same record."""

import json
import re
import shutil

import pytest
from safetensors.torch import load_file, save_file
from tiny_configuration import train_tiny

from grok.analyses import AnalysisRecord

ON = ["--lens.enabled", "true", "--tracing.enabled", "true"]
KINDS = ("lens", "found", "tracing", "semantic", "cosine", "probes", "attention", "faithfulness")
ALL = [word for kind in KINDS for word in (f"--{kind}.enabled", "true")] + ["--faithfulness.every", "60"]
RECORDED = (*KINDS, "immediate", "full_run", "completeness", "circuit", "ablation")
"""With what belongs to `semantic` and to `faithfulness`."""


def rows(run, *kinds):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["name"].split("/")[0] in kinds]


def key(row):
    return row["step"], row["split"], row["name"]


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    return train_tiny(tmp_path_factory.mktemp("watched"), *ON)


@pytest.fixture
def live(grok, watched, tmp_path):
    return shutil.copytree(watched, tmp_path / "live")


@pytest.fixture
def plain(grok, trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "plain")


def test_a_run_that_is_watched_and_one_that_is_traced_afterwards_have_the_same_record(
    grok, tiny_config, hashes, tmp_path
):
    live, plain = tmp_path / "live", tmp_path / "plain"
    fit = ("fit", "--config", tiny_config, "--series.powers_of_two", "false", "--run_dir")
    assert grok(*fit, plain)[0] == 0
    assert grok(*fit, live, *ALL)[0] == 0
    assert hashes(live) == hashes(plain)  # looking does not change the weights
    assert rows(plain, *RECORDED) == []
    before = rows(plain, "accuracy", "loss", "learning_rate")

    status, out, err = grok("trace", plain, *ALL)
    assert status == 0, err
    assert "lens, found, tracing, semantic, cosine, probes, attention, faithfulness" in out

    watched, traced = (sorted(rows(run, *RECORDED), key=key) for run in (live, plain))
    assert watched == traced
    assert {row["name"].split("/")[0] for row in traced} == set(RECORDED)
    steps = [0, 30, 60]
    assert sorted({row["step"] for row in traced}) == steps == AnalysisRecord(plain).steps()
    assert rows(plain, "accuracy", "loss", "learning_rate") == before
    for step in steps:
        assert AnalysisRecord(live).path(step).read_bytes() == AnalysisRecord(plain).path(step).read_bytes()

    assert grok("trace", plain, *ON)[0] == 0  # again, a part: nothing twice, nothing lost
    assert sorted(rows(plain, *RECORDED), key=key) == traced
    assert not (plain / "figures").exists()  # as the run's configuration says


def test_rows_have_value_interval_floor_and_number_of_examples(live):
    cells = {row["name"]: row for row in rows(live, "lens", "tracing") if row["step"] == 60}
    assert set(cells) == {
        *(f"lens/mrr/{c}/S[{i},{p}]" for c in ("bridge", "r2", "answer") for i in range(3) for p in ("h", "r1", "r2")),
        *(f"tracing/changed/S[{i},{p}]" for i in range(3) for p in ("h", "r1", "r2")),
    }
    for row in cells.values():
        assert row["split"] == "test_inferred_iid"
        assert row["n"] > 0
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
        assert row["floor"] is not None
    assert cells["lens/mrr/r2/S[0,r2]"]["value"] > cells["lens/mrr/r2/S[0,r2]"]["floor"]
    summary = json.loads((live / "summary.json").read_text())
    assert 0 < summary["analysis_seconds"] < summary["wall_seconds"]
    tensors = AnalysisRecord(live).read(60)
    n = cells["tracing/changed/S[0,h]"]["n"]
    assert tensors["lens/test_inferred_iid/inputs"].shape == (n, 3)
    assert tensors["lens/test_inferred_iid/bridge/rank"].shape == (n, 3, 3, 1)
    assert tensors["lens/test_inferred_iid/top"].shape == (n, 3, 3, 3)
    assert tensors["tracing/test_inferred_iid/rank"].shape == (n, 3, 3)


@pytest.mark.slow
def test_a_resumed_run_has_every_analysis_once(grok, tiny_config, tmp_path, live, monkeypatch):
    from grok.callbacks import LogitLens

    analyse, calls = LogitLens.analyse, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 8:  # one for the check before training; step 30, after last.ckpt of step 25
            raise KeyboardInterrupt
        return analyse(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(LogitLens, "analyse", interrupted)
        assert grok("fit", "--config", tiny_config, "--run_dir", "cut", *ON)[0] == 130
    assert max(row["step"] for row in rows(tmp_path / "cut", "lens")) < 30
    assert grok("fit", "--config", tiny_config, "--run_dir", "cut", *ON)[0] == 0
    whole = rows(live, "lens", "tracing")
    assert sorted(rows(tmp_path / "cut", "lens", "tracing"), key=key) == sorted(whole, key=key)
    assert len({key(row) for row in whole}) == len(whole)


def test_grok_test_prints_what_the_checkpoint_shows(grok, live):
    before = (live / "metrics.jsonl").read_bytes()
    status, out, _ = grok("test", live)
    assert status == 0
    value = next(row["value"] for row in rows(live, "lens") if row["step"] == 60 and "bridge/S[2,r1]" in row["name"])
    table = out[out.index("lens/mrr/bridge") :].splitlines()
    assert table[4].split() == ["S[2]", *table[4].split()[1:]]
    assert table[4].split()[2] == f"{value:.2f}"
    assert "tracing/changed" in out
    assert (live / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_pictures_go_to_figures_and_to_tensorboard(grok, tiny_config, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = [
        "--run_dir",
        "seen",
        "--trainer.logger",
        "true",
        "--figures.enabled",
        "true",
        *ALL,
        "--lens.columns",
        "[bridge]",
    ]
    assert grok("fit", "--config", tiny_config, *arguments)[0] == 0
    names = {path.name for path in (tmp_path / "seen/figures").iterdir()}
    pictures = {"accuracy", "circuit", "found", "fact_map_id_atomic", "cosine", "probes"}
    pictures |= {"cosine_cohesion_id_atomic", "cosine_alignment_id_atomic", "faithfulness_test_inferred_iid"}
    grids = ("lens_mrr_bridge", "tracing_changed", "semantic_success", "immediate_recall_at_1_bridge")
    grids += ("full_run_recall_at_1_bridge", "probes_accuracy_bridge", "attention_mass")
    pictures |= {f"{grid}_test_inferred_iid" for grid in grids}
    assert names == {f"{picture}.{kind}" for picture in pictures for kind in ("png", "svg")}
    events = EventAccumulator(str(tmp_path / "seen/tensorboard")).Reload()
    assert set(events.Tags()["images"]) == pictures
    scalars = events.Scalars("lens/mrr/bridge/S[1,r1]/test_inferred_iid")
    assert [event.step for event in scalars] == [0, 1, 2, 4, 8, 16, 30, 32, 60]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--lens.splits", "[nothing]"], "lens.splits='nothing': no such split.*train_inferred, test_inferred_iid"),
        (["--lens.columns", "[brige]"], r"lens.columns='brige': no such ground truth.*answer, bridge, h, r1, r2"),
        (["--lens.measures", "[mean]"], r"lens.measures='mean': use mrr, .*recall@k"),
        (
            ["--lens.splits", "[id_atomic]", "--lens.columns", "[bridge]"],
            "lens.columns='bridge': no query of this split",
        ),
        (
            ["--semantic.enabled", "true", "--semantic.sources", "ood"],
            "semantic.sources='ood': no such split",
        ),
        (["--semantic.enabled", "true", "--semantic.splits", "[id_atomic]"], "atomic queries, which have no bridge"),
        (["--cosine.enabled", "true", "--cosine.position", "r3"], "cosine.position='r3': no such position.*h, r1, r2"),
        (["--probes.enabled", "true", "--probes.columns", "[b]"], "probes.columns='b': no such ground truth"),
        (["--probes.enabled", "true", "--probes.held_out", "2"], "probes.held_out=2.0: use a share"),
        (["--attention.enabled", "true", "--attention.query", "x"], "attention: position='x': no such position"),
        (["--found.enabled", "true", "--found.splits", "[id_atomic]"], "found: .*an atomic query has no bridge"),
        (["--lens.streams", "b"], "lens.streams"),
        (["--fourier.enabled", "true"], "fourier.enabled=True: is for ModularArithmetic, not for TwoHopComposition"),
        (["--fourier.enabled", "true", "--fourier.examples", "5"], "fourier.examples=5: this analysis looks at all"),
        (["--cosine.mapped", "-1"], "cosine.mapped=-1: use 0"),
        (["--lens.top", "0"], "lens.top=0: use 1 or more"),
        (["--attention.enabled", "true", "--attention.groups", "{}"], "attention.groups={}: name one group"),
        (
            ["--tracing.target", "[2,r1,bridge]", "--tracing.measures", "[flipped]"],
            "tracing.measures=.'flipped'.: need",
        ),
        (["--tracing.target", "[7,r1,bridge]"], "tracing: steps=7: no such state"),
        (["--lens.examples", "5000"], r"lens.examples=5000: test_inferred_iid has \d+ queries"),
        (["--lens.examples", "0"], "lens.examples=0: use 1 or more"),
        (["--tracing.measures", "[size]"], r"tracing.measures=\['size'\]: use changed, rank"),
        (["--tracing.splits", "[id_atomic]", "--tracing.counterfactuals", "valid"], "two-hop queries are needed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_requests_that_cannot_be_met_are_told_in_one_line_before_anything_is_written(
    grok, tiny_config, tmp_path, arguments, told
):
    status, _, err = grok("fit", "--config", tiny_config, "--run_dir", "bad", *ON, *arguments)
    assert status == 2
    assert re.search(told, err), err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "bad").exists()


def test_a_trace_looks_at_the_run_as_it_was_trained(grok, plain):
    for changed, told in (
        (["--seed_everything", "99"], "seed_everything: 3 in the run, 99 now"),
        (["--data.phi", "1"], "data.init_args.phi: 2.0 in the run, 1.0 now"),
        (["--ckpt_path", plain / "last.ckpt"], "ckpt_path: trace examines the run's own series"),
    ):
        status, _, err = grok("trace", plain, *ON, *changed)
        assert status == 2
        assert told in err
    assert rows(plain, "lens") == []
    assert not (plain / "analysis").exists()


def test_a_trace_every_so_many_steps_leaves_a_complete_record_whenever_it_is_interrupted(grok, plain, monkeypatch):
    from grok.callbacks import LogitLens

    with (plain / "metrics.jsonl").open("a") as record:
        record.write('{"step": 60, "spl')  # torn by a crash
    analyse = LogitLens.analyse

    def interrupted(self, *arguments):
        if '"lens/' in (plain / "metrics.jsonl").read_text():
            raise KeyboardInterrupt
        return analyse(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(LogitLens, "analyse", interrupted)
        status, _, err = grok("trace", plain, "--lens.enabled", "true", "--lens.every", "30")
    assert status == 130
    assert "the same command does it again" in err
    assert {row["step"] for row in rows(plain, "lens")} == {0} == set(AnalysisRecord(plain).steps())
    assert grok("trace", plain, "--lens.enabled", "true", "--lens.every", "30")[0] == 0
    assert {row["step"] for row in rows(plain, "lens")} == {0, 30, 60}
    assert "every: 30" in (plain / "analysis/traced.yaml").read_text()
    status, out, _ = grok("trace", "--help")
    assert status == 0
    assert "KIND is one of lens, found, tracing" in out


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_live_and_traced_records_are_equal_in_any_precision(grok, tiny_config, tmp_path, precision):
    fit = ["fit", "--config", tiny_config, "--trainer.precision", precision, "--trainer.max_steps", 30]
    assert grok(*fit, "--run_dir", "live", *ON)[0] == 0
    assert grok(*fit, "--run_dir", "after")[0] == 0
    assert grok("trace", "after", *ON)[0] == 0
    watched, traced = (sorted(rows(tmp_path / run, "lens", "tracing"), key=key) for run in ("live", "after"))
    assert watched == traced


def test_each_analysis_keeps_the_queries_it_looked_at(grok, tiny_config, tmp_path):
    options = ["--lens.examples", "5", "--probes.enabled", "true", "--semantic.enabled", "true"]
    assert grok("fit", "--config", tiny_config, "--run_dir", "run", *ON, *options)[0] == 0
    tensors = AnalysisRecord(tmp_path / "run").read(60)
    for kind, name in (("lens", "bridge/rank"), ("tracing", "rank")):
        assert len(tensors[f"{kind}/test_inferred_iid/inputs"]) == len(tensors[f"{kind}/test_inferred_iid/{name}"])
    assert len(tensors["lens/test_inferred_iid/inputs"]) == 5 < len(tensors["probes/test_inferred_iid/inputs"])
    pairs = {len(tensors[f"semantic/test_inferred_iid/{name}"]) for name in ("success", "target_inputs", "expected")}
    assert len(pairs) == 1


def test_several_splits_and_a_target_are_each_examined_with_their_own_counterfactuals(grok, tiny_config, tmp_path):
    options = ["--tracing.enabled", "true", "--tracing.target", "[2, r1, bridge]"]
    options += ["--tracing.splits", "[train_inferred, test_inferred_iid]"]
    status, _, err = grok("fit", "--config", tiny_config, "--run_dir", "run", *options)
    assert status == 0, err
    assert {row["split"] for row in rows(tmp_path / "run", "tracing")} == {"train_inferred", "test_inferred_iid"}


@pytest.mark.slow
def test_a_run_ends_in_peace_when_few_cells_have_a_value_and_says_that_it_has_diverged(grok, tiny_config, tmp_path):
    few = ["--tracing.only_correct", "true", "--tracing.counterfactuals", "valid", "--tracing.examples", "3"]
    status, _, err = grok("fit", "--config", tiny_config, "--run_dir", "few", *ON, *few, "--tracing.floor", "false")
    assert status == 0, err
    diverge = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "1e30", "--model.clip", "null"]
    status, _, err = grok("fit", "--config", tiny_config, "--run_dir", "nan", *ON, *diverge)
    assert (status, "the loss is nan at optimizer step 2" in err) == (1, True)
    assert max(row["step"] for row in rows(tmp_path / "nan", "lens")) == 1  # nothing is read from what is no number


@pytest.mark.slow
def test_a_series_of_another_model_or_damaged_or_no_series_is_named(grok, tiny_config, plain, tmp_path):
    assert grok("fit", "--config", tiny_config, "--run_dir", "wide", "--model.net.width", "32")[0] == 0
    own = (plain / "series").rename(plain / "own")
    shutil.copytree(tmp_path / "wide/series", plain / "series")
    status, _, err = grok("trace", plain, *ON)
    assert status == 2
    assert "weights of another model: embedding.weight is (" in err
    assert rows(plain, "lens") == []
    shutil.rmtree(plain / "series")
    own.rename(plain / "series")

    status, _, err = grok("trace", plain)
    assert status == 2
    kinds = "lens, found, tracing, semantic, cosine, probes, attention, faithfulness, fourier"
    assert f"no analysis is enabled; add --KIND.enabled true, KIND one of {kinds}" in err

    foreign = plain / "series/step_000000030.safetensors"
    weights = load_file(foreign)
    save_file({name: tensor + 1 for name, tensor in weights.items()}, foreign)
    status, _, err = grok("trace", plain, *ON)
    assert status == 2
    assert "SHA-256" in err

    shutil.rmtree(plain / "series")
    status, _, err = grok("trace", plain, *ON)
    assert status == 2
    assert "manifest.json: not there" in err
    status, _, err = grok("trace", tmp_path / "nowhere")
    assert status == 2
    assert "not a run directory" in err
    status, _, err = grok("trace")
    assert status == 2
    assert "usage: grok trace RUN" in err


@pytest.mark.slow
def test_fourier_measures_of_modular_arithmetic_are_recorded_and_drawn(grok, tmp_path):
    config = tmp_path / "modular.yaml"
    config.write_text("""
trainer: {accelerator: cpu, max_steps: 20, logger: false}
data: {class_path: grok.data.ModularArithmetic, init_args: {modulus: 13, batch: 32}}
model: {net: {class_path: grok.models.LoopedTransformer, init_args: {width: 16, heads: 2, layers: 1}}}
evaluation: {every: 10}
series: {every: 10}
fourier: {enabled: true}
tracing: {enabled: true}
lens: {enabled: true}
""")
    assert grok("fit", "--config", config, "--run_dir", "modular")[0] == 0
    run = tmp_path / "modular"
    cells = {row["name"]: row for row in rows(run, "fourier") if row["step"] == 20}
    kept = [f"{logits}/{pairs}" for logits in ("full", "restricted", "excluded") for pairs in ("all", "train", "test")]
    assert set(cells) == {f"fourier/{measure}/{place}" for measure in ("loss", "accuracy") for place in kept}
    losses = {row["split"]: row["value"] for row in rows(run, "loss") if row["step"] == 20}
    full = cells["fourier/loss/full/test"]["value"]  # over the 13 numbers, the evaluation over the whole vocabulary
    assert full <= losses["test"]
    assert (run / "figures/fourier.png").exists()
    # Without a bridge, tracing takes other queries, and the lens looks for the answer and the last token.
    assert {row["name"].rpartition("/")[0] for row in rows(run, "lens", "tracing")} == {
        "lens/mrr/=", "lens/mrr/answer", "tracing/changed"
    }  # fmt: skip


def test_continuous_answers_have_nothing_to_rank(grok, tmp_path):
    (tmp_path / "sums.yaml").write_text("""
trainer: {accelerator: cpu, max_steps: 5, logger: false}
data: {class_path: training.tiny.Sums, init_args: {batch: 8}}
model:
  net: {class_path: grok.models.LoopedTransformer, init_args: {width: 8, heads: 2, layers: 1}}
  objective: grok.training.SquaredError
lens: {enabled: true}
""")
    status, _, err = grok("fit", "--config", tmp_path / "sums.yaml", "--run_dir", "sums")
    assert status == 2
    assert "lens.enabled=True: the answers of test are values, not tokens: use lens.enabled=false" in err


@pytest.mark.slow
def test_what_is_found_in_and_out_of_distribution_is_recorded_live_and_by_a_trace(grok, tiny_config, tmp_path):
    fill_in = ["--data.encoding", "grok.data.FillIn", "--model.net.causal", "false", "--figures.enabled", "true"]
    assert grok("fit", "--config", tiny_config, "--run_dir", "live", *fill_in, "--found.enabled", "true")[0] == 0
    assert grok("fit", "--config", tiny_config, "--run_dir", "after", *fill_in)[0] == 0
    status, out, err = grok("trace", "after", "--found.enabled", "true")
    assert status == 0, err
    assert "figures/found.png" in out
    live, after = (sorted(rows(tmp_path / run, "found"), key=key) for run in ("live", "after"))
    assert live == after
    assert {row["split"] for row in live} == {"test_inferred_iid", "test_inferred_ood"}
    places = ("", "_distinct", "_at_slot")
    always = {"correct", "exact", *(f"{token}{place}" for token in ("bridge", "target") for place in places)}
    conditional = {"bridge_if_correct", "correct_if_bridge"}  # no row where no query is right, or none shows its bridge
    names = {row["name"].removeprefix("found/") for row in live}
    assert always <= names <= always | conditional
    accuracy = {(r["step"], r["split"]): r for r in rows(tmp_path / "live", "accuracy")}
    compared = 0
    for row in live:
        if row["name"] == "found/exact" and (row["step"], row["split"]) in accuracy:
            same = accuracy[row["step"], row["split"]]  # all queries of a small split, by the same weights
            assert (row["value"], row["n"]) == (pytest.approx(same["value"]), same["n"])
            compared += 1
    assert compared
    tensors = AnalysisRecord(tmp_path / "live").read(60)
    count = next(row["n"] for row in live if row["split"] == "test_inferred_iid" and row["name"] == "found/target")
    assert tensors["found/test_inferred_iid/bridge/first"].shape == (count, 5)
    assert tensors["found/test_inferred_iid/inputs"].shape == (count, 5)


def test_found_needs_bridges(grok, tmp_path):
    config = tmp_path / "modular.yaml"
    config.write_text("""
trainer: {accelerator: cpu, max_steps: 2, logger: false}
data: {class_path: grok.data.ModularArithmetic, init_args: {modulus: 5, batch: 8}}
model: {net: {class_path: grok.models.LoopedTransformer, init_args: {width: 16, heads: 2, layers: 1}}}
found: {enabled: true}
""")
    status, _, err = grok("fit", "--config", config, "--run_dir", "no")
    assert status == 2
    assert "found.enabled=True: no held-out split of ModularArithmetic has a bridge" in err


@pytest.mark.slow  # it draws each stream of every state
def test_streams_are_read_and_patched_each_by_itself(grok, tiny_config, tmp_path):
    net = ["--data.encoding", "grok.data.FillIn", "--model.net", "circuits.two_streams.TwoStreams"]
    each = ["--lens.streams", "each", "--tracing.streams", "each", "--figures.enabled", "true"]
    few = ["--trainer.max_steps", 4, "--lens.columns", "[bridge]", "--trainer.logger", "false"]
    config = tiny_config.with_name("streams.yaml")
    config.write_text(re.sub(r"  net:.*?(?=  schedule)", "", tiny_config.read_text(), flags=re.S))
    status, _, err = grok("fit", "--config", config, "--run_dir", "run", *net, *ON, *each, *few)
    assert status == 0, err
    names = {row["name"] for row in rows(tmp_path / "run", "lens", "tracing")}
    places = [f"S[{i},{p}].{s}" for i in range(7) for p in ("h", "r1", "r2") for s in ("a", "b")]
    assert {f"tracing/changed/{place}" for place in places} == {name for name in names if "tracing" in name}
    assert {f"lens/mrr/bridge/{place}" for place in places} < names
    assert (tmp_path / "run/figures/tracing_changed_test_inferred_iid.png").exists()
    status, _, err = grok("trace", "run", "--attention.enabled", "true")
    assert status == 2
    assert "attention='TwoStreams': steps 0, 1, 2, 3, 4, 5 have no attention" in err
    assert len(err.splitlines()) == 1
