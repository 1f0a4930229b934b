"""The Fourier circuit, on logits made of known frequencies and against projections written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from grok.circuits.fourier import discrete_logarithms, fourier_analysis
from grok.data import ModularArithmetic
from grok.errors import BadInput
from grok.models import LoopedTransformer, StepModel


class Given(StepModel):
    """Answers from a table of logits `[a, b, p]`; the embedding of a number is a column of its own table."""

    def __init__(self, task, table, embedding=None) -> None:
        super().__init__()
        self.task, self.table = task, torch.nn.Parameter(F.pad(table, (0, 2), value=-9.0))
        self.embedding = torch.zeros(len(table), 2) if embedding is None else embedding

    steps = ()

    def embed(self, inputs, position_ids=None):
        logits = self.table[inputs[:, 0], inputs[:, 1]]
        first = F.pad(self.embedding[inputs[:, 0]], (0, logits.shape[1] - self.embedding.shape[1]))
        return {"resid": torch.stack([first, logits, logits], 1)}

    def readout(self, state, norm=True):
        return state["resid"]


def waves(regime, frequencies, size=5.0, logs=None):
    """Logits Σ cos(2πk (log(a ∘ b) - log c) / M), in the order a, b, c."""
    p = regime.modulus
    place = torch.arange(p) if logs is None else logs
    period = p if logs is None else p - 1
    sign = -1 if regime.operation == "subtract" else 1
    phase = (place[:, None, None] + sign * place[:, None] - place).double()
    return size * sum((2 * math.pi * k / period * phase).cos() for k in frequencies)


@pytest.mark.parametrize("operation", ["add", "subtract"])
@pytest.mark.parametrize("modulus", [13, 12])
def test_rotations_are_found_and_are_all_there_is(operation, modulus):
    regime = ModularArithmetic(operation, modulus)
    frequencies = (2, 5, 6)
    found = fourier_analysis(Given(regime.task, waves(regime, frequencies)), regime, share=1.0)
    assert set(found.frequencies) == set(frequencies)
    assert found.held == pytest.approx(1)
    for pairs in ("all", "train", "test"):
        assert found.loss["restricted", pairs] == pytest.approx(found.loss["full", pairs], abs=1e-6)
        assert found.loss["excluded", pairs] == pytest.approx(math.log(modulus), abs=1e-6)
        assert found.accuracy["restricted", pairs] == 1
        assert found.loss["full", pairs] < 0.1
    # Random other frequencies hold nothing: kept alone they leave chance, taken away they change nothing.
    assert float(found.loss.floor[1, 0]) == pytest.approx(math.log(modulus), abs=1e-6)
    assert float(found.loss.floor[2, 0]) == pytest.approx(found.loss["full", "all"], abs=1e-6)
    assert found.loss.floor[0].isnan().all()


def test_products_are_sums_of_logarithms():
    regime = ModularArithmetic("multiply", 11)
    powers = discrete_logarithms(11)
    logs = torch.zeros(11).long()
    logs[powers] = torch.arange(10)
    table = waves(regime, (1, 3), logs=logs)
    table[..., 0] = -20  # no product of numbers that are not zero
    found = fourier_analysis(Given(regime.task, table), regime, share=0.999)
    assert set(found.frequencies) == {1, 3}
    assert len(found.shares) == 5
    assert found.loss.n[0].tolist() == [
        100,
        *(int(regime.membership().view(11, 11)[1:, 1:].eq(k).sum()) for k in (1, 0)),
    ]
    assert found.accuracy["restricted", "all"] == 1
    assert found.loss["restricted", "all"] == pytest.approx(found.loss["full", "all"], abs=1e-6)


@pytest.mark.parametrize("modulus", [2, 3, 5, 7, 97, 113])
def test_discrete_logarithms(modulus):
    powers = discrete_logarithms(modulus).tolist()
    assert sorted(powers) == list(range(1, modulus))
    assert powers[0] == 1
    assert all(powers[i] * powers[1] % modulus == powers[i + 1] for i in range(len(powers) - 1))


@pytest.mark.parametrize("modulus", [11, 10])
@pytest.mark.parametrize("operation", ["add", "subtract"])
def test_losses_are_those_of_projections_on_cosines_and_sines(operation, modulus):
    """Nanda et al., section 5: logits over all pairs, projected on cos(w(a ± b)) and sin(w(a ± b)) of unit length."""
    regime = ModularArithmetic(operation, modulus)
    torch.manual_seed(0)
    model = LoopedTransformer(regime.task, width=16, layers=1, heads=2, init_std=0.7).double().eval()
    found = fourier_analysis(model, regime, most=2, batch=17)
    a, b = (x.flatten() for x in torch.meshgrid(*[torch.arange(modulus)] * 2, indexing="ij"))
    result = (a - b if operation == "subtract" else a + b) % modulus
    with torch.no_grad():
        logits = model(torch.stack([a, b, torch.full_like(a, modulus)], 1))[:, 2, :modulus]
    logits = logits - logits.mean(1, keepdim=True)
    constant = logits.mean(0)

    def project(k):
        total = torch.zeros_like(logits)
        for wave in (torch.cos, torch.sin):
            direction = wave(2 * math.pi * k * result.double() / modulus)
            if direction.norm() > 1e-6:  # the sine of the highest frequency of an even modulus is zero
                direction = direction / direction.norm()
                total += direction[:, None] * (direction @ logits)
        return total

    parts = [project(k) for k in range(1, modulus // 2 + 1)]
    shares = torch.stack([part.square().sum() for part in parts]) / (logits - constant).square().sum()
    torch.testing.assert_close(found.shares, shares)
    assert set(found.frequencies) == {int(k) + 1 for k in shares.topk(2).indices}
    kept = sum(parts[k - 1] for k in found.frequencies)
    trained = regime.membership()
    for name, three in (("full", logits), ("restricted", constant + kept), ("excluded", logits - kept)):
        loss = F.cross_entropy(three, result, reduction="none")
        right = (three.argmax(1) == result).double()
        for pairs, rows in (("all", trained | ~trained), ("train", trained), ("test", ~trained)):
            assert found.loss[name, pairs] == pytest.approx(float(loss[rows].mean()), rel=1e-5)
            assert found.accuracy[name, pairs] == pytest.approx(float(right[rows].mean()))


def test_the_smallest_set_that_holds_the_share():
    regime = ModularArithmetic("add", 17)
    table = waves(regime, [3], 2.0) + waves(regime, [7], 1.0) + waves(regime, [1], 0.5)  # variances 4 : 1 : 0.25
    model = Given(regime.task, table)
    assert fourier_analysis(model, regime, share=0.75).frequencies == (3,)
    assert fourier_analysis(model, regime, share=0.9).frequencies == (3, 7)
    assert fourier_analysis(model, regime, share=1.0).frequencies == (3, 7, 1)
    capped = fourier_analysis(model, regime, share=1.0, most=2)
    assert capped.frequencies == (3, 7)
    assert capped.held == pytest.approx(5 / 5.25)


def test_random_weights_spread_over_frequencies_and_have_no_rotations():
    regime = ModularArithmetic("add", 23)
    torch.manual_seed(0)
    found = fourier_analysis(LoopedTransformer(regime.task, width=32, layers=1, heads=2), regime)
    assert found.shares.sum() < 0.4  # most of the logits is no function of a + b at all
    assert found.shares.max() < 0.2
    assert found.accuracy["restricted", "all"] < 0.3
    assert found.embedding.max() < 2 * found.embedding.mean()


@pytest.mark.parametrize("modulus", [13, 12])
def test_the_spectrum_of_the_embedding(modulus):
    regime = ModularArithmetic("add", modulus)
    angle = 2 * math.pi * torch.arange(modulus).double() / modulus
    embedding = torch.stack([3 * (4 * angle).cos() + (6 * angle).cos() + 10, (5 * angle).sin() + (5 * angle).cos()], 1)
    found = fourier_analysis(Given(regime.task, waves(regime, [4]), embedding), regime)
    expected = torch.zeros(6).double()
    expected[3], expected[4] = 3 * math.sqrt(modulus / 2), math.sqrt(2) * math.sqrt(modulus / 2)
    expected[5] = (6 * angle).cos().norm()  # longer at the highest frequency of an even modulus: 1, -1, 1, …
    torch.testing.assert_close(found.embedding, expected)


def test_a_shift_of_all_logits_of_a_pair_is_of_no_consequence():
    regime = ModularArithmetic("add", 13)
    table = waves(regime, [4])
    shifted = table + 50 * torch.randn(13, 13, 1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        fourier_analysis(Given(regime.task, shifted), regime).shares,
        fourier_analysis(Given(regime.task, table), regime).shares,
    )


def test_when_all_frequencies_are_key_there_is_no_floor():
    regime = ModularArithmetic("add", 3)
    found = fourier_analysis(Given(regime.task, waves(regime, [1])), regime)
    assert found.frequencies == (1,)
    assert found.loss.floor.isnan().all()


def test_bad_input_of_the_analysis():
    def analyse(operation, modulus, **options):
        regime = ModularArithmetic(operation, modulus)
        return fourier_analysis(Given(regime.task, torch.zeros(1, 1, 1)), regime, **options)

    with pytest.raises(BadInput, match=r"modulus=12: .* modulo a prime"):
        analyse("multiply", 12)
    with pytest.raises(BadInput, match=r"modulus=2: too small"):
        analyse("multiply", 2)
    with pytest.raises(BadInput, match=r"modulus=211: use at most 199"):
        analyse("add", 211)
    with pytest.raises(BadInput, match=r"most=0: use 1 or more"):
        analyse("add", 7, most=0)
    with pytest.raises(BadInput, match=r"share=1.5"):
        analyse("add", 7, share=1.5)


def test_fewer_other_frequencies_than_key_ones_are_no_floor():
    regime = ModularArithmetic("add", 13)
    found = fourier_analysis(Given(regime.task, waves(regime, [1, 2, 3, 4, 5])), regime, share=1.0)
    assert sorted(found.frequencies) == [1, 2, 3, 4, 5]  # of six: only one is left
    assert found.loss.floor.isnan().all()
    assert found.accuracy.floor.isnan().all()
