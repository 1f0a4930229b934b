"""Pattern composition: columns hold what they should, tasks are maps, mistakes have their probabilities."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grok.data import PatternComposition
from grok.data.keyed import keyed_generator
from grok.data.pattern_prompts import shortened, without_steps
from grok.data.split import nearest
from grok.data.step_transitions import StepTransitions, faulty
from grok.errors import BadInput

WORKED = [[[0.6, 0.4], [0.4, 0.6]], [[0.4, 0.6], [0.8, 0.2]]]
ROUND = [[[0.6, 0.4, 0.0], [0.0, 0.6, 0.4], [0.4, 0.0, 0.6]]] * 2
few = settings(deadline=None, max_examples=15)


@st.composite
def regimes(draw):
    steps, patterns = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    return PatternComposition(
        dim=patterns + steps + draw(st.integers(0, 3)), train_patterns=patterns,
        test_patterns=draw(st.integers(2, patterns)), steps=steps, examples=draw(st.integers(1, 5)),
        alpha=draw(st.floats(0.1, 1)), transition=draw(st.sampled_from(["clean", "uniform"])), accuracy=0.9, noise=0.1,
        test_examples=draw(st.integers(1, 5)), test_size=8, batch=8, seed=draw(st.integers(0, 10**6)),
    )  # fmt: skip


def shown(data, split):
    """Input and output pattern, and step, of every column: `[N, T]` each; -1 for an empty half."""
    codes, steps = split.codes[0], len(data.step_vectors)
    found = []
    for half in (split.inputs[..., : data.dim], split.inputs[..., data.dim :]):
        # c_k is orthogonal to all patterns, so that it does not decide which one is nearest
        found.append(torch.where((half @ codes.T).abs().amax(-1) > 0.5, nearest(half, (codes,))[..., 0], -1))
    step = (split.inputs[..., : data.dim] @ data.step_vectors.T).argmax(-1)
    assert split.inputs.shape[1] % steps == 0
    return *found, step


@few
@given(regimes())
def test_columns_hold_the_examples_and_the_steps_done_so_far(data):
    for name in ("train_patterns", "test_cot"):
        split = data.splits[name]
        before, after, step = (one.unflatten(1, (-1, data.steps)) for one in shown(data, split))
        assert torch.equal(before[:, :-1, 1:], after[:, :-1, :-1])  # a step goes on where the last one ended
        assert (before[:, :-1] >= 0).all()
        assert torch.equal(step[:, :-1], torch.arange(data.steps).expand_as(step[:, :-1]))
        now = split.at[:, 0] - (len(split.positions) - data.steps)
        chain = split.truth["chain"]
        for k in range(data.steps):
            assert torch.equal(before[:, -1, k], torch.where(now >= k, chain[:, k], -1))
            assert torch.equal(after[:, -1, k], torch.where(now > k, chain[:, k + 1], -1))  # the answer is not shown
        rows = torch.arange(len(split))
        assert torch.equal(split.targets[:, 0], split.codes[0][chain[rows, now + 1]])
        assert torch.equal(split.truth["pattern"], before.flatten(1))
        assert len(split.positions) <= data.task.positions


@few
@given(regimes())
def test_a_task_is_a_one_to_one_map_at_every_step_and_the_query_follows_it(data):
    split = data.splits["train_patterns"]
    before, after, _ = (one.unflatten(1, (-1, data.steps)) for one in shown(data, split))
    chain = split.truth["chain"]
    for row in range(len(split)):
        for k in range(data.steps):
            pairs = set(zip(before[row, :-1, k].tolist(), after[row, :-1, k].tolist(), strict=True))
            pairs.add((int(chain[row, k]), int(chain[row, k + 1])))
            assert len({first for first, _ in pairs}) == len({second for _, second in pairs}) == len(pairs)


@few
@given(regimes())
def test_patterns_are_orthonormal_and_orthogonal_to_the_steps(data):
    for vectors in (data.train_vectors, data.test_vectors):
        both = torch.cat([vectors, data.step_vectors])
        torch.testing.assert_close(both @ both.T, torch.eye(len(both)), atol=1e-5, rtol=0)
    inside = data.test_vectors @ data.train_vectors.T @ data.train_vectors
    torch.testing.assert_close(inside, data.test_vectors, atol=1e-5, rtol=0)


@few
@given(regimes())
def test_without_steps_first_inputs_and_last_outputs_are_left(data):
    split = data.splits["test_cot"]
    icl = without_steps(split, data.step_vectors)
    before, after, _ = (one.unflatten(1, (-1, data.steps)) for one in shown(data, split))
    first, last, step = (one.unflatten(1, (-1, data.steps)) for one in shown(data, icl))
    assert torch.equal(first[:, :, 0], before[:, :, 0])
    assert torch.equal(last[:, :-1, 0], after[:, :-1, -1])
    assert (first[:, :, 1:] == -1).all()
    assert (last[:, :, 1:] == -1).all()
    assert (last[:, -1] == -1).all()
    assert torch.equal(step[:, :-1], torch.arange(data.steps).expand_as(step[:, :-1]))
    assert (icl.at == len(icl.positions) - data.steps).all()
    assert torch.equal(icl.targets[:, 0], icl.codes[0][split.truth["chain"][:, -1]])
    assert torch.equal(icl.inputs, data.splits["test_icl"].inputs)


@few
@given(regimes(), st.sampled_from(["test_cot", "test_icl"]))
def test_the_groups_are_all_columns_before_the_query_s(data, name):
    split = data.splits[name]
    groups = {key: mask[:, 0] for key, mask in data.groups(split).items()}
    rows, at = torch.arange(len(split)), split.at[:, 0]
    pattern, place = split.truth["pattern"], torch.arange(len(split.positions))
    earlier = (pattern >= 0) & (place < at[:, None])
    assert torch.equal(sum(mask.long() for mask in groups.values()), earlier.long())
    same = pattern == pattern[rows, at][:, None]
    step = place % data.steps == (at % data.steps)[:, None]
    assert torch.equal(groups["same_pattern_same_step"], earlier & same & step)
    assert torch.equal(groups["other_pattern_same_step"], earlier & ~same & step)


def test_fewer_examples_are_the_last_ones():
    data = PatternComposition(test_examples=5, test_size=4)
    split = data.splits["test_cot"]
    short = shortened(split, data.steps, 2)
    assert torch.equal(short.inputs, split.inputs[:, -3 * data.steps :])
    for whole, part in ((split, short), (data.splits["test_icl"], shortened(data.splits["test_icl"], data.steps, 2))):
        rows = torch.arange(4)
        assert torch.equal(whole.inputs[rows, whole.at[:, 0]], part.inputs[rows, part.at[:, 0]])
        for name, mask in data.groups(part).items():
            assert torch.equal(mask, data.groups(whole)[name][..., -mask.shape[2] :])


def test_the_worked_matrices_of_the_paper():
    chain = StepTransitions(WORKED)
    torch.testing.assert_close(chain.outcome().float(), torch.tensor([[0.56, 0.44], [0.64, 0.36]]))
    assert chain.right(torch.arange(2)).tolist() == [[0, 0, 1], [1, 1, 0]]
    assert chain.condition_1().tolist() == [False, True]
    expected = {"tau": 0.36, "rho": 0.2, "tau_o": 0.56, "rho_o": 0.12}
    assert PatternComposition(steps=2, transition="matrix", matrices=WORKED).sizes() == pytest.approx(expected)


def test_examples_err_as_often_as_the_matrices_say_and_the_condition_is_kept_or_not():
    sizes = {"steps": 2, "test_patterns": 6, "test_examples": 60, "test_alpha": 0.7, "test_size": 300}
    data = PatternComposition(transition="matrix", matrices=WORKED, **sizes)
    for name, share in (("test_cot", 0.64), ("violated_cot", 0.44)):
        split = data.splits[name]
        before, after, _ = (one.unflatten(1, (-1, 2)) for one in shown(data, split))
        begun = before[:, :-1, 0] == split.truth["chain"][:, :1]
        assert abs(begun.float().mean() - 0.7) < 0.02
        ended = (after[:, :-1, -1] == split.truth["chain"][:, -1:])[begun]
        assert abs(ended.float().mean() - share) < 0.02
        others = (after[:, :-1, -1] == split.truth["chain"][:, -1:])[~begun]
        assert 0.05 < others.float().mean() < 0.2  # one partner of five others ends there


@few
@given(st.integers(3, 6), st.floats(0.6, 0.9), st.floats(0, 0.09))
def test_faulty_steps(states, accuracy, competitor):
    for chain, best in ((faulty(2, states, accuracy), None), (faulty(2, states, accuracy, competitor), competitor)):
        assert (chain.matrices.sum(2) - 1).abs().max() < 1e-9
        assert torch.equal(chain.matrices[1].argmax(1), torch.arange(states))
        if best is not None:
            assert (chain.matrices[0].roll(-1, 1).diagonal() - best).abs().max() < 1e-9
        start = torch.arange(states).repeat(3000)
        drawn = chain.follow(start, keyed_generator("test"))
        assert torch.equal(drawn[:, 0], start)
        assert abs(float((drawn[:, 1] == start).float().mean()) - accuracy) < 0.03


def test_training_batches_are_a_pure_function_of_seed_and_step():
    stream, again, other = (
        PatternComposition(test_examples=1, test_size=4, seed=seed, batch=8).generated.train for seed in (3, 3, 4)
    )
    assert torch.equal(stream.batch(7).queries.inputs, again.batch(7).queries.inputs)
    assert not torch.equal(stream.batch(7).queries.inputs, stream.batch(8).queries.inputs)
    assert not torch.equal(stream.batch(7).queries.inputs, other.batch(7).queries.inputs)


def test_all_problems_at_once():
    with pytest.raises(BadInput) as error:
        PatternComposition(
            dim=10, train_patterns=9, test_patterns=12, examples=0, alpha=0, noise=-1, accuracy=0.05, batch=0
        )
    keys = ["examples", "test_patterns", "dim", "alpha", "noise", "accuracy", "batch"]
    assert [problem.key for problem in error.value.problems] == keys


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"noise": float("inf")}, "noise"),
        ({"transition": "often"}, "transition"),
        ({"transition": "matrix"}, "matrices"),
        ({"matrices": WORKED}, "matrices"),
        ({"transition": "matrix", "matrices": WORKED}, "matrices"),  # two matrices for three steps
        ({"transition": "matrix", "steps": 1, "matrices": [[[0.5, 0.4], [0.5, 0.5]]]}, "matrices"),
        ({"transition": "matrix", "steps": 1, "matrices": [[]]}, "matrices"),
        ({"transition": "matrix", "steps": 1, "matrices": [[[0.5, 0.5], [0.2, 0.8]]]}, "matrices"),  # which is right?
        ({"transition": "matrix", "steps": 2, "matrices": WORKED, "test_patterns": 5}, "test_patterns"),
        (
            {"transition": "matrix", "steps": 2, "matrices": ROUND, "test_patterns": 9},
            "matrices",
        ),  # no state keeps Condition 1
    ],
)
def test_mistakes_that_cannot_be(options, key):
    with pytest.raises(BadInput) as error:
        PatternComposition(**options)
    assert [problem.key for problem in error.value.problems] == [key]
