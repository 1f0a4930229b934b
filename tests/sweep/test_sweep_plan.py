"""Planning: what a sweep file expands to, what is refused, and what a second plan may change."""

import json
import math
import re
import string

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from grok.errors import BadInput
from grok.sweep import Sweep
from grok.sweep.asked import plain, read
from grok.sweep.checks import without_seeds
from grok.sweep.expansion import MOST_LETTERS, argument, canonical, expand, names, varied, with_whole_numbers
from grok.sweep.groups import grouped, indices_of, spelled
from grok.sweep.plan import Line

KEYS = [
    "seed_everything", "data.phi", "data.init_args.seed", "model.seed", "model.optimizer.lr", "model.schedule.lr",
    "model.net.width", "data", "model.optimizer.betas",
]  # fmt: skip
TEXT = st.text(string.ascii_letters + string.digits + " /=,.:é[]{}'\"", max_size=30)
VALUES = st.one_of(
    st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none(), TEXT,
    st.lists(st.floats(0, 1), min_size=1, max_size=3),
    st.sampled_from(["grok.data.TwoHopComposition", "mine.TwoHopComposition"]),
)  # fmt: skip


def _same(value):
    return canonical(with_whole_numbers(plain(value)))


@st.composite
def sweeps(draw):
    """A grid, a zip and a list over different keys, each perhaps empty, with different values."""
    keys = draw(st.permutations(KEYS))
    some = st.lists(VALUES, min_size=1, max_size=3, unique_by=_same)
    asked = {"base": "base.yaml"}
    asked["grid"] = {key: draw(some) for key in keys[: draw(st.integers(1, 3))]}
    length = draw(st.integers(1, 3))
    exactly = st.lists(VALUES, min_size=length, max_size=length, unique_by=_same)
    asked["zip"] = {key: draw(exactly) for key in keys[3 : 3 + draw(st.integers(0, 2))]}
    rows = st.fixed_dictionaries({keys[5]: VALUES}, optional={keys[6]: VALUES})
    if draw(st.booleans()):
        asked["list"] = draw(st.lists(rows, min_size=1, max_size=3, unique_by=_same))
    return asked


@given(sweeps())
def test_a_sweep_is_the_product_of_its_parts_in_order(asked):
    asked = read(asked, "s.yaml", None)
    runs = expand(asked)
    zipped = len(next(iter(asked["zip"].values()))) if asked["zip"] else 1
    assert len(runs) == math.prod(map(len, asked["grid"].values())) * zipped * len(asked.get("list", [0]))
    assert len({canonical(run) for run in runs}) == len(runs)
    assert runs == expand(asked)
    slowest, values = next(iter(asked["grid"].items()))
    block = len(runs) // len(values)
    assert [argument(run[slowest]) for run in runs] == [argument(value) for value in values for _ in range(block)]
    for key in varied(asked):
        wanted = asked["grid"].get(key) or asked["zip"].get(key) or [r[key] for r in asked["list"] if key in r]
        assert {argument(run[key]) for run in runs if key in run} == set(map(argument, wanted))


@given(sweeps())
def test_names_are_unique_bounded_and_safe_as_file_names(asked):
    asked = read(asked, "s.yaml", None)
    runs = expand(asked)
    chosen = names(runs, varied(asked))
    assert chosen == names(runs, varied(asked))
    assert len({name.casefold() for name in chosen}) == len(runs)
    for name in chosen:
        assert len(name) <= MOST_LETTERS
        assert re.fullmatch(r"[A-Za-z_][\w.+=,-]*", name, re.ASCII)
    # Those planned first keep theirs, whatever comes later.
    half = len(runs) // 2
    assert names(runs[half:], varied(asked), taken=names(runs[:half], varied(asked))) == chosen[half:]


