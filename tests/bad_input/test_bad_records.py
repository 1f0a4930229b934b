"""Records that a verdict reads, and the published numbers beside which it puts them."""

import json
import shutil

import pytest
import yaml

from grok.verdict import published


@pytest.fixture
def experiment(made, tmp_path):
    shutil.copytree(made.run, tmp_path / "runs/one")
    return tmp_path / "runs"


def configuration(change):
    def broken(run):
        content = yaml.safe_load((run / "config.yaml").read_text())
        change(content)
        (run / "config.yaml").write_text(yaml.safe_dump(content))

    return broken


def lines(*more):
    def broken(run):
        with (run / "metrics.jsonl").open("ab") as file:
            file.writelines(line + b"\n" for line in more)

    return broken


def row(**values):
    usual = {"step": 4, "split": "id_atomic", "name": "accuracy", "value": 0.5, "floor": 0.1, "n": 10}
    return lines(json.dumps(usual | values).encode())


def written(name, content):
    return lambda run: (run / name).write_bytes(content)


def twice(run):
    shutil.copytree(run, run.with_name("two"))


def on_another_graph(run):
    twice(run)
    other = run.with_name("two")
    configuration(lambda content: content["data"]["init_args"].update(entities=99))(other)


NO_RUN = ["runs", "no finished run of grok.data.FactExposure"]
NO_SUMMARY = ["summary.json", "not a summary", "--fresh"]
NO_CONFIGURATION = ["config.yaml", "not the configuration of a run", "restore it"]


def summary(**values):
    def broken(run):
        content = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps(content | values))

    return broken


# What is done to the only run of an experiment, and what must be said about it.
RECORDS = {
    "a run that is not finished": (written("summary.json", b'{"step": 4, "finished": false}'), NO_RUN),
    "no summary": (lambda run: (run / "summary.json").unlink(), NO_RUN),
    "an empty summary": (written("summary.json", b""), NO_SUMMARY),
    "a summary of zeros": (written("summary.json", bytes(512)), NO_SUMMARY),
    "a summary that is no text": (written("summary.json", b"\xff\xfe\0"), NO_SUMMARY),
    "a summary that is a list": (written("summary.json", b"[]"), NO_SUMMARY),
    "a summary that is null": (written("summary.json", b"null"), NO_SUMMARY),
    "a summary without a step": (written("summary.json", b"{}"), NO_SUMMARY),
    "a summary that is nested too deep": (written("summary.json", b"[" * 100_000), NO_SUMMARY),
    "a summary with a number of 5000 digits": (written("summary.json", b"9" * 5000), NO_SUMMARY),
    "a summary with a step that is none": (summary(step="last"), NO_SUMMARY),
    "a summary with a step that is NaN": (summary(step=float("nan")), NO_SUMMARY),
    "a summary with accuracies that are a list": (summary(accuracy=[1]), NO_SUMMARY),
    "a summary with an accuracy that is a word": (summary(accuracy={"id_atomic": "high"}), NO_SUMMARY),
    "a summary with milestones that are words": (summary(grok_step={"id_atomic": "soon"}), NO_SUMMARY),
    "a summary of words": (
        written("summary.json", b'{"step": 4, "finished": true, "flops": "many"}'),
        ["summary.json", "not a summary"],
    ),
    "a configuration that is no text": (written("config.yaml", b"\xff\xfe\0"), NO_RUN),
    "a configuration that is nested too deep": (written("config.yaml", b"[" * 1200), NO_RUN),
    "a configuration with a key twice": (written("config.yaml", b"data: {}\ndata: {}\n"), NO_RUN),
    "a configuration without a model": (configuration(lambda content: content.pop("model")), NO_CONFIGURATION),
    "a configuration without a seed": (configuration(lambda content: content.pop("seed_everything")), NO_CONFIGURATION),
    "a seed that is a word": (configuration(lambda content: content.update(seed_everything="x")), NO_CONFIGURATION),
    "a model that is a list": (configuration(lambda content: content.update(model=[1])), NO_CONFIGURATION),
    "loops that are a word": (
        configuration(lambda content: content["model"]["net"]["init_args"].update(loops="two")),
        NO_CONFIGURATION,
    ),
    "a start that is a list": (configuration(lambda content: content.update(start=[1])), NO_CONFIGURATION),
    "two runs of one setting": (twice, ["two runs of one setting", "runs/one", "runs/two"]),
    "two runs on different graphs": (on_another_graph, ["data.entities=14", "data.entities=99", "the same graph"]),
    "a line that is no JSON": (lines(b'{"step": 4'), ["metrics.jsonl, line", "not JSON", "remove the line"]),
    "a line that is no text": (lines(b"\xff\xfe"), ["metrics.jsonl", "UTF-8"]),
    "a line that is nested too deep": (lines(b"[" * 100_000), ["metrics.jsonl, line", "not JSON"]),
    "a line that is a number": (lines(b"7"), ["metrics.jsonl, line", "'7'", "remove the line"]),
    "a line that is a list": (lines(b"[]"), ["metrics.jsonl, line", "'[]'"]),
    "a line without a step": (lines(b'{"name": "x"}'), ["metrics.jsonl, line", "step, split, name and value"]),
    "a step that is a word": (row(step="four"), ["metrics.jsonl, line", "four", "remove the line"]),
    "a step that is NaN": (row(step=float("nan")), ["metrics.jsonl, line", "NaN"]),
    "a name that is a number": (row(name=3), ["metrics.jsonl, line", "remove the line"]),
    "a split that is a list": (row(split=[1]), ["metrics.jsonl, line", "remove the line"]),
    "a value that is a word": (row(value="half"), ["metrics.jsonl, line", "half"]),
    "a floor that is a word": (row(floor="low"), ["metrics.jsonl, line", "remove the line"]),
    "a number of queries that is a word": (row(n="all"), ["metrics.jsonl, line", "remove the line"]),
}


