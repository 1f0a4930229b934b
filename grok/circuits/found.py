"""Bridge Found and Target Found: is a token on top of the logit lens anywhere at all (He et al. 2026, section 3), and
the same question asked so that neither chance nor copying can answer it.

Shape legend: N example, S stage, T position, A slot, K top token, E excluded token, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grok.circuits.examples import column
from grok.circuits.grid import Grid
from grok.circuits.lens import logit_lens
from grok.data.split import Split
from grok.models import StepModel

__all__ = ["Found", "chance", "found"]

Token = Literal["bridge", "target"]


@dataclass(frozen=True)
class Found:
    """What is on top of the logit lens in every state of every query.

    As published: *Bridge Found* is the share of queries whose bridge is the top token at any stage S[0] … S[n] and any
    position, *Target Found* the same of the answer, which is no accuracy (He et al. 2026, figure 2). Among S · T
    guesses other tokens are too: the floor is the same statistic of another query's bridge (or answer).

    Corrected: only `distinct` queries, and a bridge only in states that a later step reads, S[0] … S[n - 1]. What the
    prompt shows is found by copying, as models that fill in the whole sequence learn to; a bridge that is the answer,
    by answering; and in S[n, r1] of a causal model that is trained on atomic facts it is the answer to h r1, which no
    step uses.

    Args:
        top: `[N, S, T]` the top token of each state; -1 where the model has diverged.
        bridge: `[N]` token; -1 for none.
        targets: `[N, A]` tokens that are right in each slot, the answer first.
        mask: `[N, A]` bool, the slots that a query has.
        at: `[N, A]` where each slot is read.
        shown: `[N, T]` tokens of the prompt; -1 at positions that do not count, because a causal model is shown there
            what comes after the prompt.
    """

    top: Tensor
    bridge: Tensor
    targets: Tensor
    mask: Tensor
    at: Tensor
    shown: Tensor

    @property
    def distinct(self) -> Tensor:
        """Whether the prompt shows neither bridge nor answer, and the two differ: `[N]` bool, False without bridge."""
        bridge, answer = self.bridge[:, None], self.targets[:, :1]
        copied = ((self.shown == bridge) | (self.shown == answer)).any(1)
        return ~copied & (bridge != answer)[:, 0] & (self.bridge >= 0)

    @property
    def right(self) -> Tensor:
        """Whether the last state says the right token: `[N, A]` bool."""
        return self.top[:, -1].gather(1, self.at) == self.targets

    def first(self, token: Token) -> Tensor:
        """The first stage at which the bridge or the target is on top: `[N, T]`; -1 for never, and where it cannot."""
        there = (self._anywhere == self._own(token)[:, None, None]) & (self._own(token) >= 0)[:, None, None]
        return torch.where(there.any(1), there.int().argmax(1), -1)

    def grid(self) -> Grid:
        """Shares of queries, by the name of the measure.

        Published: `bridge`, `target`. Corrected, all of distinct queries, bridges only in states that are read:
        `bridge_distinct`, `target_distinct`, found anywhere; `bridge_at_slot`, `target_at_slot`, where the answer is
        read; `bridge_if_correct`, the share with the bridge found anywhere of those answered right;
        `correct_if_bridge`, the share answered right of those with the bridge found anywhere. Besides, `correct`: the
        answer is right; `exact`: so is every slot.

        The floor of `correct_if_bridge` is P(answer right) in the distinct queries: what it would be if it did not
        matter whether the bridge is found. `exact` has none; the other floors are `chance`.
        """
        known, distinct, correct = self.bridge >= 0, self.distinct, self.right[:, 0]
        every, said = torch.ones_like(known), self.top[:, -1].gather(1, self.at[:, :1])
        slot = self.top.gather(2, self.at[:, :1, None].expand(-1, self.top.shape[1], 1))[..., 0]  # [N, S]
        anywhere, read = self._anywhere.flatten(1), self._anywhere[:, :-1].flatten(1)

        def there(token: Token, top: Tensor) -> Tensor:
            own = self._own(token)
            return (top == own[:, None]).any(1) & (own >= 0)

        bridge, by_chance = there("bridge", read), self._chance("bridge", read, distinct=True)
        rows = {  # value, queries that count, floor
            "bridge": (there("bridge", anywhere), known, self._chance("bridge", anywhere)),
            "target": (there("target", anywhere), every, self._chance("target", anywhere)),
            "bridge_distinct": (bridge, distinct, by_chance),
            "target_distinct": (
                there("target", anywhere), distinct, self._chance("target", anywhere, distinct=True),
            ),
            "bridge_at_slot": (
                there("bridge", slot[:, :-1]), distinct, self._chance("bridge", slot[:, :-1], distinct=True),
            ),
            "target_at_slot": (there("target", slot), distinct, self._chance("target", slot, distinct=True)),
            "bridge_if_correct": (bridge, distinct & correct, by_chance),
            "correct_if_bridge": (correct, distinct & bridge, _among(distinct, correct)),
            "correct": (correct, every, self._chance("target", said)),
            "exact": ((self.right | ~self.mask).all(1), every, torch.full_like(by_chance, torch.nan)),
        }  # fmt: skip
        floors = [
            floor if name == "correct_if_bridge" else _among(counts, floor) for name, (_, counts, floor) in rows.items()
        ]
        values = [_among(counts, value) for value, counts, _ in rows.values()]
        return Grid.of("found", {"measure": tuple(rows)}, torch.stack(values, 1), torch.stack(floors, 1))

    @property
    def _anywhere(self) -> Tensor:
        """Top tokens at positions that count, -1 elsewhere: `[N, S, T]`."""
        return self.top.masked_fill((self.shown < 0)[:, None], -1)

    def _own(self, token: Token) -> Tensor:
        return self.bridge if token == "bridge" else self.targets[:, 0]

    def _chance(self, token: Token, top: Tensor, distinct: bool = False) -> Tensor:
        """With `distinct`, others' tokens must be distinct in this query, as its own had to be to count."""
        own = self._own(token)[:, None]
        taken = [self.bridge[:, None], self.targets[:, :1], self.shown] if distinct else []
        return chance(own[:, 0], top, torch.cat([own, *taken], 1))


