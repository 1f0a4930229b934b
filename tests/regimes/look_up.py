"""A regime from outside the package: columns (key | value), a query with a key alone, and the value as the answer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from grok.circuits import Grid, measures
from grok.data import FreshStream, Generated, RegimeDataModule, Split
from grok.data.keyed import keyed_permutation, keyed_uniform
from grok.task import Field, Task


class LookUp(RegimeDataModule):
    """`keys` columns in random order, each with one of `values`; the answer is the value vector of the query's key."""

    held_out_splits = ("test",)

    def __init__(self, keys: int = 4, values: int = 3, batch: int = 64, seed: int = 0):
        super().__init__(batch=batch, seed=seed)
        self.keys, self.values = keys, values

    @property
    def task(self) -> Task:
        fields = (Field("key", self.keys), Field("value", self.values, matched=False))
        return Task(self.keys + 1, self.values, features=self.keys + self.values, fields=fields, answer=self.keys)

    def queries(self, size: int, *key: int | str) -> Split:
        row = torch.arange(size)[:, None]
        shown = keyed_permutation(torch.arange(self.keys).expand(size, -1), self.keys, "keys", *key, row)
        value = keyed_uniform(self.values, "values", *key, row, torch.arange(self.keys))
        asked = keyed_uniform(self.keys, "asked", *key, row)
        pairs = torch.cat([F.one_hot(shown, self.keys), F.one_hot(value, self.values)], -1)
        query = F.pad(F.one_hot(asked, self.keys), (0, self.values))
        source = shown == asked
        return Split(
            inputs=torch.cat([pairs, query], 1).float(),
            at=torch.full((size, 1), self.keys),
            targets=F.one_hot(value[source], self.values)[:, None].float(),
            mask=torch.ones(size, 1, dtype=torch.bool),
            positions=(*(f"pair{i}" for i in range(self.keys)), "query"),
            truth={"source": source.long().argmax(1)},
            codes=(torch.eye(self.values),),
        )

    def groups(self, split: Split) -> dict[str, Tensor]:
        place = torch.arange(split.inputs.shape[1])
        source = (place == split.truth["source"][:, None])[:, None]
        return {"source": source, "other pairs": ~source & (place < self.keys)}

    def generate(self) -> Generated:
        train = FreshStream(lambda step: self.queries(self.batch, self.seed, step), self.batch)
        return Generated(train, {"test": self.queries(200, self.seed, "test")})


@measures.register
def _(data: LookUp, model, name, split, batch=1024):
    outputs = model(split.inputs, at=split.at)[:, 0].detach()
    diagonal = model.blocks[0].attn.key_query[0, : data.keys, : data.keys].diagonal().mean().detach()
    errors = torch.stack([(outputs[:, v] - split.targets[:, 0, v]).abs() for v in range(data.values)], 1)
    return [
        Grid.of_model("diagonal", {"matrix": ("key_query",)}, diagonal[None]),
        Grid.of("error_by_coordinate", {"value": tuple(map(str, range(data.values)))}, errors),
    ]
