"""Verdicts of experiments that were made up so that the right verdict is known."""

import math
import shutil

import pytest
from verdict.synthetic import ID, OOD, as_published, pretraining, rising, rows, transfer, write_run

from grok.verdict.claims import claims
from grok.verdict.cost import answer, purchases, spent
from grok.verdict.curves import Curve, Spread, band, curves_of
from grok.verdict.experiment import Experiment, Run
from grok.verdict.published import CATEGORIES, OOD_TESTS, REGIMES, finetuned, pretrained

SHARED = "2 blocks × 2 loops (shared)"


def verdicts(directory, model=SHARED):
    return [claim.verdict for claim in claims(Experiment.load(directory), model)]


def test_everything_as_the_paper_says_holds(tmp_path):
    assert verdicts(as_published(tmp_path)) == ["holds", "holds", "holds"]


@pytest.mark.parametrize(
    ("regime", "lines", "expected"),
    [
        # natural OOD answers together with ID ones: nothing to wait for
        ("natural", pretraining(ood=200), ["not at this scale", "holds", "holds"]),
        # the ID bridge is not there when ID queries are answered
        ("natural", pretraining(bridge=900, ood=800), ["not at this scale", "holds", "holds"]),
        # exposed OOD queries are answered before their bridge is seen: only a caveat
        ("both_full", pretraining(ood_bridge=500), ["holds with a caveat", "holds", "holds"]),
        # the state at r1 decides nothing
        ("both_full", pretraining(strength=0.1), ["not at this scale", "holds", "holds"]),
        # bridge and answers arrive together with the second hop only: no fake grokking
        ("hop2_full", pretraining(), ["holds", "not at this scale", "holds"]),
        # the bridge is not readable, but the state decides OOD answers all the same
        ("hop2_full", pretraining(ood_bridge=900, ood_strength=0.9), ["holds", "holds with a caveat", "holds"]),
    ],
)
def test_a_regime_that_behaves_otherwise_changes_the_verdict_of_its_claim(tmp_path, regime, lines, expected):
    as_published(tmp_path)
    for seed in (0, 1):
        shutil.rmtree(tmp_path / f"pretrain/{regime}/{seed}")
        write_run(tmp_path / f"pretrain/{regime}/{seed}", regime, seed, lines=lines)
    assert verdicts(tmp_path) == expected


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (transfer(new_old=0.8), "not at this scale"),
        (transfer(old_new=0.9), "not at this scale"),
        (transfer(new_new=0.5), "holds with a caveat"),
        (transfer(shortcut=0.9), "holds with a caveat"),
    ],
)
def test_transfer_that_turns_out_otherwise(tmp_path, found, verdict):
    as_published(tmp_path)
    for path in (tmp_path / "last").glob("*/*"):
        if path.parent.name != "hop2_full":
            shutil.rmtree(path)
            write_run(path, path.parent.name, int(path.name), "last", found, transfer=True)
    assert verdicts(tmp_path)[2] == verdict


def test_one_seed_of_two_is_no_majority_and_two_of_three_is_one(tmp_path):
    as_published(tmp_path, seeds=(0, 1, 2))
    for count, verdict in ((1, "holds with a caveat"), (2, "not at this scale")):
        place = tmp_path / f"pretrain/both_full/{count - 1}"
        shutil.rmtree(place)
        write_run(place, "both_full", count - 1, lines=pretraining(ood=800))
        assert verdicts(tmp_path)[0] == verdict


def test_seeds_that_cannot_tell_are_no_seeds_that_pass(tmp_path):
    as_published(tmp_path, seeds=(0, 1, 2))
    for count, verdict in ((1, "holds with a caveat"), (2, "not measured")):
        shutil.rmtree(tmp_path / f"pretrain/both_full/{count - 1}")
        found = claims(Experiment.load(tmp_path), SHARED)[0]
        assert (found.verdict, len(found.checks[0].known)) == (verdict, 3 - count)


def test_a_measurement_far_away_is_none(tmp_path):
    as_published(tmp_path)
    for seed in (0, 1):
        place = tmp_path / f"pretrain/hop2_full/{seed}"
        shutil.rmtree(place)
        lines = pretraining(ood=300, ood_bridge=900, strength=0.1)
        sparse = [row for row in lines if row["name"].startswith("accuracy") or row["step"] in (0, 800)]
        write_run(place, "hop2_full", seed, lines=sparse)
    assert verdicts(tmp_path)[1] == "not measured"


def test_no_path_is_there_while_no_state_decides(tmp_path):
    as_published(tmp_path)
    for seed in (0, 1):
        shutil.rmtree(tmp_path / f"pretrain/natural/{seed}")
        write_run(tmp_path / f"pretrain/natural/{seed}", "natural", seed, lines=pretraining(ood=800, strength=0.1))
    claim = claims(Experiment.load(tmp_path), SHARED)[0]
    assert (claim.verdict, claim.checks[2].passes) == ("not at this scale", False)


def test_what_was_not_run_is_not_measured(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"natural/{seed}", "natural", seed, lines=pretraining(ood=800, ood_bridge=800))
    assert verdicts(tmp_path) == ["not measured"] * 3


def test_chance_is_taken_away():
    curve = Curve((0, 1, 2), (0.1, 0.2, 0.6), (0.2, 0.2, 0.2), 50)
    assert curve.corrected().values == pytest.approx((0.0, 0.0, 0.5))
    assert curve.above_floor().values == pytest.approx((-0.1, 0.0, 0.4))


