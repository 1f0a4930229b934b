"""A directory in the format of the reference repositories: four entities and five facts.

The graph is <a> -r-> <b> -s-> <c>, <d> -s-> <a>, <b> -r-> <a>, and <c> -r-> <d>, which is out of distribution.
"""

import json

VOCABULARY = ["<a>", "<b>", "<c>", "<d>", "<r>", "<s>", "</a>"]


def row(question, answer, kind=None):
    typed = {} if kind is None else {"type": kind}
    return {"input_text": question, "target_text": f"{question}{answer}</a>", **typed}


def tiny():
    facts = [("<a><r>", "<b>"), ("<b><s>", "<c>"), ("<d><s>", "<a>"), ("<b><r>", "<a>")]
    train = [*(row(*fact) for fact in facts), row("<c><r>", "<d>"), row("<a><r><s>", "<c>")]
    test = [
        row("<a><r>", "<b>", "id_atomic"),
        row("<c><r>", "<d>", "ood_atomic"),
        row("<a><r><s>", "<c>", "train_inferred"),
        row("<d><s><r>", "<b>", "test_inferred_iid"),
    ]
    return {
        "train.json": train,
        "valid.json": [],
        "test.json": test,
        "vocab.json": list(VOCABULARY),
        "id_facts.json": [["<a>", "<r>", "<b>"], ["<b>", "<s>", "<c>"], ["<d>", "<s>", "<a>"], ["<b>", "<r>", "<a>"]],
        "ood_facts.json": [["<c>", "<r>", "<d>"]],
    }


def store(directory, files):
    directory.mkdir(exist_ok=True)
    for name, content in files.items():
        (directory / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return directory
