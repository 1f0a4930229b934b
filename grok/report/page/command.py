"""`grok report`: one page about a run, several runs, a sweep, or any Markdown page of the project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grok.callbacks.console import say
from grok.configuration import take_options
from grok.errors import BadInput
from grok.files import write_atomically
from grok.report.page.build import html_page, insist_on_extra, is_ours, markdown_twin
from grok.report.page.run import Run, load, varied

__all__ = ["report", "write_report"]

USAGE = """usage: grok report RUN … [--out FILE.html]
       grok report SWEEP [--out FILE.html]
       grok report PAGE.md [--out FILE.html]
One self-contained page, and its Markdown twin beside it; by default report.html in the run or sweep, or in this
directory for several, and PAGE.html beside PAGE.md."""

_MOST_OVERLAID = 4  # splits of which all runs are drawn
_MOST_KEYS = 6  # swept keys over which grokked steps are drawn one by one


def report(argv: Sequence[str]) -> None:
    """Run the command.

    Raises:
        BadInput: if it is not understood, or a path is not what it should be.
    """
    if "--help" in argv or "-h" in argv:
        say(USAGE)
        return
    arguments, options = take_options(argv, ("out",), USAGE)
    out = Path(options["out"]) if "out" in options else None
    if out is not None and out.suffix != ".html":
        raise BadInput(f"--out {options['out']!r}: give a file that ends in .html")
    unknown = [word for word in arguments if word.startswith("-")]
    if unknown or not arguments:
        raise BadInput(*([f"{unknown[0]}: no such option"] if unknown else []), USAGE)
    insist_on_extra()
    for path in write_report(arguments, out):
        say(f"{path}")


def write_report(paths: Sequence[str | Path], out: Path | None = None) -> list[Path]:
    """Write the page and its twin; returns the files."""
    first = Path(paths[0])
    if first.suffix == ".md" and not first.is_dir():
        if len(paths) > 1:
            raise BadInput("one Markdown page at a time")
        if not first.is_file():
            raise BadInput(f"{first}: no such file; give a Markdown page")
        if is_ours(first):
            raise BadInput(f"{first}: is the twin of a report; give the run or sweep, {first.parent}")
        target = out or first.with_suffix(".html")
        _write({target: html_page(first.read_text(encoding="utf-8"), base=first.parent)})
        return [target]
    runs = load(paths)
    target = out or (first if len(paths) == 1 else Path()) / "report.html"
    if len(runs) == 1:
        text, charts, explored = _one(runs[0])
    else:
        text, charts, explored = _several(" ".join(str(path) for path in paths), runs)
    twin = target.with_suffix(".md")
    _write({target: html_page(text, charts, explored), twin: markdown_twin(text, _pictures(runs, target))})
    return [target, twin]


def _write(files: Mapping[Path, str]) -> None:
    """Write all files, or none if one of them is there and somebody else's."""
    for path in files:
        if path.exists() and not is_ours(path):
            raise BadInput(f"{path}: exists, and is not a page by `grok report`; give another --out, or remove it")
    for path, content in files.items():
        write_atomically(path, content, several=True)


def _one(run: Run) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    from grok.report.page import charts as draw
    from grok.report.page.explorer import explorers
    from grok.report.page.text import of_run

    charts: dict[str, Any] = {}
    if accuracies := run.curves("accuracy"):
        charts["accuracy"] = draw.curves_chart(run, accuracies, "accuracy")
    losses = run.curves("loss")
    if "" in (training := run.scalars("training_loss")):
        losses["training"] = training[""]
    if losses:
        charts["loss"] = draw.curves_chart(run, losses, "loss", logarithmic=True)
    if run.story or run.circuits:
        charts["circuit"] = draw.circuit_chart(run)
    charts |= {f"nodes:{split}": draw.nodes_chart(run, split) for split, one in run.circuits.items() if one.nodes}
    charts |= draw.brought_charts(run)
    for name, prefix in (("norms", "weight_norm/"), ("updates", "update_norm/")):
        if curves := run.scalars(prefix):
            charts[name] = draw.curves_chart(run, curves, "norm", logarithmic=True)
    explored = explorers(run)
    shown = {one["split"]: "attention/patterns" in one["arrays"] for one in explored}
    return "\n".join(of_run(run, list(charts), shown)), charts, explored


def _several(title: str, runs: Sequence[Run]) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    from grok.report.page import charts as draw
    from grok.report.page.text import groups_of, of_runs, seedless

    keys = varied(runs)
    groups, charts = groups_of(runs, keys), {}
    for measure in ("accuracy", "loss"):
        splits = list(
            dict.fromkeys(split for run in runs for split in _told_splits(run) if split in run.curves(measure))
        )
        for split in splits[:_MOST_OVERLAID]:
            charts[f"{measure}: {split}"] = draw.overlay_chart(groups, split, measure)
    swept = seedless(keys)
    if any(run.grok_step is not None for run in runs):
        together = [swept] if len(swept) <= 2 else [{key: values} for key, values in swept.items()][:_MOST_KEYS]
        for keys_of_chart in filter(None, together):
            name = " ".join(["grokked step", *(keys_of_chart if len(together) > 1 else ())])
            charts[name] = draw.grok_step_chart(runs, keys_of_chart)
    return "\n".join(of_runs(title, runs, keys, list(charts))), charts, []


def _told_splits(run: Run) -> list[str]:
    """Held-out splits first, then the others."""
    held_out = list(run.summary.get("grok_step") or {})
    return [*held_out, *(split for split in run.curves("loss") if split not in held_out)]


def _pictures(runs: Sequence[Run], target: Path) -> Mapping[str, str]:
    """Pictures of a run beside its page, by the name of the chart that they show too."""
    if len(runs) != 1 or target.parent.resolve() != runs[0].directory.resolve():
        return {}
    names = [path.stem for path in (runs[0].directory / "figures").glob("*.png")]
    return {name: f"figures/{name}.png" for name in names}