@pytest.mark.parametrize(("broken", "told"), RECORDS.values(), ids=RECORDS.keys())
def test_the_record_of_a_run(refused, experiment, broken, told):
    broken(experiment / "one")
    refused("verdict", "runs", told=told)


PRETRAINED = b"regime,step,bridge_found,target_found,train_acc\n"

# Content of the published pre-training curves, and what must be said about it.
PUBLISHED = {
    "gone": (None, ["he2026_pretrain.csv", "install grok-circuits again"]),
    "empty": (b"", ["he2026_pretrain.csv", "empty"]),
    "no rows": (PRETRAINED, ["he2026_pretrain.csv", "empty"]),
    "no text": (b"\xff\xfe\0", ["he2026_pretrain.csv", "damaged"]),
    "other columns": (b"regime,step\nnatural,1\n", ["he2026_pretrain.csv", "damaged", "bridge_found"]),
    "a torn row": (PRETRAINED + b"natural,70", ["he2026_pretrain.csv", "damaged", "another length"]),
    "a row too long": (PRETRAINED + b"natural,1,0,0,0,0,0\n", ["he2026_pretrain.csv", "another length"]),
    "a word for a number": (PRETRAINED + b"natural,1,much,0,0\n", ["he2026_pretrain.csv", "damaged", "much"]),
    "an open quote": (PRETRAINED + b'natural,1,"0,0,0\n', ["he2026_pretrain.csv", "damaged"]),
    "a page": (b"<!doctype html>\n<html></html>\n", ["he2026_pretrain.csv", "damaged"]),
}


@pytest.mark.parametrize(("content", "told"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_the_published_curves(refused, experiment, tmp_path, monkeypatch, content, told):
    installed = tmp_path / "installed"
    shutil.copytree(str(published.files("grok.verdict").joinpath("published")), installed / "published")
    path = installed / "published/he2026_pretrain.csv"
    path.unlink() if content is None else path.write_bytes(content)
    monkeypatch.setattr(published, "files", lambda _: installed)
    published._rows.cache_clear()
    try:
        refused("verdict", "runs", told=told)
    finally:
        published._rows.cache_clear()