def test_names_say_what_differs_in_as_few_words_as_are_clear():
    setting = {"model.optimizer.init_args.weight_decay": 0.5, "data.phi": 4, "seed_everything": 0}
    assert names([setting], list(setting)) == ["weight_decay=0.5,phi=4,seed=0"]
    setting = {"data.seed": 1, "model.seed": 2, "seed_everything": 3, "data": "grok.data.TwoHopComposition"}
    assert names([setting], list(setting)) == ["data.seed=1,model.seed=2,seed=3,data=TwoHopComposition"]
    assert names([{"data.seed": 1, "seed_everything": 2}], ["data.seed", "seed_everything"]) == [
        "seed=1,seed_everything=2"
    ]
    settings = [{"model.optimizer.betas": [0.9, 0.98]}, {"model.optimizer.betas": -1e-5}]
    assert names(settings, ["model.optimizer.betas"]) == ["betas=0.9-0.98", "betas=-1e-05"]


def test_shorthands_are_written_out(tmp_path):
    (tmp_path / "runs.csv").write_text("data.phi,model.optimizer.lr,data.batch\n2,1e-3,\n3,2e-3,64\n")
    asked = {
        "base": "b.yaml", "grid": {"seed_everything": {"range": [0, 3]}, "model.seed": "5..7"}, "list": "runs.csv",
        "set": {"model.clip": None, "trainer.logger": False},
    }  # fmt: skip
    runs = expand(read(asked, "s.yaml", tmp_path))
    assert [run["seed_everything"] for run in runs] == [0] * 6 + [1] * 6 + [2] * 6
    assert [run["model.seed"] for run in runs[:6]] == [5, 5, 6, 6, 7, 7]
    assert runs[0] == {
        "model.clip": None, "trainer.logger": False, "seed_everything": 0, "model.seed": 5, "data.phi": 2,
        "model.optimizer.lr": 0.001,
    }  # fmt: skip
    assert runs[1]["data.batch"] == 64


BAD = {
    "no base": ({"grid": {"seed_everything": [0]}}, "give at least `base: CONFIG.yaml`"),
    "unknown part": ({"base": "b", "gird": {}}, "gird: no such key; use base, set, grid"),
    "nothing varies": ({"base": "b", "set": {"data.phi": 2}}, "nothing varies"),
    "not a mapping": ({"base": "b", "grid": [1]}, "grid=[1]: use a mapping"),
    "not a list": ({"base": "b", "grid": {"data.phi": 3}}, "grid.data.phi=3: use a list"),
    "empty": ({"base": "b", "grid": {"data.phi": []}}, "grid.data.phi=[]: use a list"),
    "range": ({"base": "b", "grid": {"data.phi": {"range": ["a"]}}}, "use [first, one past the last]"),
    "range of nothing": ({"base": "b", "grid": {"data.phi": {"range": [3, 0]}}}, "use a list of values"),
    "lengths": ({"base": "b", "zip": {"data.phi": [1, 2], "data.batch": [1]}}, "data.phi 2, data.batch 1"),
    "twice": ({"base": "b", "grid": {"data.phi": [1]}, "zip": {"data.init_args.phi": [2]}}, "is in grid and in zip"),
    "twice in a grid": ({"base": "b", "grid": {"data.phi": [1], "data.init_args.phi": [2]}}, "is in grid and in grid"),
    "same runs": ({"base": "b", "grid": {"data.phi": [1, 1]}}, "two runs would be the same: data.phi=1"),
    "of the sweep": ({"base": "b", "grid": {"run_dir": ["a"]}}, "the sweep itself chooses it"),
    "no key": ({"base": "b", "grid": {"--data.phi": [1]}}, "not a key of `grok fit`"),
    "a date": (yaml.safe_load("{base: b, grid: {data.phi: [2024-01-01]}}"), "a date is no value"),
    "list of numbers": ({"base": "b", "list": [1]}, "use a list of mappings"),
    "no such list": ({"base": "b", "list": "nope.csv"}, "nope.csv: No such file"),
    "list of another kind": ({"base": "b", "list": "runs.txt"}, "use a .csv, .jsonl or .yaml file"),
}