def test_curves_cross_and_are_looked_up_at_the_nearest_measurement_if_that_is_near():
    curve = Curve((0, 10, 20, 30), (0.0, 0.9, 0.1, 0.9), (0.0,) * 4)
    assert (curve.last, curve.final, Curve((0, 1, 2, 3, 4, 5), (0, 1, 1, 1, 0, 0)).final) == (0.9, 0.5, 1)
    assert (curve.first(0.5), curve.sustained(0.5, 3), curve.first(0.95)) == (10, 10, None)
    assert [curve.at(step) for step in (0, 9, 10, 25, 36)] == [0.0, 0.9, 0.9, 0.1, 0.9]
    assert all(math.isnan(curve.at(step)) for step in (4, 7, 45, 99, None))
    assert band([curve, Curve((10, 30), (0.1, 0.3), (0.0, 0.0))]) == ([10, 30], [0.5, 0.6], [0.1, 0.3], [0.9, 0.9])


def test_seeds_that_never_got_there_are_told():
    assert Spread((100, None, 300)).told(lambda step: f"{step:g}") == "200 (100–300) in 2 of 3"
    assert Spread((None, None)).told(str) == "–"
    assert Spread((5, 5)).told(str) == "5.0"


def test_a_rewritten_line_replaces_the_earlier_one():
    lines = [*rows("accuracy", ID, rising(0)), *rows("accuracy", ID, rising(900))]
    assert curves_of(lines)["accuracy", ID].highest == 0.0


def test_the_strength_is_that_of_the_best_state_after_the_embedding_above_its_floor(tmp_path):
    write_run(tmp_path / "a", lines=pretraining(strength=0.7))
    run = Experiment.load(tmp_path).runs[0]
    assert run.strength(OOD).last == pytest.approx(0.7)
    assert not run.strength("test_inferred_io")


def test_the_bridge_is_measured_in_the_state_that_decides_and_is_read(tmp_path):
    write_run(tmp_path / "a", lines=pretraining(bridge=200, ood_bridge=300))
    run = Experiment.load(tmp_path).runs[0]
    assert run.seat == 2
    assert (run.bridge(ID).first(0.5), run.bridge(OOD).first(0.5)) == (200, 300)
    assert run.bridge(OOD).values[0] == 0.0  # the floor
    write_run(tmp_path / "b", lines=rows("lens/mrr/bridge/S[2,r1]", ID, rising(0)))
    untraced = Run(tmp_path / "b", "natural", "m", 0, "pretraining", {})
    assert (untraced.seat, bool(untraced.bridge(ID))) == (None, False)


def test_states_of_a_model_that_is_not_causal_may_know_the_answer_and_say_nothing_of_the_bridge(tmp_path):
    for seed in (0, 1):
        for regime in ("natural", "both_full", "hop2_full"):
            net = {"high_cycles": 2, "low_cycles": 2}
            lines = [*pretraining(), *rows("found/bridge_distinct", ID, rising(400, 0.6), floor=0.2)]
            write_run(tmp_path / f"{regime}/{seed}", regime, seed, lines=lines, net=net)
    experiment = Experiment.load(tmp_path)
    assert experiment.models == ["recursive, 2 × 2 cycles, mixing tokens"]
    run = experiment.runs[0]
    assert (run.seat, run.bridge(ID).last, bool(run.strength(ID))) == (None, pytest.approx(0.5), False)
    same_path, apart, _ = claims(experiment, run.model)
    assert same_path.checks[2].passes is False  # no bridge when ID queries are answered
    assert (same_path.checks[3].passes, apart.verdict) == (None, "not measured")


def test_flops_count_those_of_the_source(tmp_path):
    as_published(tmp_path)
    experiment = Experiment.load(tmp_path)
    run = experiment.select(SHARED, "natural", "last")[0]
    assert run.flops(800) == pytest.approx(12e9)
    assert run.hours(800) == pytest.approx(800 / 3600)
    assert spent(experiment, SHARED, "natural") == [(8e9, 0.3), (12e9, 1.0)]


def test_what_compute_bought(tmp_path):
    as_published(tmp_path)
    experiment = Experiment.load(tmp_path)
    first, second, third = purchases(experiment, SHARED, "natural")
    assert (first.ends, second.ends, third.ends) == ("memorised (training 95 %)", "ID 95 %", "end")
    assert (first.share, second.share, third.share) == pytest.approx((1 / 8, 1 / 8, 6 / 8))
    assert (second.known, second.ood, third.known, third.ood) == (1.0, 0.0, 0.0, 1.0)
    told = " ".join(answer(experiment, SHARED))
    assert "88% of the compute was spent after the training queries were memorised" in told
    assert "with 3 GFLOP instead of 8 GFLOP: 2.7 times less" in told


def test_published_curves_are_those_of_the_paper():
    for regime in REGIMES:
        assert len(pretrained(regime, "bridge_found").steps) == (190 if regime == "natural" else 220)
    natural = pretrained("natural", "train_acc")
    assert (natural.first(0.95), natural.first(0.99)) == (63_630, 106_050)
    assert pretrained("natural", "bridge_found").sustained(0.9) == 311_080
    assert pretrained("hop2_full", "target_found").highest == pytest.approx(0.968, abs=5e-4)
    assert pretrained("both_full", "bridge_found").n == OOD_TESTS["both_full"] == 1977
    for split in CATEGORIES:
        assert len(finetuned("natural", split).steps) == len(finetuned("scratch", split).steps) == 40
    assert finetuned("natural", "test_inferred_new_old").first(1.0) == 5_856
    assert finetuned("both_full", "test_inferred_old_new").highest == pytest.approx(0.114, abs=5e-4)
