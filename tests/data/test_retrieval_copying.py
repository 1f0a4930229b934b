"""Retrieval and copying: every query answered by a rule written down again, lengths, offsets, groups, bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grok.data import RetrievalCopying
from grok.errors import BadInput

RETRIEVAL = ("UR", "UL", "NRFirst", "NLFirst", "NRLast", "NLLast")
COPYING = ("UF", "UB", "NF", "NB")
few = settings(deadline=None, max_examples=12)


@st.composite
def regimes(draw, tasks=RETRIEVAL + COPYING):
    task, longest = draw(st.sampled_from(tasks)), draw(st.integers(4, 9))
    return RetrievalCopying(
        task,
        train_length=longest,
        bins=draw(st.integers(1, 3)),
        symbols=None if task in ("UF", "UB") else draw(st.integers(3, 8)),
        opposite=draw(st.sampled_from([0.0, 0.3])),
        test_size=40,
        batch=16,
        seed=draw(st.integers(0, 10**6)),
    )


def read(regime, split, row):
    """Context, separator and what follows it, as written."""
    shown = regime.tokens(split.inputs[row])
    length = int(split.truth["length"][row])
    assert shown[0] == "<bos>"
    return shown[1 : length + 1], shown[length + 1], shown[length + 2 :]


def retrieved(task, context, query):
    """The index of the occurrence that is meant, and the answer."""
    found = [index for index, symbol in enumerate(context) if symbol == query]
    assert len(found) == 1 if task[0] == "U" else len(found) > 1
    index = found[-1] if task.endswith("Last") else found[0]
    neighbour = index + (1 if task[1] == "R" else -1)
    assert 0 <= neighbour < len(context)
    return index, context[neighbour]


def mirrored(task):
    return task[0] + task[1].translate(str.maketrans("RLFB", "LRBF")) + task[2:]


@few
@given(regimes(RETRIEVAL))
def test_the_answer_of_a_retrieval_is_the_neighbour_of_the_occurrence_meant(regime):
    for name, split in regime.splits.items():
        task = mirrored(regime.asked) if name.startswith("opposite") else regime.asked
        for row in range(len(split)):
            context, separator, rest = read(regime, split, row)
            assert separator == ("<opposite>" if name.startswith("opposite") else "<sep>")
            assert set(rest[1:]) <= {"<eos>"}
            index, answer = retrieved(task, context, rest[0])
            assert split.truth["source"][row].tolist() == [index + 1]
            assert regime.tokens(split.targets[row]) == [answer]
            assert split.at[row].tolist() == [len(context) + 2]
        assert split.mask.all()
        assert set(split.targets.flatten().tolist()) <= set(split.labels.tolist())


@few
@given(regimes(COPYING))
def test_a_copy_is_the_string_or_its_reverse_and_each_token_is_read_one_before(regime):
    for name, split in regime.splits.items():
        task = mirrored(regime.asked) if name.startswith("opposite") else regime.asked
        for row in range(len(split)):
            context, _, rest = read(regime, split, row)
            copy = context if task[1] == "F" else context[::-1]
            assert rest[: len(copy)] == copy
            assert task[0] == "N" or len(set(context)) == len(context)
            shown = regime.tokens(split.inputs[row])
            mask = split.mask[row].tolist()
            assert mask == [slot <= len(copy) for slot in range(len(mask))]
            assert regime.tokens(split.targets[row][split.mask[row]]) == [*copy, "<eos>"]
            after = [*shown[1:], "<eos>"]
            assert [after[place] for place in split.at[row][split.mask[row]]] == [*copy, "<eos>"]
            source = split.truth["source"][row].tolist()
            assert source[0] == -1  # the separator is not in the string
            assert [shown[place] for place in source[1 : len(copy) + 1]] == copy
            order = range(1, len(copy) + 1) if task[1] == "F" else range(len(copy), 0, -1)
            assert source[1:] == [*order, *[-1] * (len(source) - 1 - len(copy))]


@few
@given(regimes())
def test_splits_hold_their_lengths_and_training_the_short_ones(regime):
    longest = regime.train_length
    for name, split in regime.splits.items():
        k, length = int(name[-2]), split.truth["length"]
        assert len(split) == 40
        assert length.max() <= k * longest
        assert length.min() > (k - 1) * longest if k > 1 else length.min() >= regime.shortest
        assert split.position_ids is None
        assert split.inputs.shape[1] <= regime.task.positions
        assert split.inputs.max() < regime.task.tokens
    assert list(regime.held_out_splits) == [f"length_{k}x" for k in range(regime.bins, 0, -1)]
    widths = {regime.generated.train.batch(step).queries.inputs.shape for step in range(3)}
    assert widths == {regime.splits["length_1x"].take(slice(16)).inputs.shape}


@settings(deadline=None, max_examples=5)
@given(regimes())
def test_training_offsets_reach_every_position_that_a_test_needs_and_no_more(regime):
    shown = set()
    for step in range(40):
        queries = regime.generated.train.batch(step).queries
        seen = torch.arange(queries.inputs.shape[1]) <= queries.at.amax(1, keepdim=True)
        assert (queries.position_ids.diff(dim=1)[seen[:, 1:]] == 1).all()
        shown |= set(queries.position_ids[seen].unique().tolist())
    assert shown == set(range(regime.task.positions))
    fixed = RetrievalCopying(regime.asked, train_length=regime.train_length, random_offset=False)
    assert fixed.generated.train.batch(0).queries.position_ids is None


@few
@given(regimes())
def test_a_training_batch_is_a_function_of_its_step_and_the_seed(regime):
    stream = regime.generated.train
    assert stream.rows is None
    one, again, other = (stream.batch(step).queries for step in (5, 5, 6))
    assert torch.equal(one.inputs, again.inputs)
    assert torch.equal(one.position_ids, again.position_ids)
    assert not torch.equal(one.inputs, other.inputs)
    task, sizes = regime.asked, {"train_length": regime.train_length, "seed": regime.seed, "test_size": 5}
    order, plain = RetrievalCopying(task, order_seed=regime.seed + 1, **sizes), RetrievalCopying(task, **sizes)
    assert torch.equal(order.splits["length_1x"].inputs, plain.splits["length_1x"].inputs)
    assert not torch.equal(order.generated.train.batch(0).queries.inputs, plain.generated.train.batch(0).queries.inputs)


@pytest.mark.parametrize("task", ["UR", "NB"])
def test_the_share_of_the_mirrored_task_in_training(task):
    regime = RetrievalCopying(task, train_length=8, opposite=0.2, batch=2000, test_size=5)
    queries = regime.generated.train.batch(0).queries
    behind = (queries.inputs == 3).sum(1)
    assert 0.16 < behind.float().mean() < 0.24
    assert behind.max() == 1
    assert set(regime.splits) == {f"{kind}_{k}x" for kind in ("length", "opposite") for k in (1, 2, 3)}
    assert not any(name.startswith("opposite") for name in RetrievalCopying(task, test_size=5).splits)


def test_symbols_are_drawn_evenly_and_the_occurrence_anywhere():
    split = RetrievalCopying("UR", train_length=6, shortest=6, bins=1, test_size=4000).splits["length_1x"]
    counts = split.targets.flatten().bincount()[4:]
    assert len(counts) == 5
    assert (counts / 800 - 1).abs().max() < 0.15
    places = split.truth["source"].flatten().bincount()
    assert places.nonzero().flatten().tolist() == [1, 2, 3, 4, 5]  # the last has no right neighbour
    assert (places[1:] / 800 - 1).abs().max() < 0.15


@few
@given(regimes())
def test_groups_name_each_visible_position_and_none_beyond(regime):
    split = regime.splits["length_1x"]
    groups = regime.groups(split)
    assert list(groups) == ["previous_token", "anti_induction", "induction", "others"]
    covered = torch.stack(list(groups.values())).any(0)
    place = torch.arange(split.inputs.shape[1])
    assert torch.equal(covered, place <= split.at[..., None])
    sizes = {name: group.sum(-1) for name, group in groups.items()}
    has = split.truth["source"] >= 0
    assert (sizes["previous_token"] == 1).all()
    assert torch.equal(sizes["anti_induction"], has.long())
    assert torch.equal(sizes["induction"], has.long())
    if not regime.copies:  # the answer is the right neighbour, which the induction edge goes to, or the left one
        ahead = groups["induction"] if regime.asked[1] == "R" else groups["anti_induction"].roll(-1, -1)
        assert torch.equal((split.inputs[:, None] * ahead).sum(-1), split.targets)


def test_published_sizes():
    regime = RetrievalCopying("UF", test_size=5)
    assert (regime.task.tokens, regime.task.positions, regime.shortest) == (154, 302, 1)
    regime = RetrievalCopying("NRLast", test_size=5)
    assert (regime.task.tokens, regime.task.positions, regime.shortest) == (9, 153, 4)
    assert regime.floor("length_3x") == 1 / 5
    assert RetrievalCopying("UL", test_size=5).floor("length_3x") == 1 / 4
    assert RetrievalCopying("UB", test_size=5).floor("length_3x") is None


def test_every_problem_is_told_at_once():
    with pytest.raises(BadInput) as error:
        RetrievalCopying("UF", train_length=5, shortest=6, symbols=14, bins=3, opposite=2, test_size=0, batch=0)
    keys = ["batch", "shortest", "symbols", "opposite", "test_size"]
    assert [problem.key for problem in error.value.problems] == keys
    with pytest.raises(BadInput, match="task='URL': use UR, UL, NRFirst"):
        RetrievalCopying("URL")
    for task, symbols, fix in (("NRLast", 2, "3 or more"), ("NLFirst", 101, "at most 100"), ("UF", 14, "15 or more")):
        with pytest.raises(BadInput, match=f"symbols={symbols}: use {fix}"):
            RetrievalCopying(task, train_length=5, symbols=symbols)
    for bins in (0, 101):
        with pytest.raises(BadInput, match=f"bins={bins}: use 1 to 100 with train_length=50"):
            RetrievalCopying("UR", bins=bins)
    with pytest.raises(BadInput, match="train_length=3: use 4"):
        RetrievalCopying("UR", train_length=3)
