"""The reference repositories' files: read exactly, written back equal, and refused with a reason when wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_reference_files import row, store, tiny

from grok.data import FillIn, ReferenceJSON, TwoHopComposition, write_reference_json
from grok.errors import BadInput

FIXTURES = Path(__file__).parent / "fixtures" / "composition_json"
NATURAL = FIXTURES / "composition.60.12.4.0_factaug_h1ratio0.0_h1k0_h2ratio0.0_h2k0"
AUGMENTED = FIXTURES / "composition.60.12.4.0_factaug_h1ratio0.5_h1k9_h2ratio0.5_h2k9"
OURS = {"entities": 30, "relations": 9, "out_degree": 5, "phi": 1.5, "ood": 0.1, "iid": 0.1}


def complaint(directory):
    with pytest.raises(BadInput) as raised:
        ReferenceJSON(directory).setup()
    return str(raised.value)


def load(path):
    return json.loads(path.read_text())


def written(regime, split):
    """The queries of a split as the repositories write them."""
    rows = []
    for inputs, target, facts in zip(split.inputs, split.targets[:, 0], split.truth["facts"], strict=True):
        names = regime.tokens(inputs[: 2 if facts[1] < 0 else 3])
        rows.append(row("".join(names), regime.token_name(int(target))))
    return rows


def test_the_natural_directory():
    regime = ReferenceJSON(NATURAL)
    assert (regime.task.tokens, regime.task.positions) == (78, 3)
    assert {name: len(split) for name, split in regime.splits.items()} == {
        "id_atomic": 456,
        "ood_atomic": 24,
        "train_inferred": 1824,
        "test_inferred_iid": 20,
        "test_inferred_ood": 8,
    }
    table = regime.generated.train.table
    assert written(regime, regime.encode(regime.files.train)) == load(NATURAL / "train.json")
    assert torch.equal(regime.encode(regime.files.train).inputs, table.inputs)
    tests = load(NATURAL / "test.json")
    for name, split in regime.splits.items():
        expected = [{**case, "type": name} for case in written(regime, split)]
        assert expected == [case for case in tests if case["type"] == name]


@pytest.mark.parametrize("directory", [NATURAL, AUGMENTED])
def test_hops_are_recovered(directory):
    regime = ReferenceJSON(directory, encoding=FillIn())
    assert regime.task.positions == 5
    facts = {(case["input_text"]): case["target_text"] for case in load(directory / "train.json")}
    hop_types = {"test_inferred_iid": (0, 0), "train_inferred": (0, 0), "train_inferred_io": (0, 1)}
    hop_types |= {"train_inferred_oi": (1, 0), "test_inferred_ood": (1, 1)}
    for name in regime.splits.keys() & hop_types.keys():
        split = regime.splits[name]
        assert (split.truth["ood"] == torch.tensor(hop_types[name])).all()
        for inputs, targets, bridge, rows in zip(
            split.inputs, split.targets, split.truth["bridge"], split.truth["facts"], strict=True
        ):
            head, relation1, relation2 = regime.tokens(inputs[:3])
            through, answer = regime.token_name(int(bridge)), regime.token_name(int(targets[0]))
            assert facts[f"{head}{relation1}"] == f"{head}{relation1}{through}</a>"
            assert facts[f"{through}{relation2}"] == f"{through}{relation2}{answer}</a>"
            keys = regime.facts.keys[rows]
            vocabulary = regime.files.vocabulary
            assert [vocabulary[int(key) // 78] for key in keys] == [head, through]
            assert [vocabulary[int(key) % 78] for key in keys] == [relation1, relation2]
    assert int(regime.facts.ood.sum()) == 24
    assert len(regime.facts.keys) == 480
    assert len(regime.splits["id_atomic"].labels) == 60


def test_injected_compositions_are_told_apart():
    """The published files call compositions with an injected OOD hop `train_inferred` as well."""
    splits = ReferenceJSON(AUGMENTED).splits
    sizes = {name: len(split) for name, split in splits.items() if name.startswith("train")}
    assert sizes == {"train_inferred": 17, "train_inferred_io": 15, "train_inferred_oi": 28}


def test_the_optional_files_add_nothing_to_the_natural_directory(tmp_path):
    for name in ("train.json", "valid.json", "test.json", "vocab.json"):
        shutil.copy(NATURAL / name, tmp_path)
    without, whole = ReferenceJSON(tmp_path), ReferenceJSON(NATURAL)
    assert torch.equal(without.facts.keys, whole.facts.keys)
    assert torch.equal(without.facts.ood, whole.facts.ood)
    for name, split in whole.splits.items():
        assert all(torch.equal(column, without.splits[name].truth[key]) for key, column in split.truth.items())


@pytest.mark.parametrize("kept", ["id_facts.json", "ood_facts.json"])
def test_one_optional_file_is_enough(tmp_path, kept):
    files = tiny()
    files["test.json"] = files["test.json"][2:]  # no type tells that <c><r> is out of distribution
    for name in {"id_facts.json", "ood_facts.json"} - {kept}:
        del files[name]
    assert ReferenceJSON(store(tmp_path, files)).facts.ood.tolist() == [False, False, False, True, False]


@pytest.mark.parametrize("directory", [NATURAL, AUGMENTED])
def test_read_and_write_gives_the_same_files(directory, tmp_path):
    write_reference_json(ReferenceJSON(directory), tmp_path / "copy")
    names = sorted(path.name for path in directory.iterdir())
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == names
    for name in names:
        assert load(tmp_path / "copy" / name) == load(directory / name)


@pytest.mark.parametrize("ood", [0.1, 0.0])
def test_write_and_read_gives_the_same_regime(tmp_path, ood):
    ours = TwoHopComposition(**{**OURS, "ood": ood})
    write_reference_json(ours, tmp_path / "new" / "data")
    read = ReferenceJSON(tmp_path / "new" / "data")
    assert read.task == ours.task
    table, again = ours.generated.train.table, read.generated.train.table
    for column in ("inputs", "at", "targets", "mask", "labels"):
        assert torch.equal(getattr(table, column), getattr(again, column))
    assert list(ours.splits) == list(read.splits)
    for name, split in ours.splits.items():
        for column in ("inputs", "at", "targets", "mask", "labels"):
            assert torch.equal(getattr(split, column), getattr(read.splits[name], column))
        for key, column in split.truth.items():
            assert torch.equal(column, read.splits[name].truth[key])
    assert torch.equal(ours.generated.train.batch(3).queries.inputs, read.generated.train.batch(3).queries.inputs)
    assert ours.tokens(torch.arange(45)) == read.tokens(torch.arange(45))


def test_our_files_hold_only_what_the_repositories_know(tmp_path):
    ours = TwoHopComposition(**OURS)
    write_reference_json(ours, tmp_path / "data")
    assert {case["type"] for case in load(tmp_path / "data" / "test.json")} == {
        "id_atomic",
        "ood_atomic",
        "train_inferred",
        "test_inferred_iid",
        "test_inferred_ood",
    }
    mixed = load(tmp_path / "data" / "test_mixed.json")
    assert {case["type"] for case in mixed} == {"test_inferred_io", "test_inferred_oi"}
    train = load(tmp_path / "data" / "train.json")
    known, unknown = (load(tmp_path / "data" / f"{name}_facts.json") for name in ("id", "ood"))
    assert (len(known), len(unknown)) == (135, 15)
    assert [case["target_text"] for case in train[:150]] == ["".join(fact) + "</a>" for fact in known + unknown]
    assert load(tmp_path / "data" / "vocab.json")[28:32] == ["<e_28>", "<e_29>", "<r_0>", "<r_1>"]
    assert [case["input_text"] for case in load(tmp_path / "data" / "valid.json")] == [
        case["input_text"] for case in load(tmp_path / "data" / "test.json") if case["type"] == "test_inferred_ood"
    ]


def test_nothing_is_overwritten(tmp_path):
    ours = TwoHopComposition(**OURS)
    (tmp_path / "vocab.json").write_text("mine")
    with pytest.raises(BadInput, match="new or empty"):
        write_reference_json(ours, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["vocab.json"]
    (tmp_path / "empty").mkdir()
    write_reference_json(ours, tmp_path / "empty")
    with pytest.raises(BadInput, match="new or empty"):
        write_reference_json(ours, tmp_path / "empty")


def test_no_half_written_directory(tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        write_reference_json(TwoHopComposition(**OURS), tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_the_lazy_mode_has_no_table_to_write(tmp_path):
    with pytest.raises(BadInput, match="lazy=True"):
        write_reference_json(TwoHopComposition(**OURS, lazy=True), tmp_path / "data")


def test_the_tiny_directory_is_good(tmp_path):
    regime = ReferenceJSON(store(tmp_path, tiny()))
    assert list(regime.splits) == ["id_atomic", "ood_atomic", "train_inferred", "test_inferred_iid"]
    assert regime.tokens(regime.splits["test_inferred_iid"].truth["bridge"][0]) == ["<a>"]


# What is changed in the tiny directory, and what must be said about it.
BAD_ROWS = {
    "not an object": ("train.json", 1, "<a>", "train.json row 1='<a>': a row is an object"),
    "missing key": ("train.json", 2, {"input_text": "<a><r>"}, "train.json row 2={.*both be there"),
    "not a string": ("train.json", 0, {"input_text": "<a><r>", "target_text": 7}, "row 0={.*as strings"),
    "unknown entity": ("train.json", 0, row("<z><r>", "<b>"), "train.json row 0=.*<z> is not in vocab.json"),
    "unknown answer": ("train.json", 5, row("<a><r><s>", "<z>"), "train.json row 5=.*<z> is not in vocab.json"),
    "unknown end": ("train.json", 0, {"input_text": "<a><r>", "target_text": "<a><r><b></b>"}, "</b> is not in"),
    "text between symbols": ("train.json", 0, row("<a> <r>", "<b>"), "row 0=.*nothing between"),
    "no brackets": ("train.json", 0, row("(a><r>", "<b>"), "row 0=.*nothing between"),
    "empty": ("train.json", 0, {"input_text": "", "target_text": ""}, "train.json row 0="),
    "discontinuous": (
        "train.json",
        0,
        {"input_text": "<a><r>", "target_text": "<b><r><b></a>"},
        "row 0=.*begin with input_text",
    ),
    "no end": ("train.json", 0, {"input_text": "<a><r>", "target_text": "<a><r><b>"}, "row 0=.*end with </a>"),
    "no answer": ("train.json", 0, {"input_text": "<a><r>", "target_text": "<a><r></a>"}, "row 0=.*add one answer"),
    "two answers": ("train.json", 0, row("<a><r>", "<b><c>"), "row 0=.*add one answer"),
    "three hops": ("train.json", 5, row("<a><r><s><r>", "<d>"), "row 5=.*must be <h><r> or <h><r1><r2>"),
    "contradictory facts": ("train.json", 0, row("<a><r>", "<c>"), "row 0='<a><r><c>': .*gives <b>"),
    "contradictory composition": ("train.json", 5, row("<a><r><s>", "<d>"), "row 5='<a><r><s><d>': .* lead to <c>"),
    "hop without a fact": ("train.json", 5, row("<a><s><r>", "<d>"), "row 5=.*a hop has no atomic fact"),
    "entity as relation": ("train.json", 0, row("<r><a>", "<b>"), "row 0=.*entity stands where a relation"),
    "relation as answer": ("train.json", 0, row("<d><r>", "<s>"), "row 0=.*entity stands where a relation"),
    "test row out of vocabulary": ("test.json", 3, row("<d><s><q>", "<b>", "test_inferred_iid"), "test.json row 3="),
    "no type": ("test.json", 0, row("<a><r>", "<b>"), "test.json row 0=.*give it a type among id_atomic"),
    "unknown type": ("test.json", 0, row("<a><r>", "<b>", "test"), "test.json row 0=.*type among"),
    "type of a composition": ("test.json", 0, row("<a><r>", "<b>", "train_inferred"), "row 0=.*does not fit"),
    "type against the facts": ("test.json", 1, row("<c><r>", "<d>", "id_atomic"), "row 1=.*id_atomic does not fit"),
    "held out and trained": (
        "test.json",
        3,
        row("<a><r><s>", "<c>", "test_inferred_iid"),
        "test.json row 3='<a><r><s><c>': this held-out query is in train.json",
    ),
    "a fact that is no fact": ("id_facts.json", 1, ["<a>", "<r>"], "id_facts.json row 1=.*a fact is a list"),
    "a fact out of vocabulary": ("ood_facts.json", 0, ["<c>", "<r>", "d"], "ood_facts.json row 0=.*a fact is a list"),
    "an ID and OOD fact": ("ood_facts.json", 0, ["<a>", "<r>", "<b>"], "id_facts.json row 0=.*in ood_facts.json too"),
    "a listed contradiction": ("ood_facts.json", 0, ["<c>", "<r>", "<a>"], "row 4=.*ood_facts.json row 0 gives <a>"),
    "symbol named twice": ("vocab.json", 3, "<a>", "vocab.json row 3='<a>': already in row 0"),
    "symbol without brackets": ("vocab.json", 3, "d", "vocab.json row 3='d': write a symbol as <name>"),
    "no end in the vocabulary": ("vocab.json", 6, "<x>", "vocab.json=.*add </a>"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_row(tmp_path, case):
    file, number, content, message = BAD_ROWS[case]
    files = tiny()
    files[file][number] = content
    text = complaint(store(tmp_path, files))
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(text)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train.json", "[{", "train.json='Expecting .*': not a JSON file"),
        ("test.json", {"rows": []}, "test.json='dict': the file must hold one JSON list"),
        ("vocab.json", "null", "vocab.json='NoneType': the file must hold"),
        ("train.json", [], r"train.json=\[\]: give at least one row"),
        ("test.json", [], r"test.json=\[\]: give at least one row"),
        ("vocab.json", [], "add </a>"),
    ],
)
def test_bad_file(tmp_path, file, content, message):
    text = complaint(store(tmp_path, {**tiny(), file: content}))
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(text)


def test_a_file_that_is_no_text(tmp_path):
    store(tmp_path, tiny())
    (tmp_path / "train.json").write_bytes(b"\xff\xfe\x00")
    assert "train.json=" in complaint(tmp_path)


def test_missing_files_are_named(tmp_path):
    assert "train.json, valid.json, test.json, vocab.json" in str(ReferenceJSON.check(path=tmp_path)[0])
    with pytest.raises(BadInput, match="batch=0"):
        ReferenceJSON(tmp_path / "absent", batch=0)
    regime = ReferenceJSON(store(tmp_path, tiny()))
    (tmp_path / "test.json").unlink()
    with pytest.raises(BadInput, match=r"test.json': there is no such file"):
        regime.setup()


def test_no_atomic_fact(tmp_path):
    files = {name: tiny()[name] for name in ("valid.json", "vocab.json")}
    files["train.json"], files["test.json"] = tiny()["train.json"][5:], tiny()["test.json"][2:]
    assert "no atomic fact" in complaint(store(tmp_path, files))


def test_a_missing_type_is_bad_input(tmp_path):
    files = tiny()
    del files["test.json"][3]
    assert "test_inferred_iid: no query in this split" in complaint(store(tmp_path, files))


def test_all_problems_are_told_and_the_rest_counted(tmp_path):
    files = tiny()
    files["train.json"] += [row("<a><r>", "<z>")] * 12 + [row("<a><r>", "<c>")]
    files["test.json"].append(row("<a><r><s>", "<c>", "test_inferred_iid"))
    lines = complaint(store(tmp_path, files)).splitlines()
    assert len(lines) == 9
    assert lines[0].startswith("train.json row 6=")
    assert lines[-1] == "… and 6 more"  # four of these rows, the contradiction and the leak


def test_different_problems_are_told_together(tmp_path):
    files = tiny()
    files["train.json"].append({"input_text": "<a>"})
    files["train.json"].append(row("<c><r>", "<a>"))
    files["test.json"].append(row("<a><r><s>", "<c>", "test_inferred_iid"))
    text = complaint(store(tmp_path, files))
    assert [line.split("=")[0] for line in text.splitlines()] == [
        "train.json row 6",
        "train.json row 7",
        "test.json row 4",
    ]


def test_reading_waits_until_it_is_needed(tmp_path):
    store(tmp_path, tiny())
    regime = ReferenceJSON(tmp_path)
    assert regime.task.tokens == 7
    shutil.rmtree(tmp_path)
    assert regime.splits  # everything was read at once, and once
