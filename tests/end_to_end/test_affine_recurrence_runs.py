"""Affine recurrences through the command line: the error collapses once the next term is determined."""

from pathlib import Path

import pytest
from seeds import SEEDS

from grok.records import RunRecord

SMALL = Path(__file__).resolve().parents[2] / "configs/bhargav2024/affine_small.yaml"
QUIET = ("--trainer.logger", "false", "--figures.enabled", "false", "--series.enabled", "false")


def trained(grok, run, *options):
    """Last value of every measure and group by split and name."""
    status, _, errors = grok("fit", "--config", SMALL, "--run_dir", run, *QUIET, *options)
    assert (status, errors) == (0, "")
    return {(row["split"], row["name"]): row["value"] for row in RunRecord(run).rows() if "/" in row["name"]}


def test_a_small_model_beats_copying_and_everything_is_recorded(grok, tmp_path):
    sizes = ("--data.terms", 6, "--data.test_size", 200, "--groups.examples", 200, "--measures.examples", 200)
    told = trained(grok, tmp_path / "run", "--trainer.max_steps", 60, "--model.schedule.warmup", 10, *sizes)
    error = {
        (of, terms): told["trained_region", f"measures/error/{of}/{terms}"]
        for of in ("model", "copy")
        for terms in (1, 4)
    }
    assert error["model", 1] < error["copy", 1]
    assert error["model", 4] < error["copy", 4]
    assert ("held_out_region", "measures/error/model/4") in told
    assert {name for split, name in told if name.startswith("measures/heads/gain")} == {
        f"measures/heads/gain/{layer}.head{head}" for layer in range(3) for head in range(2)
    }
    assert {f"measures/readout_coefficient/S[{i}]/current" for i in range(4)} <= {name for _, name in told}
    mass = [told["trained_region", f"groups/mass/0.head0/{group}"] for group in ("self", "previous", "earlier")]
    assert min(mass) > 0
    assert max(mass) < 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_the_error_collapses_with_the_third_term(grok, tmp_path, seed):
    told = trained(grok, tmp_path / "run", "--seed_everything", seed)
    two, three = (told["trained_region", f"measures/error/model/{terms}"] for terms in (2, 3))
    assert two >= 50 * three
