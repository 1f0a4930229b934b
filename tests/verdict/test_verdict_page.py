"""`grok verdict` through the command line."""

import json

import pytest
from verdict.synthetic import as_published, pretraining, transfer, write_run


@pytest.mark.slow
def test_the_page_says_claims_rules_seeds_sizes_and_shows_the_pictures(grok, tmp_path):
    as_published(tmp_path / "runs")
    status, output, errors = grok("verdict", "runs")
    assert (status, errors) == (0, "")
    assert output.count("holds") == 3
    page = (tmp_path / "runs/verdict/verdict.md").read_text()
    for name in ("claim1", "claim2", "claim3", "cost"):
        assert f"({name}.png)" in page
        assert (tmp_path / f"runs/verdict/{name}.png").stat().st_size > 10_000
    assert "Made by `grok verdict runs` from 24 finished runs" in page
    assert "took 5.3 hours in all and\n192 GFLOP" in page  # 24 runs of 800 s and 8 GFLOP
    assert "seeds 0, 1" in page
    assert "50 entities" in page
    assert "| both_full | 2 |" in page
    assert "0.55 at step 37,490" not in page
    assert "0.003 at step 37,490 (no)" in page  # answers before the bridge, as published
    assert "30 %" in page  # the shortcut


def test_every_model_has_a_verdict_of_its_own(grok, tmp_path):
    as_published(tmp_path / "runs")
    write_run(tmp_path / "runs/unshared", "natural", 0, lines=pretraining(), layers=4, loops=1)
    assert grok("verdict", "runs", "--model", "4 blocks × 1 loop (unshared)", "--page", "page/unshared.md")[0] == 0
    page = (tmp_path / "page/unshared.md").read_text()
    assert "| claim | 2 blocks × 2 loops (shared) | 4 blocks × 1 loop (unshared) |" in page
    assert "**not measured**" in page


def test_runs_on_different_graphs_are_refused_and_both_named(grok, tmp_path):
    as_published(tmp_path / "runs")
    write_run(tmp_path / "runs/other", "natural", 0, lines=pretraining(), graph={"entities": 60})
    status, _, errors = grok("verdict", "runs")
    assert status == 2
    assert "runs/other has data.entities=60" in errors
    assert "data.entities=50" in errors
    assert not (tmp_path / "runs/verdict").exists()


def test_a_seed_whose_regimes_have_different_graph_seeds_is_refused(grok, tmp_path):
    as_published(tmp_path / "runs")
    write_run(tmp_path / "runs/other", "both_half", 1, lines=pretraining(), graph={"graph_seed": 7})
    status, _, errors = grok("verdict", "runs")
    assert (status, "data.graph_seed=7" in errors, "data.graph_seed=1" in errors) == (2, True, True)


def test_two_runs_that_nothing_tells_apart_are_refused_and_both_named(grok, tmp_path):
    as_published(tmp_path / "runs")
    write_run(tmp_path / "runs/again", "natural", 1, lines=pretraining())
    status, _, errors = grok("verdict", "runs")
    assert (status, len(errors.splitlines())) == (2, 1)
    assert "two runs of one setting: runs/again and runs/pretrain/natural/1 are both 2 blocks" in errors


def test_a_sweep_that_is_half_done_has_a_page(grok, tmp_path):
    write_run(tmp_path / "runs/a", "natural", 0, lines=pretraining(ood=900))
    write_run(tmp_path / "runs/b", "both_full", 0, lines=pretraining())
    for seed in (0, 1):  # of another model there are controls only
        write_run(tmp_path / f"runs/c{seed}", "natural", seed, lines=transfer(), transfer=True, layers=4, loops=1)
    path = tmp_path / "runs/b/summary.json"
    path.write_text(json.dumps({"step": 800, "finished": True}))  # neither cost nor time
    status, output, errors = grok("verdict", "runs")
    assert (status, errors) == (0, "")
    page = (tmp_path / "runs/verdict/verdict.md").read_text()
    assert "| claim | 2 blocks × 2 loops (shared) |" in page
    assert "Waiting alone answered at most 0% of OOD queries" in page
    assert output.count("not measured") >= 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "nowhere: no finished run of grok.data.FactExposure"),
        ([], "usage|required"),
        (["runs", "--model", "big"], "model='big': no such model in runs; use 2 blocks"),
        (["runs", "--pages", "x"], "unrecognized arguments"),
    ],
)
def test_bad_input_is_told_in_a_line(grok, tmp_path, arguments, told):
    as_published(tmp_path / "runs")
    status, _, errors = grok("verdict", *arguments)
    assert status == 2
    assert any(part in errors for part in told.split("|"))
    assert len(errors.splitlines()) <= 2
