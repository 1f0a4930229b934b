"""Reading what the user wrote: checks before anything is made, run directories as arguments, short error messages."""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from itertools import groupby, pairwise
from pathlib import Path
from types import NoneType
from typing import Any

from jsonargparse import Namespace

from grok.errors import BadInput, Problem
from grok.reading import read_yaml

__all__ = [
    "chosen_classes", "config_files", "config_problems", "differences", "explain", "insist_on_mapping",
    "insist_on_one_seed", "of_run", "of_the_outcome", "problems_of_blocks", "problems_of_names",
    "with_run",
]  # fmt: skip


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
    told = {problem.key for problem in problems}
    return problems + [problem for problem in _impossible_numbers(options) if problem.key not in told]


def _impossible_numbers(value: Any, key: str = "") -> Iterator[Problem]:
    """What no key can use, whatever its class checks: NaN, which every comparison lets pass, and numbers too large."""
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _impossible_numbers(item, f"{key}[{index}]")
    elif isinstance(value, Namespace):
        for name, item in _items(value):
            yield from _impossible_numbers(item, f"{key}.{name}" if key else name)
    elif isinstance(value, float) and math.isnan(value):
        yield Problem(key, value, "is not a number; use one")
    elif type(value) is int and key.endswith("seed") and not 0 <= value < 2**32:
        yield Problem(key, value, "use an integer from 0 to 4294967295")
    elif type(value) is int and abs(value) >= 2**63:
        yield Problem(key, value, "too large; use a number of at most 18 digits")


def _items(arguments: Namespace) -> Iterator[tuple[str, Any]]:
    """Keys and values; jsonargparse marks a key that is also a method of its namespaces, such as `values`."""
    return ((name.removeprefix("\u200b"), value) for name, value in vars(arguments).items())


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
    for name, item in _items(value):
        yield from _nested_problems(item, f"{key}.{name}")


def _check(cls: Any, arguments: Any, key: str) -> list[Problem]:
    if not isinstance(arguments, Namespace):
        return []
    if nulls := list(_wrong_nulls(cls, arguments)):  # which the parser lets pass, and no check expects
        return [problem.under(key) for problem in nulls]
    if not hasattr(cls, "check"):
        return []
    known = inspect.signature(cls.check).parameters
    catch_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    given = {name: value for name, value in _items(arguments) if name in known or catch_all}
    return [problem.under(key) for problem in cls.check(**given)]


def _wrong_nulls(cls: Any, arguments: Namespace) -> Iterator[Problem]:
    for name, parameter in _parameters(cls).items():
        kind = parameter.annotation if isinstance(parameter.annotation, str) else str(parameter.annotation)
        allowed = parameter.default is None or parameter.annotation is parameter.empty
        if not allowed and arguments.get(name, 0) is None and not re.search("None|Optional|Any", kind):
            yield Problem(name, None, f"null is no value of this key; it takes: {kind}")


