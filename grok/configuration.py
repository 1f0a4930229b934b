"""Reading what the user wrote: checks before anything is made, run directories as arguments, short error messages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from grok.errors import BadInput, Problem

__all__ = ["config_problems", "differences", "explain", "of_run", "with_run"]


def config_problems(options: Any, classes: Mapping[str, type]) -> list[Problem]:
    """Problems that the `check` of every configured class finds, all at once, with full keys.

    Args:
        options: the parsed configuration (a jsonargparse namespace).
        classes: class of each fixed group (`model`, `evaluation`, …); the others name theirs in `class_path`.
    """
    problems = []
    for key, value in vars(options).items():
        if key in classes:
            problems += _check(classes[key], value, key)
        problems += list(_nested_problems(value, key))
    return problems


def _nested_problems(value: Any, key: str) -> Iterator[Problem]:
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _nested_problems(item, f"{key}[{index}]")
        return
    if not isinstance(value, Namespace):
        return
    if hasattr(value, "class_path"):
        module, _, name = str(value.class_path).rpartition(".")
        arguments = getattr(value, "init_args", None)
        yield from _check(getattr(import_module(module), name), arguments, f"{key}.init_args")
    for name, item in vars(value).items():
        yield from _nested_problems(item, f"{key}.{name}")


def _check(cls: Any, arguments: Any, key: str) -> list[Problem]:
    if not hasattr(cls, "check") or arguments is None:
        return []
    known = inspect.signature(cls.check).parameters
    catch_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    given = {name: value for name, value in vars(arguments).items() if name in known or catch_all}
    return [problem.under(key) for problem in cls.check(**given)]


def with_run(argv: Sequence[str]) -> list[str]:
    """Replace `test RUN …` by the configuration of that run directory.

    Raises:
        BadInput: if the directory is no run.
    """
    if not argv or argv[0] not in ("validate", "test", "predict"):
        return list(argv)
    command, *rest = (part for word in argv for part in _split_run_dir(word))
    if rest and not rest[0].startswith("-"):
        run, rest = Path(rest[0]), rest[1:]
    elif "--run_dir" in rest[:-1] and "--config" not in rest:
        at = rest.index("--run_dir")
        run, rest = Path(rest[at + 1]), rest[:at] + rest[at + 2 :]
    else:
        return list(argv)
    return [command, *of_run(run), *rest]


def of_run(run: str | Path) -> list[str]:
    """Arguments that stand for the configuration of a run directory.

    Raises:
        BadInput: if the directory is no run.
    """
    config = Path(run) / "config.yaml"
    if not config.exists():
        raise BadInput(f"{run}: not a run directory (no config.yaml in it)")
    return ["--config", str(config), "--run_dir", str(run)]


def _split_run_dir(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--run_dir=") else [word]


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """Lines `key: old in the run, new now` for every leaf that differs between two nested configurations."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = dict.fromkeys([*old, *new])
        return [line for k in keys for line in differences(old.get(k), new.get(k), f"{key}.{k}" if key else str(k))]
    return [] if old == new else [f"  {key}: {old!r} in the run, {new!r} now"]


def explain(message: str, known: Sequence[str] = ()) -> str:
    """A parser's message in a few lines: the key, what is wrong, and the nearest key if this one does not exist.

    jsonargparse reports a wrong value deep in a class as a tree of every alternative that it tried; what a person needs
    is the path of keys and the innermost complaint.

    Args:
        message: what the parser said.
        known: all keys that exist, for naming the nearest one.
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    keys = re.findall(r'Parser key "([^"]+)"', message)
    told = [re.sub(r'^Parser key "[^"]+":?\s*', "", line) for line in lines]
    told = list(dict.fromkeys(line for line in told if line and not _NOISE.match(line)))
    text = "; ".join(told[:3]) or message
    text = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", text).removeprefix("- ")
    text = text if len(text) <= 400 else text[:397] + "…"
    option = re.search(r"Option '([^']+)' is not accepted", message)
    unknown = re.search(r"(?:unrecognized arguments:|does not accept option|Key) '?(?:--)?([\w.]+)", message)
    missing = re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message)
    if option:
        return f"{'.'.join([*keys, option[1]])}: no such key{_nearest(option[1], _init_arguments(message) or known)}"
    if unknown:
        return f"{unknown[1]}: no such key{_nearest(unknown[1], known)}"
    if missing:
        near = _nearest(missing[2], dir(import_module(missing[1])))
        return f"{'.'.join(keys)}: {missing[1]} has no class {missing[2]}{near}"
    choice = re.search(r"invalid choice: '([^']+)' \(choose from (.*)\)", message)
    if choice:
        return f"{choice[1]}: no such command; use {choice[2]}{_nearest(choice[1], re.findall(r'[a-z]+', choice[2]))}"
    return f"{'.'.join(keys)}: {text}" if keys else text


_NOISE = re.compile(
    r"Does not validate against any|Subtypes:|Errors:|Given value|- Expected a <class 'NoneType'>|"
    r"- Problem with given class_path '[^']+':$|.*Expected a <class 'NoneType'>"
)


def _init_arguments(message: str) -> list[str]:
    """Arguments of the class in which an option was not accepted."""
    paths = re.findall(r"class_path[ =]'([\w.]+)'", message)
    if not paths:
        return []
    module, _, name = paths[-1].rpartition(".")
    return list(inspect.signature(getattr(import_module(module), name)).parameters)


def _nearest(wanted: str, known: Sequence[str]) -> str:
    close = get_close_matches(wanted, known, n=1, cutoff=0.5)
    if not close:
        leaf = wanted.rpartition(".")[2]
        close = [key for key in known if key.rpartition(".")[2] == leaf][:1]
    return f"; did you mean {close[0]}?" if close else ""
