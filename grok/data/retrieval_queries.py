"""Contexts for retrieval and copying and what is asked of them, many at a time; see `grok.data.retrieval_copying`.

Shape legend: N query, L symbol of the longest context, T position, A slot.
"""

from __future__ import annotations

import torch
from torch import Tensor

from grok.data.split import Split

__all__ = ["BOS", "EOS", "OPPOSITE", "SEP", "SPECIAL", "copying", "retrieval"]

BOS, SEP, EOS, OPPOSITE = range(4)
SPECIAL = 4
"""Tokens before the first symbol."""

TRIES = 8  # draws at a time: a third to two thirds are good, and each round costs the same however few rows are left


def retrieval(
    kind: str, length: Tensor, left: Tensor, mirrored: Tensor, width: int, symbols: int, generator: torch.Generator
) -> Split:
    """Queries `<bos> context <sep> query`, answered by a neighbour of the query's occurrence that is meant.

    Args:
        kind: `U`, the query symbol occurs once; `First` or `Last`, twice or more, and its first or last one is meant.
        length: `[N]` symbols of each context.
        left: `[N]` bool, whether the left neighbour is asked for, else the right one.
        mirrored: `[N]` bool, whether the separator is `<opposite>`.
        width: T, which decides L: fixed, whatever lengths were drawn.
        symbols: size of the alphabet.
        generator: of all random numbers.
    """
    longest = width - 3
    if kind == "U":
        context, source = _once(length, left, longest, symbols, generator)
    else:
        context, source = _repeated(kind, length, left, longest, symbols, generator)
    neighbour = source + torch.where(left, -1, 1)
    query, answer = (SPECIAL + context.gather(1, index[:, None]) for index in (source, neighbour))
    at = length[:, None] + 2
    return Split(
        inputs=_begun(context, length, mirrored, width).scatter(1, at, query),
        at=at,
        targets=answer,
        mask=torch.ones_like(at, dtype=torch.bool),
        positions=tuple(str(place) for place in range(width)),
        truth={"length": length, "source": source[:, None] + 1},
        labels=torch.arange(SPECIAL, SPECIAL + symbols),
    )


def copying(
    repeats: bool, length: Tensor, back: Tensor, mirrored: Tensor, width: int, symbols: int, generator: torch.Generator
) -> Split:
    """Queries `<bos> s <sep> s'`, in which each token of s' and a closing `<eos>` is read one position before.

    Args:
        repeats: whether symbols of s may repeat.
        length: `[N]` symbols of each s.
        back: `[N]` bool, whether s' is s backwards.
        mirrored: `[N]` bool, whether the separator is `<opposite>`.
        width: T, which decides L: fixed, whatever lengths were drawn.
        symbols: size of the alphabet.
        generator: of all random numbers.
    """
    rows, longest = len(length), (width - 2) // 2
    context = (
        torch.randint(symbols, (rows, longest), generator=generator)
        if repeats
        else torch.rand(rows, symbols, generator=generator).argsort(1)[:, :longest]
    )
    slot, ends = torch.arange(longest + 1), length[:, None]
    place = torch.where(back[:, None], ends - 1 - slot, slot)  # in s, of what is asked for in each slot
    asked = SPECIAL + context.gather(1, place.clamp(0, longest - 1))
    targets = torch.where(slot < ends, asked, EOS)
    inputs = _begun(context, length, mirrored, width).scatter(1, ends + 2 + slot[:-1], targets[:, :-1])
    read = place - torch.where(back[:, None], -1, 1)  # in s, of the token that is read: the one before, in s'
    return Split(
        inputs=inputs,
        at=ends + 1 + torch.minimum(slot, ends),
        targets=targets,
        mask=slot <= ends,
        positions=tuple(str(place) for place in range(width)),
        truth={"length": length, "source": torch.where((slot > 0) & (slot <= ends), read + 1, -1)},
    )


def _begun(context: Tensor, length: Tensor, mirrored: Tensor, width: int) -> Tensor:
    """`[N, T]`: `<bos>`, each context and its separator, then `<eos>`, which nothing before it sees."""
    inputs = torch.full((len(context), width), EOS)
    inputs[:, 0] = BOS
    inputs[:, 1 : context.shape[1] + 1] = SPECIAL + context
    inputs = torch.where(torch.arange(width) > length[:, None], EOS, inputs)
    return inputs.scatter(1, length[:, None] + 1, torch.where(mirrored, OPPOSITE, SEP)[:, None])


def _once(
    length: Tensor, left: Tensor, longest: int, symbols: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Contexts `[N, L]` and the index `[N]` of a symbol that occurs once and has the neighbour asked for."""
    rows = len(length)
    query = torch.randint(symbols, (rows, 1), generator=generator)
    others = torch.randint(1, symbols, (rows, longest), generator=generator)
    source = (torch.rand(rows, generator=generator) * (length - 1)).long() + left
    return ((query + others) % symbols).scatter(1, source[:, None], query), source


def _repeated(
    kind: str, length: Tensor, left: Tensor, longest: int, symbols: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Contexts `[N, L]` and the index `[N]` of the first or last occurrence of a symbol drawn from each, which repeats.

    Drawn again, as in the authors' code, until the neighbour exists; the last occurrence is never the final symbol.
    """
    context, source = torch.zeros(len(length), longest, dtype=torch.int64), torch.zeros_like(length)
    place, wrong = torch.arange(longest), torch.arange(len(length))
    while len(wrong):
        rows = wrong.repeat_interleave(TRIES)  # of which the first good one is taken
        ends = length[rows]
        tried = torch.randint(symbols, (len(rows), longest), generator=generator)
        drawn = (torch.rand(len(rows), generator=generator) * ends).long()
        same = (tried == tried.gather(1, drawn[:, None])) & (place < ends[:, None])
        if kind == "First":
            found = same.long().argmax(1)
            lacks = left[rows] & (found == 0)
        else:
            found = (same * (place + 1)).argmax(1)
            lacks = found == ends - 1
        good = ((same.sum(1) > 1) & ~lacks).view(-1, TRIES)
        first = good.long().argmax(1) + torch.arange(len(wrong)) * TRIES
        context[wrong], source[wrong] = tried[first], found[first]
        wrong = wrong[~good.any(1)]
    return context, source
