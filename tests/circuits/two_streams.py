"""A small model with two streams that is not causal: as the recursive models, but a dozen lines."""

import torch
from torch import nn

from grok.models import StepModel
from grok.models.steps import pick
from grok.task import Task


class TwoStreams(StepModel):
    """Steps 0 and 1 of each round write stream `b`, step 2 writes `a`; `emb` is an input of every step, and `prefix`
    has other positions. `S[i]` is decoded from the stream that was written last."""

    causal = False
    streams = ("a", "b")

    def __init__(self, task: Task, width: int = 16, rounds: int = 2):
        super().__init__()
        self.task, self.rounds = task, rounds
        self.embedding, self.head = nn.Embedding(task.tokens, width), nn.Linear(width, task.outputs, bias=False)
        self.mix, self.up = nn.Linear(task.positions, task.positions), nn.Linear(2 * width, width)

    @property
    def steps(self):
        return [self._write_b, self._write_b, self._write_a] * self.rounds

    def stream_at(self, index):
        return "b" if index % 3 else "a"

    def embed(self, inputs, position_ids=None):
        x = self.embedding(inputs)
        return {"a": x * 0 + 1, "b": x * 0 - 1, "emb": x, "prefix": x[:, :1] * 0}

    def _write_b(self, state, at=None, tap=None, memory=None):
        return self._written("b", state["a"] + state["emb"], state, at)

    def _write_a(self, state, at=None, tap=None, memory=None):
        return self._written("a", state["b"], state, at)

    def _written(self, name, other, state, at):
        x = torch.cat([state[name], other], -1)
        new = state[name] + self.up(self.mix(x.transpose(1, 2)).transpose(1, 2).tanh())
        state = {**state, name: new / new.norm(dim=-1, keepdim=True)}
        return state if at is None else {stream: pick(state[stream], at) for stream in self.streams}

    def readout(self, state, norm=True):
        return self.head(state["a"])


class Scripted(StepModel):
    """Says what it is told: `script` `[V, S, T]` is the top token of each state of the query that begins with v."""

    def __init__(self, task, script, causal=False):
        super().__init__()
        self.task, self.causal, self.script = task, causal, script
        self.unused = nn.Parameter(torch.zeros(1))

    @property
    def steps(self):
        return [self._next] * (self.script.shape[1] - 1)

    def _next(self, state, at=None, tap=None, memory=None):
        return {name: stream + (name == "stage") for name, stream in state.items()}

    def embed(self, inputs, position_ids=None):
        first = inputs[:, :1, None].expand(-1, inputs.shape[1], 1)
        return {"resid": first.float(), "stage": torch.zeros_like(first)}

    streams = ("resid", "stage")

    def readout(self, state, norm=True):
        said = self.script[state["resid"][:, 0, 0].long(), state["stage"][:, 0, 0]]  # [B, T]
        return nn.functional.one_hot(said, self.task.outputs).float()