@pytest.mark.parametrize(("asked", "message"), BAD.values(), ids=BAD.keys())
def test_bad_sweeps_are_told_by_key_value_and_fix(asked, message, tmp_path):
    with pytest.raises(BadInput) as error:
        expand(read(asked, "s.yaml", tmp_path))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.csv", "data.phi,data.batch\n2\n"), ("a.csv", "a\n'\"[\n"), ("a.jsonl", "{\n"), ("a.yaml", "[")],
)
def test_broken_lists_are_named(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=name):
        read({"base": "b", "list": name}, "s.yaml", tmp_path)


@given(st.sets(st.integers(0, 40)))
def test_indices_are_written_as_slurm_reads_them(chosen):
    lines = [Line(index, str(index), "", {}) for index in range(41)]
    text = spelled(chosen)
    if chosen:
        assert [line.index for line in indices_of(text, lines)] == sorted(chosen)
    assert text.count(",") <= len(chosen)


def test_indices_have_one_spelling_and_bounds():
    assert spelled([7, 0, 1, 2, 3]) == "0-3,7"
    lines = [Line(index, str(index), "", {}) for index in range(3)]
    for wrong in ("3", "a", "2-1", "", "-1", "0-3"):
        with pytest.raises(BadInput, match="only="):
            indices_of(wrong, lines)


def test_an_ensemble_has_members_that_differ_in_what_may_vary_only():
    settings = [
        {"seed_everything": seed, "model.optimizer.init_args.lr": lr, "data.init_args.phi": lr, "data.batch": batch}
        for batch in (8, 16) for lr in (1, 2) for seed in (0, 1, 2)
    ]  # fmt: skip
    lines = [Line(index, str(index), "", setting) for index, setting in enumerate(settings)]
    groups = grouped(lines, 4)
    assert [[line.index for line in group] for group in groups] == [[0, 1, 2, 3], [4, 5], [6, 7, 8, 9], [10, 11]]
    assert without_seeds(lines[0]) == {k: v for k, v in settings[0].items() if k != "seed_everything"}


# ------------------------------------------------------------------ the command


def everything_in(directory):
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def plan_of(tiny_config, *extra, directory="s"):
    return ("sweep", "plan", "--base", tiny_config, "--sweep_dir", directory, *extra)


SEEDS = ("--grid", "data.phi=2,1.5", "--grid")


def test_a_dry_run_checks_and_writes_nothing(grok, tiny_config, tmp_path):
    before = everything_in(tmp_path)
    status, output, _ = grok(*plan_of(tiny_config, *SEEDS, "seed_everything=0..1", "--dry-run"))
    assert (status, "4 runs" in output, "phi=1.5,seed=1" in output) == (0, True, True)
    assert grok(*plan_of(tiny_config, *SEEDS, "seed_everything=0,x", "--dry_run"))[0] == 2
    assert everything_in(tmp_path) == before


@pytest.mark.slow
def test_a_file_and_options_plan_the_same(grok, tiny_config, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "base: tiny.yaml\nset: {model.clip: 0.5}\ngrid: {data.phi: [2, 1.5], seed_everything: {range: [0, 2]}}\n"
        "zip: {model.optimizer.lr: [1e-3, 2e-3], data.batch: [8, 16]}\n"
    )
    assert grok("sweep", "plan", path)[0] == 0
    options = ("--zip", "model.optimizer.lr=1e-3,2e-3", "--zip", "data.batch=8,16", "--set", "model.clip=0.5")
    assert grok(*plan_of(tiny_config, *SEEDS, "seed_everything=0..1", *options))[0] == 0
    manifest = (tmp_path / "s/manifest.jsonl").read_text()
    assert (tmp_path / "runs/mine/manifest.jsonl").read_text() == manifest
    assert json.loads(manifest.splitlines()[1]) == {
        "index": 1, "name": "phi=2,seed=0,lr=0.002,batch=16", "run_dir": "runs/phi=2,seed=0,lr=0.002,batch=16",
        "set": {"model.clip": 0.5, "data.phi": 2, "seed_everything": 0, "model.optimizer.lr": 0.002, "data.batch": 16},
    }  # fmt: skip
    assert (tmp_path / "s/base.yaml").read_bytes() == tiny_config.read_bytes()


