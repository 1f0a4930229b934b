"""Charts of the page, as plotly figures: colours for light and dark, floors dotted, bands for intervals and spreads."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from grok.report.cells import title
from grok.report.measures import curves_of
from grok.report.page.run import Curve, Run
from grok.report.style import milestones_of

__all__ = [
    "brought_charts", "circuit_chart", "curves_chart", "grok_step_chart", "nodes_chart", "overlay_chart",
]  # fmt: skip

_MOST_LINES = 24

# Okabe and Ito's colours, those that can be seen on white and on black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C", "#A6761D")
DASHES = ("solid", "dash", "dot", "dashdot")
_FIRST_DASH = (0, 0, 1, 1, 2, 3, 2, 1)  # of each colour; when the colours are used up, each goes on with its next dash
_MOST_STEPS_LABELLED = 2


def _figure(rows: int = 1, titles: Sequence[str] = (), height: int = 420) -> Any:
    from plotly.subplots import make_subplots

    figure = make_subplots(rows, 1, shared_xaxes=True, vertical_spacing=0.07, subplot_titles=list(titles) or None)
    figure.update_layout(
        height=height, margin={"l": 60, "r": 20, "t": 40, "b": 50}, paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)", font={"color": "#808080"}, hovermode="closest",
        legend={"groupclick": "toggleitem"},
    )  # fmt: skip
    axes = {"gridcolor": "rgba(128,128,128,0.25)", "zerolinecolor": "rgba(128,128,128,0.4)"}
    figure.update_xaxes(**axes)
    figure.update_yaxes(**axes)
    return figure


def _line(figure: Any, curve: Curve, name: str, index: int, row: int = 1, legend: bool = True) -> None:
    """A curve over the steps after 0 (their axis is logarithmic), its interval as a band, its floor dotted."""
    from plotly import graph_objects as go

    cycle, place = divmod(index, len(COLOURS))
    colour, dash = COLOURS[place], DASHES[(_FIRST_DASH[place] + cycle) % len(DASHES)]
    kept = [i for i, step in enumerate(curve.steps) if step > 0]
    steps = [curve.steps[i] for i in kept]
    bounds = [(curve.low[i], curve.high[i]) for i in kept]
    if kept and all(low is not None and high is not None for low, high in bounds):
        outline = [high for _, high in bounds] + [low for low, _ in reversed(bounds)]
        figure.add_trace(
            go.Scatter(
                x=steps + steps[::-1], y=outline, fill="toself", fillcolor=colour, opacity=0.15, line={"width": 0},
                hoverinfo="skip",
                name=f"interval of {name}", showlegend=False, legendgroup=name,
            ), row=row, col=1,
        )  # fmt: skip
    label = name if curve.n is None else f"{name} (n = {curve.n})"
    figure.add_trace(
        go.Scatter(
            x=steps, y=[curve.values[i] for i in kept], name=label, legendgroup=name, showlegend=legend,
            mode="lines" if len(kept) > 1 else "markers", line={"color": colour, "dash": dash, "width": 2},
        ), row=row, col=1,
    )  # fmt: skip
    floors = [(curve.steps[i], curve.floor[i]) for i in kept if curve.floor[i] is not None]
    if floors:
        figure.add_trace(
            go.Scatter(
                x=[step for step, _ in floors], y=[floor for _, floor in floors], mode="lines", showlegend=False,
                line={"color": colour, "dash": "dot", "width": 1}, legendgroup=name, name=f"floor of {name}",
            ), row=row, col=1,
        )  # fmt: skip


def _mark(figure: Any, run: Run, rows: int = 1) -> None:
    """Vertical lines where the training data were memorised and where held-out queries were answered."""
    for index, (text, step) in enumerate(milestones_of(run.summary)[:_MOST_STEPS_LABELLED]):
        for row in range(1, rows + 1):
            figure.add_vline(x=step, line={"color": "#808080", "dash": "dash", "width": 1}, row=row, col=1)
        figure.add_annotation(  # on a logarithmic axis a line is at the step, and a text at its logarithm
            x=math.log10(step), y=1, yref="y domain", yanchor="bottom", yshift=14 * index, text=f"{text}: {step:,}",
            showarrow=False, row=1, col=1,
        )  # fmt: skip


def _finish(figure: Any, last: int = 1, axis: str = "optimizer step (log scale)") -> Any:
    figure.update_xaxes(type="log")
    figure.update_xaxes(title_text=axis, row=last, col=1)
    return figure


def curves_chart(run: Run, curves: Mapping[str, Curve], measure: str, logarithmic: bool = False) -> Any:
    """Curves of one run in one panel."""
    figure = _figure()
    for index, (name, curve) in enumerate(curves.items()):
        _line(figure, curve, name, index)
    _mark(figure, run)
    figure.update_yaxes(title_text=measure, **({"type": "log"} if logarithmic else {}))
    return _finish(figure)


def circuit_chart(run: Run) -> Any:
    """Accuracy, what the lens reads, what the states decide, and how faithful a small circuit is, over the same steps,
    with intervals and floors.
    """
    panels, circuits = run.story, run.circuits
    heading = [f"{title(cells.grid)} at {cells.story_column}, {cells.split}" for cells in panels]
    heading += [f"share of the accuracy that the circuit keeps, and takes with it, {split}" for split in circuits]
    count = 1 + len(heading)
    figure = _figure(count, ["", *heading], height=260 * count)
    shown = [*(run.summary.get("grok_step") or {})][:2]
    curves = run.curves("accuracy")
    for index, split in enumerate([*(s for s in curves if s.startswith("train")), *shown]):
        if split in curves:
            _line(figure, curves[split], split, index)
    figure.update_yaxes(title_text="accuracy", row=1, col=1)
    named: set[str] = set()
    for row, cells in enumerate(panels, 2):
        for index, state in enumerate(cells.rows):
            lines = [cells.values.get((step, state, cells.story_column)) for step in cells.steps]
            known = [line for line in lines if line is not None]
            if known:
                index_of, _, stream = state.partition("]")
                name = f"{index_of}, {cells.story_column}]{stream}"
                _line(figure, Curve.of(known), name, index, row, legend=name not in named)
                named.add(name)
        figure.update_yaxes(rangemode="tozero", row=row, col=1)
    for row, circuit in enumerate(circuits.values(), 2 + len(panels)):
        for index, (name, told) in enumerate(circuit.shares.items()):
            _line(figure, Curve.of(told), name, index + 2, row, legend=name not in named)
            named.add(name)
        figure.update_yaxes(range=[-0.3, 1.3], row=row, col=1)  # intervals of shares of few right answers go anywhere
    _mark(figure, run, count)
    return _finish(figure, count)


def nodes_chart(run: Run, split: str) -> Any:
    """Share of answers that change without each node of the circuit, by node and step; blank where it is not in it."""
    from plotly import graph_objects as go

    circuit = run.circuits[split]
    steps, labels = [row["step"] for row in circuit.sizes], circuit.ordered
    figure = _figure(height=140 + 22 * len(labels))
    bar = {"title": {"text": "answers changed"}}
    figure.add_trace(
        go.Heatmap(
            x=[f"{step:,}" for step in steps], y=labels, z=circuit.changed(steps), zmin=0, zmax=1, colorbar=bar,
            colorscale="Cividis", hoverongaps=False,
        )
    )  # fmt: skip
    figure.update_xaxes(type="category", title_text="optimizer step")
    figure.update_yaxes(type="category")
    return figure


def overlay_chart(groups: Mapping[str, Sequence[Run]], split: str, measure: str = "accuracy") -> Any:
    """One split of many runs, a thin line each; of a setting the mean over seeds, and a band from lowest to highest."""
    figure = _figure()
    for index, (name, runs) in enumerate(groups.items()):
        found = {run.name: run.curves(measure).get(split) for run in runs}
        curves = [curve for curve in found.values() if curve is not None]
        if not curves:
            continue
        for run, curve in found.items():
            if curve is not None and len(curves) > 1:
                _thin(figure, curve, f"{name}, {run}", index)
        _line(figure, _mean(curves), f"{name} ({len(curves)} runs)" if len(curves) > 1 else name, index)
    figure.update_yaxes(title_text=f"{measure}, {split}")
    return _finish(figure)


def _thin(figure: Any, curve: Curve, name: str, index: int) -> None:
    from plotly import graph_objects as go

    points = [(step, value) for step, value in zip(curve.steps, curve.values, strict=True) if step > 0]
    line = {"color": COLOURS[index % len(COLOURS)], "width": 0.7}
    figure.add_trace(
        go.Scatter(
            x=[step for step, _ in points], y=[value for _, value in points], mode="lines", line=line, opacity=0.5,
            name=name, showlegend=False,
        )
    )  # fmt: skip


def _mean(curves: Sequence[Curve]) -> Curve:
    """Mean over the steps that all share, between the lowest and the highest."""
    tables = [dict(zip(curve.steps, curve.values, strict=True)) for curve in curves]
    common = tuple(sorted(set.intersection(*(set(table) for table in tables))))
    columns = [[table[step] for table in tables] for step in common]
    spread = len(curves) > 1
    low = tuple(min(column) if spread else None for column in columns)
    high = tuple(max(column) if spread else None for column in columns)
    floor: tuple[float | None, ...] = (None,) * len(common)
    return Curve(common, tuple(statistics.fmean(column) for column in columns), low, high, floor, None)


def grok_step_chart(runs: Sequence[Run], keys: Mapping[str, Sequence[Any]]) -> Any:
    """Grokked step against one swept key, every run a point; or, for two keys, the median over seeds as a heat map.

    Args:
        runs: the runs.
        keys: one or two keys, with the value of every run.
    """
    from plotly import graph_objects as go

    figure, steps = _figure(), [run.grok_step for run in runs]
    names = list(keys)
    if len(names) == 1:
        values = list(map(str, keys[names[0]]))
        for label, symbol, there in (("runs", "circle", True), ("not grokked, at the last step", "x-thin-open", False)):
            shown = [
                (value, step if there else run.summary.get("step"))
                for value, step, run in zip(values, steps, runs, strict=True)
                if (step is not None) == there
            ]
            figure.add_trace(
                go.Scatter(
                    x=[value for value, _ in shown], y=[step for _, step in shown], mode="markers", name=label,
                    marker={"size": 9, "color": COLOURS[0], "symbol": symbol},
                )
            )  # fmt: skip
        medians = {value: _median_step(runs, {names[0]: values}, names, value) for value in dict.fromkeys(values)}
        line = {"color": COLOURS[1]}
        figure.add_trace(go.Scatter(x=[*medians], y=[*medians.values()], mode="lines", name="median", line=line))
        figure.update_xaxes(title_text=names[0], type="category", categoryarray=[*medians], categoryorder="array")
        figure.update_yaxes(title_text="grokked at step", type="log")
        return figure
    across, down = ([str(v) for v in dict.fromkeys(map(str, keys[name]))] for name in names[:2])
    table = [[_median_step(runs, keys, names, x, y) for x in across] for y in down]
    figure.add_trace(
        go.Heatmap(x=across, y=down, z=table, colorscale="Cividis", texttemplate="%{z:,.0f}", hoverongaps=False)
    )
    figure.update_xaxes(title_text=names[0], type="category")
    figure.update_yaxes(title_text=names[1], type="category")
    return figure


def _median_step(runs: Sequence[Run], keys: Mapping[str, Sequence[Any]], names: Sequence[str], *wanted: str) -> Any:
    """Median over all seeds of a setting, those that have not grokked later than any step; None if it is among them."""
    steps = [
        math.inf if run.grok_step is None else run.grok_step
        for run, *values in zip(runs, *(keys[name] for name in names[:2]), strict=True)
        if [str(value) for value in values] == [*wanted]
    ]
    median = statistics.median(steps) if steps else math.inf
    return median if math.isfinite(median) else None


def brought_charts(run: Run) -> dict[str, Any]:
    """Attention to groups of positions, and measures that the regime brings, by the name of the chart."""
    found: dict[str, Any] = {}
    for kind in ("groups", "measures"):
        for (name, split), cells in curves_of(run.rows, kind).items():
            curves = {" ".join(labels): Curve.of(rows) for labels, rows in cells.items()}
            if len(curves) <= _MOST_LINES:
                found[f"{kind}:{name}, {split}"] = curves_chart(run, curves, f"{name.replace('_', ' ')}, {split}")
    return found
