"""Encodings against the published layouts, and `Split` as a table."""

import pytest
import torch

from grok.data import FillIn, NextToken, Questions, Split, TwoHopComposition, concatenate
from grok.errors import BadInput

# Vocabulary: entities 0-2, relations 3-4, </a> is 5. One atomic fact and one composition with bridge 1.
END = 5
QUESTIONS = Questions(
    prompt=torch.tensor([[0, 3, -1], [0, 3, 4]]),
    answer=torch.tensor([[1], [2]]),
    names=("h", "r1", "r2"),
    truth={"bridge": torch.tensor([[-1], [1]]), "facts": torch.tensor([[0, -1], [0, 1]])},
)


def test_next_token_shows_what_is_needed():
    split = NextToken().encode(QUESTIONS, 6, END)
    assert split.inputs[1].tolist() == [0, 3, 4]
    assert split.inputs[0, :2].tolist() == [0, 3]
    assert split.at.tolist() == [[1], [2]]
    assert split.targets.tolist() == [[1], [2]]
    assert split.mask.all()
    assert split.positions == ("h", "r1", "r2")
    assert split.truth["bridge"].tolist() == [[-1], [1]]
    task = NextToken().task(6, 3, 1)
    assert (task.positions, task.outputs, task.tokens) == (3, 6, 6)


def test_supervised_end():
    split = NextToken(supervise_eos=True).encode(QUESTIONS, 6, END)
    assert split.inputs.tolist() == [[0, 3, 1, END], [0, 3, 4, 2]]
    assert split.at.tolist() == [[1, 2], [2, 3]]
    assert split.targets.tolist() == [[1, END], [2, END]]
    assert split.positions == ("h", "r1", "r2", "t")


def test_reference_numerics():
    """Wang et al. 2024 add their symbols to GPT-2's vocabulary and pad with its end of text to 10 tokens."""
    encoding = NextToken(vocab="gpt2", pad=10, supervise_eos=True)
    split = encoding.encode(QUESTIONS, 6, END)
    g = 50_257
    # The closing symbol, which no later position has to follow, is not shown: under a causal mask it is inert.
    assert split.inputs[0].tolist() == [g, g + 3, g + 1, *[50_256] * 7]
    assert split.inputs[1].tolist() == [g, g + 3, g + 4, g + 2, *[50_256] * 6]
    assert split.targets.tolist() == [[g + 1, g + END], [g + 2, g + END]]
    assert split.truth["bridge"].tolist() == [[-1], [g + 1]]
    assert split.truth["facts"].tolist() == [[0, -1], [0, 1]]
    regime = TwoHopComposition(encoding=encoding)
    assert (regime.task.tokens, regime.task.outputs, regime.task.positions) == (52_464, 52_464, 10)


@pytest.mark.parametrize("pad", ["tight", 10])
def test_no_input_shows_the_answer(pad):
    split = NextToken(pad=pad).encode(QUESTIONS, 6, END)
    for inputs, at in zip(split.inputs, split.at[:, 0], strict=True):
        assert (inputs[at + 1 :] == END).all()  # padding of the closed vocabulary


def test_fill_in_has_the_published_layout():
    """He et al. 2026: token = symbol + 1, inputs and labels of 5 positions, padded with 0, every label supervised."""
    split = FillIn().encode(QUESTIONS, 6, END)
    assert split.inputs.tolist() == [[1, 4, 0, 0, 0], [1, 4, 5, 0, 0]]
    labels = torch.zeros(2, 5, dtype=torch.int64)
    labels.scatter_(1, split.at, split.targets * split.mask)
    assert labels.tolist() == [[1, 4, 2, END + 1, 0], [1, 4, 5, 3, END + 1]]
    assert split.mask.sum(1).tolist() == [4, 5]
    assert split.at[:, 0].tolist() == [2, 3]  # the answer comes first
    assert split.targets[:, 0].tolist() == [2, 3]
    assert split.truth["bridge"].tolist() == [[-1], [2]]
    task = FillIn().task(2206, 3, 1)
    assert (task.positions, task.tokens) == (5, 2207)


def test_a_longer_answer_has_a_slot_per_token():
    questions = Questions(torch.tensor([[0, 3], [1, 4]]), torch.tensor([[1, 2], [2, -1]]), ("h", "r"))
    split = NextToken(supervise_eos=True).encode(questions, 6, END)
    assert split.at[0].tolist() == [1, 2, 3]
    assert split.targets[0].tolist() == [1, 2, END]
    assert split.mask.tolist() == [[True, True, True], [True, True, False]]
    assert split.targets[1, :2].tolist() == [2, END]


@pytest.mark.parametrize(
    ("arguments", "keys"), [({"vocab": "bpe", "pad": 0}, ["vocab", "pad"]), ({"pad": "x"}, ["pad"])]
)
def test_bad_encoding(arguments, keys):
    with pytest.raises(BadInput) as raised:
        NextToken(**arguments)
    assert [problem.key for problem in raised.value.problems] == keys


def test_too_little_padding():
    with pytest.raises(BadInput, match="pad=3: use tight, or at least 4"):
        NextToken(pad=3, supervise_eos=True).task(6, 3, 1)


def test_take_and_chunks():
    split = TwoHopComposition(entities=20, relations=5, out_degree=4, phi=1, iid=0.2).splits["id_atomic"]
    reversed_ = split.take(torch.arange(len(split)).flip(0))
    assert torch.equal(reversed_.inputs.flip(0), split.inputs)
    assert torch.equal(reversed_.truth["facts"].flip(0), split.truth["facts"])
    assert torch.equal(torch.cat([piece.inputs for piece in split.chunks(7)]), split.inputs)
    shares = [piece for rank in range(3) for piece in split.chunks(7, rank, 3)]
    assert sum(map(len, shares)) == len(split)
    assert split.without_truth().truth == {}


def test_concatenate():
    split = NextToken().encode(QUESTIONS, 6, END)
    assert torch.equal(concatenate([split, split]).inputs, split.inputs.repeat(2, 1))
    with pytest.raises(ValueError, match="one encoding"):
        concatenate([split, FillIn().encode(QUESTIONS, 6, END)])


def test_a_split_refuses_columns_of_another_length():
    with pytest.raises(ValueError, match="facts"):
        Split(
            inputs=torch.zeros(2, 1, dtype=torch.int64),
            at=torch.zeros(2, 1, dtype=torch.int64),
            targets=torch.zeros(2, 1, dtype=torch.int64),
            mask=torch.ones(2, 1, dtype=torch.bool),
            positions=("x",),
            truth={"facts": torch.zeros(3, 2)},
        )