def test_more_seeds_extend_a_sweep_and_keep_the_numbers(grok, tiny_config, tmp_path):
    assert grok(*plan_of(tiny_config, *SEEDS, "seed_everything=0..1"))[0] == 0
    before, lines = everything_in(tmp_path / "s"), Sweep.load("s").lines
    status, output, _ = grok(*plan_of(tiny_config, *SEEDS, "seed_everything=0..1"))
    assert (status, "4 runs, 0 of them new" in output) == (0, True)
    assert everything_in(tmp_path / "s") == before
    status, output, _ = grok(*plan_of(tiny_config, *SEEDS, "seed_everything=0..2"))
    assert (status, "6 runs, 2 of them new" in output) == (0, True)
    assert Sweep.load("s").lines[:4] == lines
    assert [line.name for line in Sweep.load("s").lines[4:]] == ["phi=2,seed=2", "phi=1.5,seed=2"]


def test_another_sweep_is_refused_with_the_difference(grok, tiny_config, tmp_path):
    assert grok(*plan_of(tiny_config, *SEEDS, "seed_everything=0..1"))[0] == 0
    before = everything_in(tmp_path / "s")
    status, _, errors = grok(*plan_of(tiny_config, *SEEDS, "seed_everything=0"))
    assert (status, "missing now: phi=2,seed=1" in errors) == (2, True)
    tiny_config.write_text(tiny_config.read_text().replace("width: 16", "width: 8"))
    status, _, errors = grok(*plan_of(tiny_config, *SEEDS, "seed_everything=0..2"))
    assert (status, "model.net.init_args.width: 16 in the run, 8 now" in errors) == (2, True)
    assert everything_in(tmp_path / "s") == before


def test_a_class_comes_before_its_arguments_whatever_their_order(grok, tiny_config):
    grid = ("--grid", "data.modulus=5,7", "--grid", "data=grok.data.ModularArithmetic")
    status, output, errors = grok(*plan_of(tiny_config, *grid, "--dry-run"))
    assert (status, errors) == (0, "")
    assert "modulus=7,data=ModularArithmetic" in output


def test_a_base_that_is_not_there_or_not_yaml_is_named(grok, tiny_config, tmp_path):
    assert "base='nope.yaml': not there" in grok("sweep", "plan", "--base", "nope.yaml", "--grid", "data.phi=2")[2]
    assert "nope.yaml: No such file" in grok("sweep", "plan", "nope.yaml")[2]
    tiny_config.write_text("data: [")
    status, _, errors = grok(*plan_of(tiny_config, "--grid", "data.phi=2"))
    assert (status, "tiny.yaml: not YAML" in errors) == (2, True)


