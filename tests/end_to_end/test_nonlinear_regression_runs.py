"""Nonlinear regression through the command line: attention finds the feature of the query."""

from pathlib import Path

import pytest

from grok.records import RunRecord

SMALL = Path(__file__).resolve().parents[2] / "configs/li2025/nonlinear_small.yaml"
QUIET = ("--trainer.logger", "false", "--figures.enabled", "false", "--series.enabled", "false")
MASS = "groups/mass/0.head0/query_feature"


def trained(grok, run, *options):
    """Attention on the feature of the query by step, of both families, and the record."""
    status, _, errors = grok("fit", "--config", SMALL, "--run_dir", run, *QUIET, *options)
    assert (status, errors) == (0, "")
    record = RunRecord(run)
    mass = {}
    for row in record.rows(MASS):
        mass.setdefault(row["split"], {})[row["step"]] = row["value"]
    return mass["trained_family"], mass["held_out_family"], record


def half(mass):
    """First analysed step at which half of the attention is on the feature of the query."""
    return next(step for step, value in mass.items() if value >= 0.5)


def test_attention_finds_the_feature_of_the_query(grok, tmp_path):
    options = ("--trainer.max_steps", 60, "--groups.every", 30, "--measures.every", 60)
    mass, held_out, record = trained(grok, tmp_path / "run", *options)
    assert list(mass) == [0, 30, 60]
    assert mass[0] == pytest.approx(0.2, abs=0.02)  # uniform over five features
    assert mass[0] + 0.2 < mass[30] < mass[60]
    assert mass[60] > 0.7
    assert abs(mass[60] - held_out[60]) < 0.03
    cells = {
        (row["step"], row["split"], row["name"]): row["value"] for row in record.rows() if "measures/" in row["name"]
    }
    for split in ("trained_family", "held_out_family"):
        untrained, error = (cells[step, split, "measures/error/model"] for step in (0, 60))
        assert untrained == pytest.approx(cells[0, split, "measures/error/mean"], rel=1e-3)
        assert error < untrained / 5
    assert cells[60, "trained_family", "measures/query_key/equal/0.head0"] > 1
    assert cells[60, "trained_family", "measures/query_key/different/0.head0"] < 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_attention_comes_to_1_and_faster_for_steeper_functions(grok, tmp_path, seed):
    steps = []
    for constant in (0.5, 1, 2, 4):
        options = ("--seed_everything", seed, "--data.lipschitz", constant)
        mass, held_out, _ = trained(grok, tmp_path / f"run{constant}", *options)
        steps.append(half(mass))
        last = mass[max(mass)]
        assert abs(last - held_out[max(held_out)]) < 0.03
        if constant >= 2:
            assert last > 0.9
    assert steps == sorted(set(steps), reverse=True)
