"""Data files: a directory in the format of the reference repositories, broken in every way."""

import json
import os
from pathlib import Path

import pytest
from tiny_reference_files import VOCABULARY, row, store
from tiny_reference_files import tiny as tiny_files

TRAIN = """
trainer: {accelerator: cpu, max_steps: 2, logger: false}
data: {class_path: grok.data.ReferenceJSON, init_args: {path: data, batch: 4}}
model: {net: {class_path: grok.models.LoopedTransformer, init_args: {width: 8, heads: 2, layers: 1}}, block: 1}
figures: {enabled: false}
"""


@pytest.fixture
def data(tmp_path):
    (tmp_path / "train.yaml").write_text(TRAIN)
    return store(tmp_path / "data", tiny_files())


def whole(name, content):
    return lambda data: (data / name).write_bytes(content)


def changed(name, change):
    """Breaks a file by what `change` makes of its content."""

    def broken(data):
        content = json.loads((data / name).read_text())
        content = change(content) or content
        (data / name).write_text(json.dumps(content))

    return broken


def cut(name, letters):
    return lambda data: (data / name).write_bytes((data / name).read_bytes()[:letters])


def removed(name):
    return lambda data: (data / name).unlink()


def directory(data):
    removed("train.json")(data)
    (data / "train.json").mkdir()


def loop(data):
    removed("train.json")(data)
    (data / "train.json").symlink_to("train.json")


def terabyte(data):
    os.truncate(data / "train.json", 2**40)


def with_row(name, one):
    return changed(name, lambda rows: rows.append(one))


NO_LIST = "the file must hold one JSON list"
NO_JSON = "not a JSON file"