def _parameters(cls: Any) -> dict[str, inspect.Parameter]:
    """What a class or function takes by name, with what a constructor passes on to those it overrides."""
    found: dict[str, inspect.Parameter] = {}
    line = inspect.getmro(cls) if inspect.isclass(cls) else ()
    constructors = [vars(one)["__init__"] for one in line if "__init__" in vars(one)]
    for taken in constructors or [cls]:
        parameters = inspect.signature(taken).parameters
        found = {**parameters, **found}
        if all(one.kind is not inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
            break
    return found


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


def config_files(argv: Sequence[str]) -> list[Path]:
    """The configuration files that a command line names."""
    files = [after for word, after in pairwise(argv) if word in ("-c", "--config")]
    return [Path(file) for file in [*files, *(word[9:] for word in argv if word.startswith("--config="))]]


def insist_on_mapping(file: Path) -> Mapping[str, Any]:
    """The content of a configuration file: a mapping of words, which no parser can misread.

    Raises:
        BadInput: if it is anything else.
        OSError: if it cannot be read.
    """
    content = read_yaml(file)
    if not isinstance(content, dict):
        what = "empty" if content is None else f"a {type(content).__name__}"
        raise BadInput(f"{file}: {what}, not a configuration; give a mapping of keys such as model, data and trainer")
    if wrong := [key for key in content if not isinstance(key, str)]:
        raise BadInput(f"{file}: {wrong[0]!r} is no key; use words such as model, data and trainer")
    if lists := [key for key, value in content.items() if isinstance(value, list)]:
        raise BadInput(f"{file}: {Problem(lists[0], content[lists[0]], 'use a mapping of its keys')}")
    if problem := next(_wrong_classes(content, ""), None):
        raise BadInput(f"{file}: {problem}")
    return content


def _wrong_classes(value: Any, key: str) -> Iterator[Problem]:
    """A `class_path` or `init_args` of a kind in which the parser finds no words for what is wrong."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        at = f"{key}.{name}" if key else str(name)
        if name == "class_path" and not (isinstance(item, str) and item):
            yield Problem(at, item, "use the name of a class, such as grok.data.TwoHopComposition")
        elif name == "init_args" and not isinstance(item, (dict, NoneType)):
            yield Problem(at, item, "use a mapping of the arguments of the class")
        else:
            yield from _wrong_classes(item, at)


def insist_on_one_seed(args: Sequence[str], files: Sequence[Any]) -> None:
    """`seed_everything` is the data's seed; one that is given beside it would be ignored."""
    given = any(re.match(r"--data(\.init_args)?\.seed(=|$)", str(arg)) for arg in args)
    for file in files:
        data = read_yaml(Path(str(file))).get("data")
        options = data.get("init_args") if isinstance(data, dict) else None
        given = given or (isinstance(options, dict) and "seed" in options)
    if given:
        raise BadInput("data.seed: is --seed_everything; use that, or data.graph_seed or data.order_seed")


def problems_of_blocks(trainer: Any) -> list[Problem]:
    """Settings of the Trainer that would act on Lightning's steps, which are blocks of optimizer steps here."""
    problems = []
    if trainer.gradient_clip_val is not None:
        fix = "gradient clipping belongs to the optimizer step: use --model.clip"
        problems.append(Problem("trainer.gradient_clip_val", trainer.gradient_clip_val, fix))
    if trainer.accumulate_grad_batches != 1:
        fix = "blocks of optimizer steps accumulate nothing: use a larger --data.batch"
        problems.append(Problem("trainer.accumulate_grad_batches", trainer.accumulate_grad_batches, fix))
    return problems


def problems_of_names(options: Any) -> list[Problem]:
    """Names that no directory can have, or that would put the run elsewhere than they say."""
    problems = []
    experiment = str(options.experiment)
    for key, name in (("run_dir", options.run_dir), ("experiment", experiment)):
        parts = [os.fsencode(part) for part in (name or "").split("/")]
        if name == "" or b"\0" in b"".join(parts):
            problems.append(Problem(key, name, "give a name of a directory, without NUL bytes"))
        elif len(os.fsencode(name or "")) > 4000 or max(map(len, parts)) > 255:
            problems.append(Problem(key, name, "too long for a file system; use a shorter name"))
    if Path(experiment).is_absolute() or ".." in Path(experiment).parts:
        problems.append(Problem("experiment", experiment, "use a name, which stays below runs/; or give --run_dir"))
    return problems


def _split_run_dir(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--run_dir=") else [word]


def chosen_classes(parser: Any, options: Any, group: str) -> dict[str, dict[str, str]]:
    """Classes that were chosen in the place of default ones, as defaults of their keys.

    Made defaults, they come with their own: jsonargparse keeps those of the default class wherever the chosen one takes
    a key of the same name, such as AdamW's weight decay for SGD (its issue 460).

    Args:
        parser: of the subcommand.
        options: what it has parsed.
        group: the group of keys.
    """
    defaults, found = parser.get_defaults()[group], {}
    for key, value in vars(options[group]).items():
        chosen, usual = (getattr(one, "class_path", None) for one in (value, defaults.get(key)))
        if chosen is not None and usual not in (None, chosen):
            found[f"{group}.{key}"] = {"class_path": chosen}
    return found


def value_at(options: Any, key: str) -> Any:
    """Value of a dotted key, such as `data.phi` (`init_args` may be left out), in a nested configuration, or None."""
    found = options
    for part in key.split("."):
        if isinstance(found, Mapping) and part not in found:
            found = found.get("init_args")
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a nested configuration with its value; lists and empty mappings are values."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from leaves(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def take_options(argv: Sequence[str], names: Sequence[str], usage: str) -> tuple[list[str], dict[str, str]]:
    """The words of a command line without the options `names` (`--NAME VALUE` or `--NAME=VALUE`), and their values.

    Raises:
        BadInput: for an option without a value, or one given twice.
    """
    words, found = list(argv), {}
    for name in names:
        for index, word in enumerate(words):
            if word == f"--{name}" or word.startswith(f"--{name}="):
                if any(one.partition("=")[0] == f"--{name}" for one in words[index + 1 :]):
                    raise BadInput(f"--{name}: given twice; leave one out", usage)
                if "=" not in word and index + 1 == len(words):
                    raise BadInput(f"--{name}: give a value", usage)
                found[name] = word.partition("=")[2] if "=" in word else words[index + 1]
                del words[index : index + (1 if "=" in word else 2)]
                break
    return words, found


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """Lines `key: old in the run, new now` for every leaf that differs between two nested configurations."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = dict.fromkeys([*old, *new])
        return [line for k in keys for line in differences(old.get(k), new.get(k), f"{key}.{k}" if key else str(k))]
    return [] if old == new else [f"  {key}: {old!r} in the run, {new!r} now"]


def of_the_outcome(changes: Sequence[str]) -> list[str]:
    """Those that change what is learnt: not where it is computed, which changes rounding and what dropout draws, nor
    how long an attempt may take.
    """
    free = (
        "trainer.accelerator",
        "trainer.devices",
        "trainer.num_nodes",
        "trainer.strategy",
        "trainer.max_time",
        "progress",
    )
    return [change for change in changes if not change.strip().startswith(free)]


def explain(message: str, known: Sequence[str] = ()) -> str:
    """A parser's message in a few lines: the key, what is wrong, and the nearest key if this one does not exist.

    jsonargparse reports a wrong value deep in a class as a tree of every alternative that it tried; what a person needs
    is the path of keys and the innermost complaint.

    Args:
        message: what the parser said.
        known: all keys that exist, for naming the nearest one.
    """
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip()]
    keys = [key for key, _ in groupby(re.findall(r'Parser key "([^"]+)"', message))]
    told = [re.sub(r'^Parser key "[^"]+":?\s*|\. Got value: Namespace\(.*', "", line) for line in lines]
    told = [re.sub(r"^Expected a typing\.Literal\[(.*)\]", r"use \1", line) for line in told]
    told = list(dict.fromkeys(line for line in told if line and not _NOISE.match(line)))
    text = "; ".join(told[:3]) or message
    given = re.search(r"Given value: (?!NestedArg)(.*?)(?:\. Got value: Namespace.*)?$", message, re.MULTILINE)
    text += f". Got value: {given[1]}" if given and given[1] not in text else ""
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
    r"Does not validate against any|Subtypes:|Errors:|Given value|Problem with given class_path '[^']+':$|"
    r".*Expected a <class 'NoneType'>|Expected a path but|Type collections\.abc\.Callable.*Parser key \"[^\"]+\":$"
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
