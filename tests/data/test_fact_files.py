"""Files of facts: 2WikiMultiHopQA's format and CSV, read as they are meant, or refused in a line with the fix."""

import json
import warnings
from pathlib import Path

import pytest

from grok.data.fact_files import read_facts, selected
from grok.errors import BadInput

FILES = Path(__file__).parent / "fixtures/real_facts"


def named(knowledge):
    """The facts by name."""
    return [
        (knowledge.entities[head], knowledge.relations[relation], knowledge.entities[tail])
        for head, relation, tail in knowledge.columns.tolist()
    ]


def question(*triples, ids=()):
    entry = {"_id": "0", "type": "compositional", "question": "?", "context": [], "supporting_facts": []}
    entry |= {"evidences": [list(triple) for triple in triples], "answer": triples[-1][2] if triples else ""}
    return entry | ({"evidences_id": [list(one) for one in ids], "answer_id": None} if ids else {})


@pytest.fixture
def write(tmp_path):
    def written(content, name="facts"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return written


def test_both_formats_give_the_same_facts():
    wiki, table = read_facts(FILES / "two_wiki.json", "2wiki"), read_facts(FILES / "facts.csv", "csv")
    assert sorted(named(wiki)) == sorted(named(table))
    assert len(named(table)) == 104
    assert "136 given again" in wiki.report
    assert wiki.digest != table.digest
    assert len(wiki.digest) == 64


def test_ids_tell_entities_apart_and_names_without_one_mean_the_first(write):
    path = write([
        question(("The Film", "director", "Ann"), ids=[("Q1", "director", "Q2")]),
        question(("The Film", "director", "Bob"), ids=[("Q3", "director", "Q4")]),  # another film of that name
        question(("Annie", "spouse", "Bob"), ids=[("Q2", "spouse", "Q4")]),  # another name of Ann
        question(("The Film", "country", "France")),
        question(("Ann", "country", "France")),
    ])  # fmt: skip
    assert named(read_facts(path, "2wiki")) == [
        ("The Film", "director", "Ann"),
        ("The Film (Q3)", "director", "Bob"),
        ("Ann", "spouse", "Bob"),
        ("The Film", "country", "France"),
        ("Ann", "country", "France"),
    ]


def test_the_first_of_several_tails_is_kept_and_the_others_are_counted_aloud(write):
    path = write(b"tail,note,Relation,head\nA,,child,X\nB,,child,X\n\nB,,child,X\n A ,,child,X\nC,,child,Y\n")
    with pytest.warns(UserWarning, match=r"1 further tails .* dropped \(X, child: A kept, B dropped\)"):
        knowledge = read_facts(path, "csv")
    assert named(knowledge) == [("X", "child", "A"), ("Y", "child", "C")]
    assert knowledge.report.startswith("2 facts, 1 given again, 1 further tails")


def test_nothing_is_said_of_a_file_without_contradictions():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_facts(FILES / "two_wiki.json", "2wiki")


def test_names_may_hold_commas_quotes_and_any_letters(write):
    path = write('\ufeffhead,relation,tail\r\n"Ó, Ő","""is"" in",中\u200d国\n'.encode())
    assert named(read_facts(path, "csv")) == [("Ó, Ő", '"is" in', "中\u200d国")]


BROKEN = {
    "an empty file": ("csv", b"", ["line 1", "no column head", "begin with the line head,relation,tail"]),
    "no header": ("csv", b"a,b,c\nd,e,f\n", ["line 1", "no column head"]),
    "a column twice": ("csv", b"head,head,relation,tail\n", ["line 1", "no column head, or two"]),
    "no facts": ("csv", b"head,relation,tail\n\n", ["no facts"]),
    "a column too few": ("csv", b"head,relation,tail\na,b,c\na,b\n", ["line 3", "2 columns for 3", "quotes"]),
    "a column too many": ("csv", b"head,relation,tail\na,b,c,d\n", ["line 2", "4 columns for 3", "quotes"]),
    "an empty name": ("csv", b"head,relation,tail\na,  ,c\n", ["line 2", "relation='  '", "give a name"]),
    "an open quote": ("csv", b'head,relation,tail\na,b,"c\n', ["line 2", "quote"]),
    "a loose quote": ("csv", b'head,relation,tail\na,"b"x,c\n', ["line 2", "quote"]),
    "a monstrous cell": ("csv", b"head,relation,tail\na,b," + b"c" * 200_000, ["line 2", "field larger"]),
    "Latin-1": ("csv", "head,relation,tail\né,b,c\n".encode("latin-1"), ["UTF-8"]),
    "JSON for CSV": ("csv", b'[{"evidences": []}]', ["line 1", "begin with the line head,relation,tail"]),
    "CSV for JSON": ("2wiki", b"head,relation,tail\na,b,c\n", ["not JSON", "use format=csv"]),
    "half a download": ("2wiki", b'[{"evidences": [["a", "b"', ["not JSON", "complete the download"]),
    "no list": ("2wiki", {"data": []}, ["a JSON dict", "list of questions"]),
    "no objects": ("2wiki", ["a"], ["entry 0", "no list of evidences"]),
    "the test set": ("2wiki", [{"_id": "0", "question": "?"}], ["entry 0", "train.json or dev.json"]),
    "the test set, with empty lists": ("2wiki", [question()], ["no facts", "not test.json"]),
    "two parts": ("2wiki", [question(("a", "b", "c")), {"evidences": [["a", "b"]]}], ["entry 1, evidence 0", "['a',"]),
    "a number": ("2wiki", [{"evidences": [["a", "b", 3]]}], ["entry 0, evidence 0", "object=3", "give a name"]),
    "half a letter": ("2wiki", [{"evidences": [["\ud800", "b", "c"]]}], ["entry 0, evidence 0", "Unicode"]),
    "ids of other length": (
        "2wiki", [question(("a", "b", "c"), ids=[("Q1", "b", "Q2"), ("Q3", "b", "Q4")])],
        ["entry 0", "evidences_id is not a list as long"],
    ),
    "an id too few": ("2wiki", [question(("a", "b", "c"), ids=[("Q1", "b")])], ["evidence 0", "give [subject id"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_in_one_line(write, name):
    form, content, told = BROKEN[name]
    path = write(content)
    with pytest.raises(BadInput) as caught:
        read_facts(path, form)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for part in [str(path), *told]:
        assert part in message


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(BadInput, match="is a directory"):
        read_facts(tmp_path, "csv")


def test_relations_are_chosen_by_name():
    knowledge = read_facts(FILES / "facts.csv", "csv")
    kept = selected(knowledge, ["country", "director"], ["director"])
    assert {relation for _, relation, _ in named(kept)} == {"country"}
    assert kept.relations == knowledge.relations
    with pytest.raises(BadInput, match=r"keep='place of death': no such relation; use some of director, country of"):
        selected(knowledge, ["place of death"], [])
    with pytest.raises(BadInput, match=r"leave_out=.*no fact is left"):
        selected(knowledge, ["country"], ["country"])
