"""The words and tables of the page, in Markdown; charts stand where a line says `{{chart:NAME}}`."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from grok.report.page.run import Run
from grok.verdict.cost import spelled
from grok.verdict.page import table

__all__ = ["groups_of", "of_run", "of_runs", "seedless"]

LEVELS = (0.5, 0.95, 0.99)
_LONGEST_VALUE = 60


def of_run(run: Run, charts: Sequence[str], explored: Mapping[str, bool]) -> Iterator[str]:
    """Lines about one run.

    Args:
        run: the run.
        charts: names of the charts that there are.
        explored: splits that the circuit explorer shows, and whether with attention.
    """
    yield f"# {_plain(run.name)}"
    yield ""
    yield _line(run)
    yield ""
    if run.summary.get("loss"):
        yield from _table(["split", "accuracy", "loss", "queries", "50 % at", "95 % at", "99 % at"], _final(run))
    for name, heading in _CHARTS.items():
        shown = [chart for chart in charts if chart == name or chart.startswith(f"{name}:")]
        if not shown:
            continue
        yield from ("", f"## {heading}", "")
        for chart in shown:
            yield from (f"{{{{chart:{chart}}}}}", "")
        yield _NOTES.get(name, "")
        if name == "circuit":
            yield from _explorers(explored)
    if "circuit" not in charts:
        yield from _explorers(explored)
    yield from ("", "## Cost to milestones", "")
    yield from _table(["milestone", "step", "queries", "FLOPs", "training time"], _costs(run))
    yield from ("", "Queries, FLOPs and time are those of the whole run, in proportion to the step.", "")
    yield from _data(run)
    yield from _configuration(run)
    yield from _starts(run)


_CHARTS = {
    "accuracy": "Accuracy", "loss": "Loss", "circuit": "Circuit formation",
    "nodes": "Nodes of the circuit", "groups": "Attention to groups",
    "measures": "Measures of the data regime", "norms": "Weight norms", "updates": "Changes of the weights",
}  # fmt: skip

_NOTES = {
    "accuracy": "Bands are 95 % intervals over queries, dotted lines what chance gives.",
    "circuit": "Bands are 95 % intervals over examples. Dotted: the floor, what shuffled ground truth (lens) or a"
    " counterfactual that keeps the bridge (strength) gives; of faithfulness what is kept without any node, of"
    " completeness what other nodes, as many, take.",
    "nodes": "Share of answers that change if the node alone is replaced; blank where it is not in the circuit.",
    "norms": "Frobenius norms of the weight matrices.",
}

_EXPLORER = (
    "Every cell is a state S[i, position]. The slider (or the arrow keys on it) goes through the saved checkpoints; a"
    " query shows what the logit lens reads, *all queries* the means."
)
_HEADS = " Point at a cell, or move to it with Tab, to see where the heads of that step look."


def _explorers(explored: Mapping[str, bool]) -> Iterator[str]:
    if explored:
        yield from ("", "## Circuit explorer", "", _EXPLORER + _HEADS * any(explored.values()), "")
    for split in explored:
        yield from (f"{{{{explorer:{split}}}}}", "")


def _line(run: Run) -> str:
    summary = run.summary
    if not summary:
        return f"**{run.regime}, seed {run.seed}; there is no summary yet.**"
    parts = [f"{run.regime}, seed {run.seed}", f"{summary.get('step', 0):,} steps"]
    memorised, grokked = summary.get("memorised_step"), run.grok_step
    parts.append(f"memorised at {memorised:,}" if memorised is not None else "not memorised")
    parts.append(f"grokked at {grokked:,} ({run.first_held_out})" if grokked is not None else "not grokked")
    if summary.get("delay") is not None:
        parts.append(f"delay {summary['delay']:.1f} ×")
    if summary.get("flops"):
        parts.append(f"{spelled(summary['flops'])}, {summary.get('train_seconds') or 0:,.0f} s of training")
    unfinished = "" if summary.get("finished") else " **The run is not finished.**"
    return f"**{'; '.join(parts)}.**{unfinished}"


def _final(run: Run) -> Iterator[list[str]]:
    curves = run.curves("accuracy")
    for split, loss in (run.summary.get("loss") or {}).items():
        accuracy = (run.summary.get("accuracy") or {}).get(split)
        reached = [curves[split].first(level) if split in curves else None for level in LEVELS]
        yield [
            _plain(split), _share(accuracy), "–" if loss is None else f"{loss:.4g}",
            f"{(run.summary.get('queries_in_split') or {}).get(split, 0):,}", *(_step(step) for step in reached),
        ]  # fmt: skip


def _share(accuracy: float | None) -> str:
    return "–" if accuracy is None or math.isnan(accuracy) else f"{100 * accuracy:.1f} %"


def _step(step: int | None) -> str:
    return "–" if step is None else f"{step:,}"


def _costs(run: Run) -> Iterator[list[str]]:
    summary, end = run.summary, run.summary.get("step") or 0
    marks: list[tuple[str, int | None]] = [("memorised", summary.get("memorised_step"))]
    marks += [(f"grokked, {split}", step) for split, step in (summary.get("grok_step") or {}).items()]
    for name, step in [*marks, ("end", end)]:
        if step is None or not end:
            yield [name, "–", "–", "–", "–"]
            continue
        spent = {key: summary[key] * step / end for key in _SPENT if summary.get(key) is not None}
        yield [name, f"{step:,}", *(told(spent[key]) if key in spent else "–" for key, told in _SPENT.items())]


_SPENT: Mapping[str, Callable[[float], str]] = {
    "queries": "{:,.0f}".format, "flops": spelled, "train_seconds": "{:,.1f} s".format,
}  # fmt: skip


def _data(run: Run) -> Iterator[str]:
    sizes = run.summary.get("sizes") or {}
    shown = run.starts[-1].get("example") if run.starts else None
    yield from ("## Data", "", _code(run.regime_class), "")
    if sizes:
        yield from _table(["size", "value"], [[name, f"{value:g}"] for name, value in sizes.items()])
        yield ""
    if shown:
        yield f"A query of {_code(shown['split'])}, and its answer:"
        yield ""
        yield from _table(
            ["position", "shown"],
            [[_code(place), _shown(one)] for place, one in zip(shown["positions"], shown["query"], strict=False)],
        )
        yield from ("", f"Answer: {', '.join(_shown(one) for one in shown['answer'])}", "")


def _shown(value: Any) -> str:
    return _code(value if isinstance(value, str) else json.dumps(value))


def _code(text: str) -> str:
    """As code, whatever characters are in it; between more backticks than stand there together."""
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    padded = f" {text} " if text.startswith("`") or text.endswith("`") or not text.strip() else text
    return f"{ticks}{' '.join(padded.splitlines())}{ticks}"


def _plain(text: str) -> str:
    """With what Markdown would take for markup as it is."""
    return re.sub(r"([\\`*\[<])", r"\\\1", text)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    whole = [[cell.replace("|", "\\|") for cell in cells] for cells in (head, *rows)]
    yield from table(whole[0], whole[1:])


def _configuration(run: Run) -> Iterator[str]:
    starts = run.starts
    yield from ("## Configuration", "")
    if starts and starts[0].get("presets"):
        changed = starts[0]["overrides"]
        presets = ", ".join(_code(file) for file in starts[0]["presets"])
        yield f"Preset: {presets}{'; the command line changes:' if changed else ', as it is.'}"
        yield ""
        if changed:
            yield from _table(
                ["key", "preset", "here"],
                [
                    [
                        _code(one["key"]),
                        "not set" if one["preset"] is None else _shown(one["preset"]),
                        _shown(one["value"]),
                    ]
                    for one in changed
                ],
            )
            yield ""
    text = run.yaml().rstrip()
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    yield from ("All keys:", "", f"{fence}yaml", text, fence, "")


def _starts(run: Run) -> Iterator[str]:
    if run.starts:
        yield from ("## Command and environment", "")
    for start in run.starts:
        packages = ", ".join(f"{name} {version}" for name, version in start["packages"].items() if version)
        how = "Started" if not start.get("resumed") else f"Went on from {start['resumed']}"
        yield f"- {how} {start['time']}: {_code(start['command'])} in {_code(start['directory'])}"
        commit = start["commit"] or "not known"
        yield f"    - grok {start['grok']}, commit {commit}; Python {start['python']}, {packages}"
        where = f"{start.get('threads')} thread(s) of {start.get('cores')} cores, {start.get('platform')}"
        yield f"    - {start['device']}, {where}"


# ---------------------------------------------------------------------------------------------------- several runs


def seedless(keys: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """The varied keys that are not seeds."""
    return {key: values for key, values in keys.items() if "seed" not in key}


def groups_of(runs: Sequence[Run], keys: Mapping[str, Sequence[Any]]) -> dict[str, list[Run]]:
    """Runs that differ in seeds only, together, by what they have in common."""
    found: dict[tuple[str, ...], list[int]] = {}
    for index in range(len(runs)):
        found.setdefault(tuple(_whole(values[index]) for values in seedless(keys).values()), []).append(index)
    names = {}
    for setting, members in found.items():
        told = ", ".join(f"{_short(key)} {_spelled(values[members[0]])}" for key, values in seedless(keys).items())
        whole = ", ".join(f"{key} {value}" for key, value in zip(seedless(keys), setting, strict=True))
        names[whole if told in names else told or runs[members[0]].regime] = [runs[index] for index in members]
    return names


def _short(key: str) -> str:
    return key.rpartition(".")[2]


def _whole(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _spelled(value: Any) -> str:
    text = _whole(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def of_runs(title: str, runs: Sequence[Run], keys: Mapping[str, Sequence[Any]], charts: Sequence[str]) -> Iterator[str]:
    """Lines about several runs: medians of each setting, charts, and a table of all runs."""
    splits = list(dict.fromkeys(split for run in runs for split in run.curves("accuracy")))
    groups = groups_of(runs, keys)
    sizes = f"{_count(len(runs), 'run')}, {_count(len(groups), 'setting')}."
    yield from (f"# {_plain(title)}", "", sizes, "", "## Settings", "")
    yield from _table(
        ["setting", "runs", "memorised at", "grokked at", *(f"final {split}" for split in splits)],
        [_setting(name, members, splits) for name, members in groups.items()],
    )
    yield from ("", "Steps: median (lowest–highest) of the runs that got there. Accuracies: mean (lowest–highest).", "")
    for chart in charts:
        yield from (f"{{{{chart:{chart}}}}}", "")
    yield from ("## Runs", "")
    names = {key: _short(key) if [_short(one) for one in keys].count(_short(key)) == 1 else key for key in keys}
    yield from _table(
        ["run", *names.values(), "memorised at", "grokked at", "delay", *(f"final {s}" for s in splits), "training s"],
        [_row(run, index, keys, splits) for index, run in enumerate(runs)],
    )
    yield ""
    unfinished = [run.name for run in runs if not run.summary.get("finished")]
    if unfinished:
        yield f"Not finished: {', '.join(unfinished)}."


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _setting(name: str, runs: Sequence[Run], splits: Sequence[str]) -> list[str]:
    steps = [[run.summary.get("memorised_step") for run in runs], [run.grok_step for run in runs]]
    finals = [[(run.summary.get("accuracy") or {}).get(split) for run in runs] for split in splits]
    told = [_span(column, "{:,.0f}", statistics.median) for column in steps]
    told += [_span(column, "{:.1%}", statistics.fmean) for column in finals]
    return [_plain(name), str(len(runs)), *told]


def _span(column: Sequence[float | None], spelling: str, middle: Any) -> str:
    values, of = [value for value in column if value is not None], len(column)
    if not values:
        return "–"
    told = _percent(spelling.format(middle(values)))
    if min(values) != max(values):
        told += _percent(f" ({spelling.format(min(values))}–{spelling.format(max(values))})")
    return told if len(values) == of else f"{told}, {len(values)} of {of}"


def _row(run: Run, index: int, keys: Mapping[str, Sequence[Any]], splits: Sequence[str]) -> list[str]:
    accuracy, delay = run.summary.get("accuracy") or {}, run.summary.get("delay")
    finals = (_share(accuracy.get(split)) for split in splits)
    return [
        _plain(run.name), *(_plain(_spelled(values[index])) for values in keys.values()),
        _step(run.summary.get("memorised_step")), _step(run.grok_step), "–" if delay is None else f"{delay:.1f}",
        *finals, f"{run.summary.get('train_seconds') or 0:,.0f}",
    ]  # fmt: skip


def _percent(text: str) -> str:
    return text.replace("%", " %")
