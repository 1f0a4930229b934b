"""Addition whose answer has two tokens: the digits of a + b in base n.

Shape legend: N query.
"""

import torch
from torch import Tensor

from grok.data import Generated, NextToken, Questions, RegimeDataModule, Split, TableStream
from grok.data.keyed import keyed_hash
from grok.task import Task


class TwoDigitSum(RegimeDataModule):
    """All `a b`, a and b digits in base n, and the answer `high low` with a + b = n · high + low.

    Symbols are the n digits and the closing `</a>`. A fifth of the pairs is held out.

    Args:
        base: n.
        batch: see `RegimeDataModule`, as all further arguments.
        seed: see `RegimeDataModule`.
        order_seed: see `RegimeDataModule`.
        evaluation_batch: see `RegimeDataModule`.
    """

    memorised_split = "trained"
    held_out_splits = ("held_out",)

    def __init__(
        self,
        base: int = 10,
        batch: int = 80,
        seed: int = 0,
        order_seed: int | None = None,
        evaluation_batch: int = 4096,
    ) -> None:
        super().__init__(batch=batch, seed=seed, order_seed=order_seed, evaluation_batch=evaluation_batch)
        self.base, self.encoding = base, NextToken()

    @property
    def task(self) -> Task:
        """See `RegimeDataModule.task`."""
        return self.encoding.task(self.base + 1, prompt=2, answer=2)

    def encode(self, a: Tensor, b: Tensor) -> Split:
        """Inputs `[N, 3]` (a, b and, teacher-forced, `high`) and two slots, from digits `[N]` each."""
        total = a + b
        answer = torch.stack([torch.div(total, self.base, rounding_mode="floor"), total % self.base], 1)
        questions = Questions(torch.stack([a, b], 1), answer, ("a", "b"), {"sum": total}, symbols=())
        return self.encoding.encode(questions, self.base + 1, end=self.base)

    def generate(self) -> Generated:
        """See `RegimeDataModule.generate`."""
        a, b = torch.cartesian_prod(torch.arange(self.base), torch.arange(self.base)).unbind(1)
        rows = keyed_hash("pair", self.seed, a, b).argsort(stable=True)
        cut = len(rows) * 4 // 5
        splits = {
            "trained": self.encode(a[rows[:cut]], b[rows[:cut]]),
            "held_out": self.encode(a[rows[cut:]], b[rows[cut:]]),
        }
        return Generated(TableStream(splits["trained"], self.batch, self.order_seed), splits)