def chance(own: Tensor, top: Tensor, excluded: Tensor) -> Tensor:
    """Probability `[N]` that another query's token is among `top` `[N, K]`: the floor of what is found.

    The token is that of any other query, each as likely, but none of the query's `excluded` ones: the mean over all
    shuffles of `own`, without the noise of drawing a few. NaN where no other token is left.

    Args:
        own: `[N]` tokens looked for, from which others' are taken; -1 for none.
        top: tokens on top, in any order and number; -1 for none.
        excluded: `[N, E]` tokens that are not taken, each query's own among them; -1 for none.
    """
    size = int(max(own.max(), top.max(), excluded.max())) + 1
    weight = torch.bincount(own[own >= 0], minlength=max(1, size)).double()
    allowed = top.masked_fill((top[:, :, None] == excluded[:, None]).any(-1), -1)
    return (_mass(weight, allowed) / (weight.sum() - _mass(weight, excluded)).masked_fill_(own < 0, 0)).float()


def _mass(weight: Tensor, tokens: Tensor) -> Tensor:
    """Weight of the different tokens in each row `[N, K]`, -1 for none: `[N]`."""
    ordered = tokens.sort(1).values
    repeated = torch.nn.functional.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))
    return weight[ordered.clamp(min=0)].masked_fill(repeated | (ordered < 0), 0).sum(1)


def _among(counts: Tensor, values: Tensor) -> Tensor:
    """`[N]` numbers, NaN for a query that does not count."""
    return values.float().masked_fill(~counts, torch.nan)


def found(model: StepModel, split: Split, bridge: str = "bridge[0]", batch: int = 1024) -> Found:
    """Read the top token of every state, of the stream that the model decodes there (`StepModel.stream_at`).

    Args:
        model: any step model with token outputs.
        split: queries with a bridge.
        bridge: ground truth that is the bridge, see `grok.circuits.examples.column`.
        batch: most rows (query × position) read out at a time; bounds memory.

    Raises:
        BadInput: for a split without bridges or with other than token answers.
    """
    tokens = column(split, bridge)[:, 0].cpu()
    lens = logit_lens(model, split, ["answer"], batch=batch)
    at, inputs = split.at.cpu(), split.inputs.cpu()
    after = torch.arange(inputs.shape[1]) > at[:, :1]
    return Found(
        top=lens.readings["answer"].top[..., 0].long(),
        bridge=tokens,
        targets=split.targets.cpu(),
        mask=split.mask.cpu(),
        at=at,
        shown=inputs.masked_fill(after, -1) if model.causal else inputs,
    )
