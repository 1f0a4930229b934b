"""Sweep files, sweep directories and what is asked of them."""

import json
import shutil

import pytest

# Content of the sweep file, and what the message must say.
PLANS = {
    "empty": ("", "no sweep"),
    "a list": ("- base\n", ["no sweep", "base"]),
    "a text": ("hello", "no sweep"),
    "no base": ("grid: {seed_everything: [0, 1]}\n", ["base", "grid"]),
    "no such base": ("base: nope.yaml\ngrid: {seed_everything: [0]}\n", ["base='nope.yaml'", "not there"]),
    "a base that is a directory": ("base: .\ngrid: {seed_everything: [0]}\n", ["base=", "not there"]),
    "a base that is a list": ("base: list.yaml\ngrid: {seed_everything: [0]}\n", ["list.yaml", "mapping"]),
    "a base that is no text": ("base: binary.yaml\ngrid: {seed_everything: [0]}\n", ["binary.yaml", "UTF-8"]),
    "a base of nothing": ("base: null\ngrid: {seed_everything: [0]}\n", ["base="]),
    "nothing varies": ("base: tiny.yaml\n", "nothing varies"),
    "an unknown kind": ("base: tiny.yaml\ngird: {data.phi: [1]}\n", ["gird: no such key", "grid"]),
    "a grid that is a list": ("base: tiny.yaml\ngrid: [1, 2]\n", ["grid=[1, 2]", "mapping"]),
    "a value that is no list": ("base: tiny.yaml\ngrid: {data.phi: 1}\n", ["grid.data.phi=1", "list of values"]),
    "a list without values": ("base: tiny.yaml\ngrid: {data.phi: []}\n", ["grid.data.phi=[]", "list of values"]),
    "a range that ends before it begins": ("base: tiny.yaml\ngrid: {seed_everything: 4..0}\n", "seed_everything"),
    "a range of a billion": (
        "base: tiny.yaml\ngrid: {seed_everything: 0..999999999}\n",
        ["seed_everything", "at most"],
    ),
    "a range in steps of nothing": ("base: tiny.yaml\ngrid: {data.phi: {range: [0, 9, 0]}}\n", ["data.phi.range"]),
    "a range of words": ("base: tiny.yaml\ngrid: {data.phi: {range: [a, b]}}\n", ["data.phi.range"]),
    "a product without end": (
        "base: tiny.yaml\ngrid: {seed_everything: 0..9999, data.graph_seed: 0..9999, model.init_seed: 0..9999}\n",
        ["runs", "at most"],
    ),
    "two runs that are the same": ("base: tiny.yaml\ngrid: {data.phi: [1, 1]}\n", ["data.phi=1", "the same"]),
    "the same in two spellings": ("base: tiny.yaml\ngrid: {data.phi: [1, 1.0]}\n", ["data.phi=1", "the same"]),
    "a key given twice": ("base: tiny.yaml\ngrid: {data.phi: [1], data.phi: [2]}\n", ["line 2", "data.phi", "twice"]),
    "a key in two places": ("base: tiny.yaml\nset: {data.phi: 1}\ngrid: {data.phi: [1]}\n", ["data.phi", "keep one"]),
    "a key in two spellings": (
        "base: tiny.yaml\nset: {data.phi: 1}\ngrid: {data.init_args.phi: [1]}\n",
        ["phi", "keep one"],
    ),
    "no such key": ("base: tiny.yaml\ngrid: {data.phy: [1]}\n", ["run 0", "data.phy", "no such key"]),
    "a key with a path": ("base: tiny.yaml\ngrid: {../../etc: [1]}\n", ["../../etc", "not a key"]),
    "a key that is a number": ("base: tiny.yaml\ngrid: {17: [1]}\n", ["17", "not a key"]),
    "a run directory of one's own": ("base: tiny.yaml\ngrid: {run_dir: [x]}\n", ["run_dir", "leave it out"]),
    "a value that is out of range": ("base: tiny.yaml\ngrid: {data.entities: [12, -4]}\n", ["run 1", "entities=-4"]),
    "a value of another type": ("base: tiny.yaml\ngrid: {data.entities: [12, many]}\n", ["run 1", "many"]),
    "a date": ("base: tiny.yaml\ngrid: {data.phi: [2024-01-01]}\n", ["data.phi", "quotes"]),
    "a value that is not a number": ("base: tiny.yaml\ngrid: {data.phi: [.nan]}\n", ["data.phi", "NaN"]),
    "a conflict between two keys": (
        "base: tiny.yaml\ngrid: {model.net.heads: [2, 3]}\n",
        ["run 1", "heads=3", "divisor of width=16"],
    ),
    "zipped lists of different lengths": (
        "base: tiny.yaml\nzip: {data.phi: [1, 2], data.batch: [8]}\n",
        ["zip", "different lengths", "data.phi 2"],
    ),
    "a list of numbers": ("base: tiny.yaml\nlist: [1, 2]\n", ["list", "mappings"]),
    "a list that is not there": ("base: tiny.yaml\nlist: nope.csv\n", ["nope.csv"]),
    "a list of another kind": ("base: tiny.yaml\nlist: tiny.txt\n", ["tiny.txt", ".csv"]),
    "a table with rows of different lengths": ("base: tiny.yaml\nlist: torn.csv\n", ["torn.csv", "different lengths"]),
    "lines that are no JSON": ("base: tiny.yaml\nlist: torn.jsonl\n", ["torn.jsonl", "JSONL"]),
    "lines that are nested too deep": ("base: tiny.yaml\nlist: deep.jsonl\n", ["deep.jsonl", "deep"]),
    "a table that is no text": ("base: tiny.yaml\nlist: binary.csv\n", ["binary.csv", "UTF-8"]),
    "a program": ("base: !!python/object/apply:os.system ['touch pwned']\n", ["line 1", "python/object"]),
    "tabs": ("base: tiny.yaml\ngrid:\n\tdata.phi: [1]\n", "line 3"),
    "UTF-16": ("base: tiny.yaml\ngrid: {data.phi: [1]}\n".encode("utf-16"), "UTF-8"),
    "a figure of nothing": (
        "base: tiny.yaml\ngrid: {data.phi: [1, 2]}\nfigure: {x: data.phy}\n",
        ["figure", "data.phy"],
    ),
    "a further part of nothing": ("base: tiny.yaml\ngrid: {data.phi: [1]}\nthen: []\n", ["then", "mapping"]),
    "a further part with a path for a name": (
        "base: tiny.yaml\ngrid: {data.phi: [1]}\nthen: {name: ../x, set: {model.clip: 2}}\n",
        ["name='../x'", "letters"],
    ),
    "a further part of runs that there are not": (
        "base: tiny.yaml\ngrid: {data.phi: [1]}\nthen: {from: {data.phi: 2}}\n",
        ["from", "no run of the first part"],
    ),
    "a further part of another graph": (
        "base: tiny.yaml\ngrid: {seed_everything: [0]}\nthen: {set: {data.entities: 13}}\n",
        ["start.run: data.entities is 12", "13"],
    ),
    "a further part that inherits nothing known": (
        "base: tiny.yaml\ngrid: {data.phi: [1]}\nthen: {inherit: [data.phy]}\n",
        ["inherit='data.phy'"],
    ),
}