# What is done to a good directory, and what must be said about it.
FILES = {
    "no train.json": (removed("train.json"), ["path='data'", "train.json"]),
    "no vocab.json": (removed("vocab.json"), ["path='data'", "vocab.json"]),
    "a directory for a file": (directory, ["path='data'", "train.json"]),
    "a link to itself": (loop, ["path='data'", "train.json"]),
    "a terabyte": (terabyte, ["train.json=", "larger than"]),
    "an empty file": (whole("train.json", b""), ["train.json=", NO_JSON]),
    "half a file": (cut("train.json", 200), ["train.json=", NO_JSON, "complete the download"]),
    "one letter short": (cut("test.json", -1), ["test.json=", NO_JSON]),
    "a file of zeros": (whole("train.json", bytes(4096)), ["train.json=", NO_JSON]),
    "Latin-1": (whole("train.json", '[{"input_text": "<é>"}]'.encode("latin-1")), ["train.json=", NO_JSON]),
    "compressed": (whole("train.json", b"\x1f\x8b\x08\0\0\0\0\0"), ["train.json=", NO_JSON]),
    "a pointer for the data": (
        whole("train.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        ["train.json=", NO_JSON, "download"],
    ),
    "a page for the data": (whole("train.json", b"<!doctype html><html></html>"), ["train.json=", NO_JSON]),
    "lines for a list": (whole("train.json", b"{}\n{}\n"), ["train.json=", NO_JSON]),
    "an object for a list": (whole("train.json", b"{}"), ["train.json='dict'", NO_LIST]),
    "a text for a list": (whole("test.json", b'"rows"'), ["test.json='str'", NO_LIST]),
    "a number that is none for a list": (whole("test.json", b"NaN"), ["test.json='float'", NO_LIST]),
    "nested too deep": (whole("train.json", b"[" * 100_000), ["train.json=", "too deep"]),
    "a number of 5000 digits": (whole("valid.json", b"[" + b"9" * 5000 + b"]"), ["valid.json=", NO_JSON]),
    "no rows": (whole("train.json", b"[]"), ["train.json=[]", "at least one row"]),
    "no symbols": (whole("vocab.json", b"[]"), ["vocab.json=", "</a>"]),
    "symbols that are numbers": (whole("vocab.json", b'[1, 2, "</a>"]'), ["vocab.json row 0=1", "<name>"]),
    "symbols that are mappings": (whole("vocab.json", b'[{}, "</a>"]'), ["vocab.json row 0={}", "<name>"]),
    "a symbol in a symbol": (
        changed("vocab.json", lambda names: names.append("<e_1><r_2>")),
        ["vocab.json row 7='<e_1><r_2>'", "<name>"],
    ),
    "a symbol of nothing": (changed("vocab.json", lambda names: names.append("<>")), ["vocab.json row 7='<>'"]),
    "a symbol named twice": (
        changed("vocab.json", lambda names: names.append("<a>")),
        ["vocab.json row 7='<a>'", "row 0", "once"],
    ),
    "rows that are null": (with_row("train.json", None), ["train.json row 6=None", "a row is an object"]),
    "rows that are lists": (with_row("train.json", ["<a><r>"]), ["train.json row 6=", "a row is an object"]),
    "a text that is a list": (
        with_row("train.json", {"input_text": ["<a>"], "target_text": "x"}),
        ["train.json row 6=", "as strings"],
    ),
    "a type that is a list": (
        with_row("test.json", row("<a><r>", "<b>") | {"type": ["id_atomic"]}),
        ["test.json row 4=", "give it a type"],
    ),
    "a row of a megabyte": (
        with_row("train.json", row("<a>" * 300_000, "<b>")),
        ["train.json row 6=", "<h><r1><r2>"],
    ),
    "a contradiction": (with_row("train.json", row("<a><r>", "<c>")), ["train.json row 6=", "gives <b>", "one tail"]),
    "a thousand contradictions": (
        changed("train.json", lambda rows: rows.extend([row("<a><r>", "<c>")] * 1000)),
        ["train.json row 6=", "more"],
    ),
    "an answer against the facts": (
        with_row("train.json", row("<d><s><r>", "<d>")),
        ["train.json row 6=", "the facts lead to <b>"],
    ),
    "a fact in and out of distribution": (
        changed("ood_facts.json", lambda facts: facts.append(["<a>", "<r>", "<b>"])),
        ["id_facts.json row 0=", "leave it in one"],
    ),
    "a fact of four": (
        changed("ood_facts.json", lambda facts: facts.append(["<a>"] * 4)),
        ["ood_facts.json row 1=", "[h, r, t]"],
    ),
    "a held-out query in training": (
        with_row("test.json", row("<a><r><s>", "<c>", "test_inferred_iid")),
        ["test.json row 4=", "in train.json too"],
    ),
    "no name for a symbol but a control character": (
        with_row("train.json", row("<a><\x1b[2J>", "<b>")),
        ["train.json row 6=", "is not in vocab.json"],
    ),
    "half a letter": (
        whole("train.json", b'[{"input_text": "<\\ud800>", "target_text": "x"}]'),
        ["train.json row 0=", "is not in vocab.json"],
    ),
}


@pytest.mark.parametrize(("broken", "told"), FILES.values(), ids=FILES.keys())
def test_a_data_file(refused, data, broken, told):
    broken(data)
    refused("fit", "--config", "train.yaml", told=told)


# Where the data are said to be, and what must be said about it.
PLACES = {
    "nowhere": ("nope", ["path='nope'", "train.json"]),
    "a file": ("train.yaml", ["path='train.yaml'", "train.json"]),
    "below a file": ("train.yaml/data", ["path='train.yaml/data'"]),
    "a NUL byte": ("da\0ta", ["path=", "train.json"]),
    "a name of 300 letters": ("d" * 300, "too long"),
    "a number": ("17", ["path='17'"]),
}


@pytest.mark.parametrize(("path", "told"), PLACES.values(), ids=PLACES.keys())
def test_a_place_without_data(refused, data, path, told):
    refused("fit", "--config", "train.yaml", f"--data.path={path}", told=told)


ODD = ["<../../etc/passwd>", "<\0>", "<" + "long" * 500 + ">", "<🧠>", "<\u202egnol>", "<a b\n>", "</a/b>"]


def test_odd_names_are_names_and_never_lead_elsewhere(grok, data, tmp_path):
    """Entities and relations called whatever a data file likes; all that is written lies in the run directory."""
    content = json.dumps(tiny_files())
    for plain, odd in zip(VOCABULARY[:6], ODD, strict=False):
        content = content.replace(json.dumps(plain)[1:-1], json.dumps(odd)[1:-1])
    store(data, json.loads(content))
    before = set(Path(tmp_path).rglob("*"))
    tracing = ("--tracing.enabled", "true", "--lens.enabled", "true")
    status, _, errors = grok("fit", "--config", "train.yaml", "--run_dir", "run", *tracing)
    assert (status, errors) == (0, "")
    assert grok("predict", "run")[0] == 0
    assert "etc/passwd" in (tmp_path / "run/predictions.jsonl").read_text()
    new = set(Path(tmp_path).rglob("*")) - before
    assert {path.relative_to(tmp_path).parts[0] for path in new} == {"run"}
