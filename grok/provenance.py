"""Where a run comes from: the command, the versions, the machine and the commit, one line for every start."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import grok
from grok.configuration import config_files, insist_on_mapping, value_at
from grok.data import RegimeDataModule
from grok.errors import BadInput
from grok.reading import parse_yaml

__all__ = ["example", "overrides", "provenance"]

PACKAGES = ("torch", "lightning", "torchmetrics", "jsonargparse", "numpy")


def provenance(argv: Sequence[str], device: torch.device) -> dict[str, Any]:
    """What is needed to do a run again: plain data, by name.

    Args:
        argv: arguments of `grok`.
        device: that trains.
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["grok", *_without_secrets(argv)]),
        "presets": [str(file) for file in config_files(argv)],
        "overrides": overrides(argv),
        "directory": str(Path.cwd()),
        "grok": grok.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {_processor()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def overrides(argv: Sequence[str]) -> list[dict[str, Any]]:
    """What the command line sets otherwise than the configuration files that it names: key, value, value before."""
    presets = [insist_on_mapping(file) for file in config_files(argv)]
    argv = _without_secrets(argv)
    pairs = [word.split("=", 1) if "=" in word else [word, *argv[i + 1 : i + 2]] for i, word in enumerate(argv)]
    given = {pair[0][2:]: pair[1] for pair in pairs if pair[0].startswith("--") and len(pair) == 2}
    kept = {key: value for key, value in given.items() if key not in ("config", "run_dir", "fresh", "experiment")}
    changed = [{"key": key, "value": value, "preset": _value(presets, key)} for key, value in kept.items()]
    return [one for one in changed if not _says(one["value"], one["preset"])]


def _says(text: str, value: Any) -> bool:
    """Whether a word of the command line is what a file has."""
    try:
        return value is not None and bool(parse_yaml(text, "") == value)
    except BadInput:
        return bool(text == value)


SECRET = re.compile(r"(password|passwd|secret|credentials?|api_?key|access_token|auth_token)$", re.IGNORECASE)
"""Ends of keys whose values are not shown."""


def _without_secrets(argv: Sequence[str]) -> list[str]:
    told: list[str] = []
    for index, word in enumerate(argv):
        key, given, _ = word.partition("=")
        before = argv[index - 1] if index else ""
        hidden = before.startswith("--") and "=" not in before and SECRET.search(before)
        told.append("***" if hidden else f"{key}=***" if given and SECRET.search(key) else word)
    return told


def _value(presets: Sequence[Mapping[str, Any]], key: str) -> Any:
    """Of a key in the last preset that has it; None if none has."""
    found = (value_at(preset, key) for preset in reversed(presets))
    return next((value for value in found if value is not None), None)


def example(data: RegimeDataModule) -> dict[str, Any]:
    """One evaluation query, written: split, positions, what stands there, and what is right; of columns the numbers."""
    name = data.main_split
    split = data.splits[name]
    shown, right = split.inputs[0], split.targets[0][split.mask[0]]
    written = [
        data.tokens(row) if not row.is_floating_point() else [[round(x, 3) for x in one] for one in _rows(row)]
        for row in (shown, right)
    ]
    return {"split": name, "positions": list(split.positions), "query": written[0], "answer": written[1]}


def _rows(values: torch.Tensor) -> list[list[float]]:
    table: list[list[float]] = values.reshape(len(values), -1).tolist()
    return table


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def _commit() -> str | None:
    """Commit of the package where it runs from a git checkout, with `-dirty` if a tracked file has changed."""
    here = Path(grok.__file__).parent
    told = _git(here, "ls-files", "__init__.py") and _git(here, "describe", "--always", "--dirty", "--abbrev=40")
    return told or None


def _git(directory: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(directory), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