def test_a_plan_cut_short_is_made_anew_and_other_files_are_left_alone(grok, tiny_config, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/base.yaml").write_text("mine: true")
    status, _, errors = grok(*plan_of(tiny_config, *SEEDS, "seed_everything=0"))
    assert (status, "holds other files and no sweep" in errors) == (2, True)
    assert (tmp_path / "s/base.yaml").read_text() == "mine: true"
    (tmp_path / "s/base.yaml").write_text(tiny_config.read_text())  # what a plan that was cut short has left
    assert grok(*plan_of(tiny_config, *SEEDS, "seed_everything=0"))[0] == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    status, _, errors = grok(*plan_of(tiny_config, *SEEDS, "seed_everything=0", directory="mine"))
    assert (status, "holds other files and no sweep" in errors) == (2, True)
    (tmp_path / "s/manifest.jsonl").write_text("{")
    assert "damaged" in grok("sweep", "status", "s")[2]


WRONG = {
    "typo in a key": (("--grid", "data.phy=2"), "run 0 (phy=2): data.phy: no such key; did you mean phi?"),
    "bad second value": (("--grid", "data.entities=12,-4"), "run 1 (entities=-4): data.init_args.entities=-4: give"),
    "bad seed": (("--grid", "seed_everything=0,-1"), "run 1 (seed=-1): seed_everything=-1: use an integer"),
    "optimizer": (("--grid", "model.optimizer.lr=1e-3,-1"), "run 1 (lr=-1): model.optimizer: Invalid learning rate"),
    "too many queries": (("--grid", "data.phi=2,4000"), "run 1 (phi=4000): phi=4000.0: use at most"),
    "no pair": (("--grid", "data.phi"), "--grid data.phi: use --grid KEY=A,B,C"),
    "twice": (("--grid", "data.phi=2", "--grid", "data.phi=3"), "a key is given twice"),
    "not YAML": (("--grid", "data.phi=[2"), "not readable"),
    "unknown option": (("--gird", "data.phi=2"), "grok sweep plan --help"),
    "no figure there": (("--grid", "data.phi=2", "extra.yaml"), "write it into extra.yaml"),
}


@pytest.mark.parametrize(("extra", "message"), WRONG.values(), ids=WRONG.keys())
def test_mistakes_are_one_line_naming_the_run_and_nothing_is_written(grok, tiny_config, tmp_path, extra, message):
    before = everything_in(tmp_path)
    status, _, errors = grok(*plan_of(tiny_config, *extra))
    assert (status, len(errors.splitlines())) == (2, 1)
    assert message in errors
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        ("{y: data.phi}", "use {x, y, value}, {x, lines, value} or {curves, lines, over}"),
        ("{x: data.phi, y: data.entities, lines: data.entities}", "use {x, y, value}"),
        ("{x: data.phi, y: data.batch}", "figure.y='data.batch': use different ones of the keys that vary"),
        ("{x: data.phi, lines: data.phi}", "figure.x='data.phi': use different ones"),
        ("{x: data.phy}", "figure.x='data.phy': use one of the keys that vary: data.phi, data.entities"),
        ("{curves: iid, lines: data.phi, over: time}", "figure.over='time': use step or epoch"),
        ("{curves: iid}", "use {x, y, value}, {x, lines, value} or {curves, lines, over}"),
        ("[{x: data.phi}, {x: data.phi, value: acc}]", "figure.value='acc': use grok_step"),
        ("{x: data.phi, value: [a]}", "figure.value=['a']: use grok_step"),
        ("{curves: [a], lines: data.phi}", "figure.curves=['a']: use the name of one split"),
        ("[{x: data.phi}, {x: data.phi}]", "figure={'x': 'data.phi'}: is asked for twice"),
        ("[data.phi]", "figure=['data.phi']: use a mapping of keys"),
        ("{x: data.phi, y: seed_everything}", "figure.y='seed_everything'"),
        ("{x: data.phi, y: data.entities, value: grokstep}", "figure.value='grokstep': use grok_step"),
    ],
)
def test_a_figure_that_cannot_be_drawn_is_refused_first(grok, tiny_config, tmp_path, figure, message):
    grid = "{data.phi: [2], data.entities: [12], seed_everything: [0]}"
    (tmp_path / "f.yaml").write_text(f"base: tiny.yaml\ngrid: {grid}\nfigure: {figure}\n")
    status, _, errors = grok("sweep", "plan", "f.yaml")
    assert (status, message in errors) == (2, True)


def test_commands_explain_themselves(grok):
    status, output, _ = grok("sweep")
    assert (status, "grok sweep COMMAND" in output) == (0, True)
    for command in ("plan", "run", "task", "status", "log", "collect"):
        status, output, _ = grok("sweep", command, "--help")
        assert (status, f"grok sweep {command}" in output) == (0, True)
        assert command in grok("sweep", "--help")[1]
    assert "no such command" in grok("sweep", "plant")[2]
    assert "not a sweep" in grok("sweep", "run", "nowhere")[2]
