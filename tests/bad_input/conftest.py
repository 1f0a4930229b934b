"""The harness of bad input: everything is refused in a few lines, and nothing on the disk is touched."""

import gc
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from tiny_configuration import TINY

from grok.cli import main
from grok.configuration import config_files

MOST_LINES = 10
LARGEST_READ = 2**24  # of larger files (they are sparse) size and time say whether they were changed
COUNTS = {"cases": 0, "refused": 0, "accepted": 0}

SMALL = """
seed_everything: 3
trainer: {accelerator: cpu, max_steps: 4, logger: false}
data:
  class_path: grok.data.FactExposure
  init_args: {entities: 14, relations: 5, out_degree: 4, phi: 2, ood: 0.2, iid: 0.2, batch: 8, regime: natural}
model:
  net:
    class_path: grok.models.LoopedTransformer
    init_args: {width: 8, heads: 2, layers: 1, loops: 2}
  block: 2
evaluation: {every: 2}
series: {every: 2, powers_of_two: false}
last: {every: 2}
figures: {enabled: false}
"""
"""A configuration whose run is shared by many cases."""

SWEEP = """
base: tiny.yaml
set: {data.batch: 8}
grid: {seed_everything: [0, 1], model.net.loops: [1, 2]}
"""


def everything_below(directory: Path) -> dict[str, tuple]:
    """Name of all that is there → kind, permissions, and content or target."""
    return {str(path.relative_to(directory)): _looks_of(path) for path in sorted(_below(directory))}


def _below(directory):
    for where, directories, files in os.walk(directory, onerror=None):
        yield from (Path(where) / name for name in (*directories, *files))


def _looks_of(path: Path) -> tuple:
    status = path.lstat()
    kind, mode = stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(kind):
        return kind, mode, os.readlink(path)  # noqa: PTH115 (as it is written)
    if stat.S_ISREG(kind) and status.st_size <= LARGEST_READ:
        return kind, mode, path.read_bytes()
    return (kind, mode, status.st_size, status.st_mtime_ns) if stat.S_ISREG(kind) else (kind, mode)


def insist_on_refusal(status, errors, wanted=(2,)):
    """A message for a person: the status, a few lines that begin with `error: `, and no traceback."""
    assert status in wanted, (status, errors)
    assert errors.startswith("error: "), errors
    assert len(errors.splitlines()) <= MOST_LINES, errors
    assert "Traceback" not in errors
    assert all(character.isprintable() for line in errors.splitlines() for character in line), ascii(errors)


@pytest.fixture
def refused(grok, tmp_path):
    """Insist that a command is refused, with all the words that it must mention, and that nothing is changed."""

    def insist(*arguments, told, status=2, counts="cases"):
        before = everything_below(tmp_path)
        found, output, errors = grok(*arguments)
        insist_on_refusal(found, errors, (status,))
        for word in (told,) if isinstance(told, str) else told:
            assert word in errors
        after = everything_below(tmp_path)
        assert before.keys() == after.keys()
        assert [name for name in before if before[name] != after[name]] == []
        COUNTS[counts] += 1
        return output

    return insist


@pytest.fixture
def refused_or_done(grok):
    """Insist that what was made at random is either refused cleanly or does what was asked."""

    def insist(*arguments):
        status, _, errors = grok(*arguments)
        if status == 0:
            COUNTS["accepted"] += 1
        else:
            insist_on_refusal(status, errors)
            COUNTS["refused"] += 1
        return errors

    return insist


_PARSERS: dict[tuple[str, ...], dict[str, object]] = {}


@pytest.fixture(autouse=True, scope="module")
def _one_parser_for_all():
    """A parser takes a quarter of a second to make, and keeps nothing of what it has parsed; to parse takes as long.

    What was parsed once, the same arguments and the same files, need not be parsed for every broken checkpoint again.
    """
    make = LightningCLI.setup_parser

    def remembered(cli, *arguments):
        key = tuple(cli.subcommands())
        if key not in _PARSERS:
            make(cli, *arguments)
            _PARSERS[key] = {
                name: getattr(cli, name) for name in ("parser", "_subcommand_parsers", "_subcommand_method_arguments")
            }
        vars(cli).update(_PARSERS[key])

    parse, known = LightningArgumentParser.parse_args, {}

    def parsed(parser, arguments=None, **options):
        files = [path.read_bytes() for path in config_files(arguments or ()) if path.is_file()]
        key = (id(parser), *map(str, arguments or ()), *files, *options)
        if key not in known:
            known[key] = parse(parser, arguments, **options)
        return known[key].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LightningCLI, "setup_parser", remembered)
        patch.setattr(LightningArgumentParser, "parse_args", parsed)
        gc.freeze()  # to look through all that torch has made for garbage, again and again, takes as long as the tests
        yield
        gc.unfreeze()


@pytest.fixture
def tiny(tiny_config):
    """`tiny.yaml`, a good configuration, in the directory of the test."""
    return tiny_config


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """What takes long to make, made once: `run`, a finished run, and `sweep`, a planned one; for copying only."""
    directory, before = tmp_path_factory.mktemp("made"), Path.cwd()
    os.chdir(directory)
    try:
        (directory / "small.yaml").write_text(SMALL)
        (directory / "tiny.yaml").write_text(TINY)
        (directory / "sweep.yaml").write_text(SWEEP)
        assert main(["fit", "--config", "small.yaml", "--run_dir", "run"]) == 0
        assert main(["sweep", "plan", "sweep.yaml", "--sweep_dir", "sweep"]) == 0
    finally:
        os.chdir(before)
    return SimpleNamespace(run=directory / "run", sweep=directory / "sweep", config=directory / "small.yaml")


@pytest.fixture(autouse=True)
def _tell_the_counts(record_property):
    """By the report of each test, which also comes from the other processes of pytest-xdist."""
    before = dict(COUNTS)
    yield
    for name, count in COUNTS.items():
        record_property(f"bad input {name}", count - before[name])


def pytest_terminal_summary(terminalreporter):
    counts = dict.fromkeys(COUNTS, 0)
    reports = [report for kind in terminalreporter.stats.values() for report in kind if hasattr(report, "when")]
    for report in reports:
        for name, value in report.user_properties if report.when == "teardown" else ():
            if name.startswith("bad input "):
                counts[name.removeprefix("bad input ")] += value
    if any(counts.values()):
        random = f"{counts['refused']} more that were made at random, where {counts['accepted']} proved harmless"
        terminalreporter.write_line(f"bad input: {counts['cases']} broken inputs refused, and {random}")