@pytest.fixture
def files(tiny, tmp_path):
    """Files that a sweep file may name."""
    contents = {
        "list.yaml": b"- 1\n", "binary.yaml": b"\x89PNG\xff", "binary.csv": b"data.phi\n\xff\xfe\n", "tiny.txt": b"",
        "torn.csv": b"data.phi,data.batch\n1\n", "torn.jsonl": b'{"data.phi": 1}\n{"data.phi"\n',
        "deep.jsonl": b"[" * 100_000,
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize(("content", "told"), PLANS.values(), ids=PLANS.keys())
def test_a_sweep_file(refused, files, content, told):
    (files / "sweep.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused("sweep", "plan", "sweep.yaml", told=told)


# Arguments after `grok sweep`, and what the message must say; `made` is a planned sweep.
ASKED = {
    "no such command": (["begin"], ["begin", "plan"]),
    "nothing to plan": (["plan"], ["--base"]),
    "no such file": (["plan", "nope.yaml"], "nope.yaml"),
    "a directory for a file": (["plan", "made"], ["made", "directory"]),
    "a file and options": (["plan", "tiny.yaml", "--grid", "data.phi=1,2"], ["--grid", "tiny.yaml"]),
    "an option that is none": (["plan", "--bsae", "tiny.yaml"], ["--bsae", "--help"]),
    "a grid without values": (["plan", "--base", "tiny.yaml", "--grid", "data.phi"], ["--grid data.phi", "KEY=A,B,C"]),
    "a grid twice": (["plan", "--base", "tiny.yaml", *["--grid", "data.phi=1,2"] * 2], ["--grid", "given twice"]),
    "an open bracket": (["plan", "--base", "tiny.yaml", "--grid", "data.phi=[1"], ["--grid", "[1"]),
    "a sweep directory that is a file": (
        ["plan", "--base", "tiny.yaml", "--grid", "data.phi=1,2", "--sweep_dir", "tiny.yaml"],
        ["sweep_dir='tiny.yaml'", "is a file"],
    ),
    "a sweep directory of something else": (
        ["plan", "--base", "tiny.yaml", "--grid", "data.phi=1,2", "--sweep_dir", "other"],
        ["sweep_dir='other'", "holds other files"],
    ),
    "a sweep directory of another sweep": (
        ["plan", "--base", "tiny.yaml", "--grid", "data.phi=1,2", "--sweep_dir", "made"],
        ["made holds another sweep", "--sweep_dir"],
    ),
    "a sweep that is not there": (["status", "nope"], ["nope", "not a sweep"]),
    "a file for a sweep": (["collect", "tiny.yaml"], ["tiny.yaml", "not a sweep"]),
    "no sweep": (["run"], ["sweep", "--help"]),
    "a state that is none": (["status", "made", "--state", "lost"], ["lost", "waiting"]),
    "no such run": (["task", "made", "4"], ["no run '4'", "0 to 3"]),
    "a negative run": (["task", "made", "--", "-1"], ["no run '-1'"]),
    "the log of no run": (["log", "made", "seed=7"], ["no run 'seed=7'"]),
    "the log of a run that has not begun": (["log", "made", "0"], ["has not been started"]),
    "no lines of a log": (["log", "made", "0", "--lines", "0"], ["lines=0", "1 or more"]),
    "no workers": (["run", "made", "--workers", "0"], ["workers=0", "1 or more"]),
    "half a worker": (["run", "made", "--workers", "0.5"], ["workers", "0.5"]),
    "no threads": (["run", "made", "--threads", "-1"], ["threads=-1", "1 or more"]),
    "an ensemble of nothing": (["run", "made", "--ensemble", "0"], ["ensemble=0", "1 or more"]),
    "runs that there are not": (["run", "made", "--only", "2-9"], ["only='2-9'", "0-3"]),
    "runs that are words": (["run", "made", "--only", "all"], ["only='all'", "0-3,7"]),
    "runs backwards": (["run", "made", "--only", "3-1"], ["only='3-1'", "3-1"]),
}


@pytest.fixture
def planned(made, tiny, tmp_path):
    shutil.copytree(made.sweep, tmp_path / "made")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    return tmp_path / "made"


@pytest.mark.parametrize(("arguments", "told"), ASKED.values(), ids=ASKED.keys())
def test_what_is_asked_of_a_sweep(refused, planned, arguments, told):
    refused("sweep", *arguments, told=told)


def manifest(change):
    """Breaks the manifest by what `change` makes of its lines."""

    def broken(sweep):
        path = sweep / "manifest.jsonl"
        lines = change([json.loads(line) for line in path.read_text().splitlines()])
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    return broken


def with_values(**values):
    return manifest(lambda lines: [lines[0] | values, *lines[1:]])


def written(name, content):
    return lambda sweep: (sweep / name).write_bytes(content)


# What is done to a planned sweep, and what must be said about it.
DIRECTORIES = {
    "an empty manifest": (written("manifest.jsonl", b""), ["manifest.jsonl", "damaged"]),
    "a manifest that is torn": (
        lambda sweep: (sweep / "manifest.jsonl").write_bytes((sweep / "manifest.jsonl").read_bytes()[:-20]),
        ["manifest.jsonl", "damaged"],
    ),
    "a manifest that is no text": (written("manifest.jsonl", b"\xff\xfe\0"), ["manifest.jsonl"]),
    "a manifest that is nested too deep": (written("manifest.jsonl", b"[" * 100_000), ["manifest.jsonl", "damaged"]),
    "a manifest of numbers": (written("manifest.jsonl", b"1\n2\n"), ["manifest.jsonl", "damaged"]),
    "a manifest of lists": (written("manifest.jsonl", b"[]\n"), ["manifest.jsonl", "damaged"]),
    "a manifest with a line missing": (manifest(lambda lines: lines[1:]), ["manifest.jsonl", "damaged"]),
    "a manifest with a line twice": (manifest(lambda lines: [*lines, lines[0]]), ["manifest.jsonl", "damaged"]),
    "an unknown key in the manifest": (with_values(colour="red"), ["manifest.jsonl", "damaged"]),
    "a number that is none": (with_values(index="0"), ["manifest.jsonl", "damaged"]),
    "a name that is a number": (with_values(name=17), ["manifest.jsonl", "damaged"]),
    "a name that leads elsewhere": (with_values(name="../../elsewhere"), ["manifest.jsonl", "damaged"]),
    "a run directory elsewhere": (with_values(run_dir="../../elsewhere"), ["manifest.jsonl", "damaged"]),
    "a run directory from the root": (with_values(run_dir="/etc"), ["manifest.jsonl", "damaged"]),
    "a base elsewhere": (with_values(base="/etc/passwd"), ["manifest.jsonl", "damaged"]),
    "a base that is a number": (with_values(base=17), ["manifest.jsonl", "damaged"]),
    "settings that are a list": (with_values(set=[1]), ["manifest.jsonl", "damaged"]),
    "a start from itself": (with_values(after=0), ["manifest.jsonl", "damaged"]),
    "a start from a word": (with_values(after="first"), ["manifest.jsonl", "damaged"]),
    "a start from later": (with_values(after=2), ["manifest.jsonl", "damaged"]),
    "no sweep.yaml": (lambda sweep: (sweep / "sweep.yaml").unlink(), ["sweep.yaml", "damaged"]),
    "a sweep.yaml of a list": (written("sweep.yaml", b"- 1\n"), ["sweep.yaml", "damaged"]),
    "a sweep.yaml that is no YAML": (written("sweep.yaml", b"a: [1\n"), ["sweep.yaml"]),
    "a sweep.yaml that is no text": (written("sweep.yaml", b"\xff\xfe\0"), ["sweep.yaml"]),
    "a sweep.yaml that runs programs": (written("sweep.yaml", b"!!python/name:os.system\n"), ["sweep.yaml"]),
    "a base that is gone": (lambda sweep: (sweep / "base.yaml").unlink(), "base.yaml"),
    "a base that is a list": (written("base.yaml", b"- 1\n"), ["base.yaml", "mapping"]),
    "a base that is no text": (written("base.yaml", b"\xff\xfe\0"), ["base.yaml", "UTF-8"]),
    "a base that is no YAML": (written("base.yaml", b"a: [1\n"), "base.yaml"),
}


@pytest.mark.parametrize("command", ["status"])
@pytest.mark.parametrize(("broken", "told"), DIRECTORIES.values(), ids=DIRECTORIES.keys())
def test_a_sweep_directory(refused, planned, command, broken, told):
    broken(planned)
    refused("sweep", command, planned, told=told)


def test_a_damaged_status_file_and_a_foreign_log_are_no_reason_to_stop(grok, planned):
    (planned / "logs").mkdir()
    name = json.loads((planned / "manifest.jsonl").read_text().splitlines()[0])["name"]
    for content in (b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b'{"status": "x"}'):
        (planned / f"logs/{name}.json").write_bytes(content)
        assert grok("sweep", "status", planned)[0] == 0


@pytest.mark.parametrize("command", ["sweep", "verify", "trace", "verdict"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_no_mistake(grok, command, flag):
    status, output, errors = grok(command, flag)
    assert (status, errors) == (0, "")
    assert f"usage: grok {command}" in output
