"""Configurations: keys, values and files that are wrong."""

import os

import pytest

# Arguments after `grok fit --config tiny.yaml`, and what the message must say.
KEYS = {
    "unknown trainer key": (
        ["--trainer.max_step", 5],
        "trainer.max_step: no such key; did you mean trainer.max_steps?",
    ),
    "unknown data key": (["--data.entites", 5], "data.entites: no such key; did you mean entities?"),
    "unknown model key": (["--model.net.widht", 5], "model.net.widht: no such key; did you mean width?"),
    "unknown section": (["--evalution.every", 5], "did you mean evaluation.every?"),
    "unknown callback key": (["--evaluation.evry", 5], "evaluation.evry: no such key; did you mean evaluation.every?"),
    "unknown optimizer key": (["--model.optimizer.learning", 1], "model.optimizer.learning: no such key"),
    "unknown encoding key": (
        ["--data.encoding", "grok.data.NextToken", "--data.encoding.padd", 4],
        ["padd: no such key", "pad"],
    ),
    "unknown schedule key": (["--model.schedule.warmpu", 5], "warmpu: no such key; did you mean warmup?"),
    "an argument without a key": (["5"], "5"),
    "a flag of another program": (["-x"], "x"),
    "a key without a value": (["--trainer.max_steps"], ["trainer.max_steps", "expected one argument"]),
    "no such class": (
        ["--model.net", "grok.models.LoopdTransformer"],
        "model.net: grok.models has no class LoopdTransformer; did you mean LoopedTransformer?",
    ),
    "no such module": (
        ["--model.net", "grok.modelz.LoopedTransformer"],
        ["model.net", "modelz", "did you mean models?"],
    ),
    "a class of another kind": (["--model.net", "grok.data.NextToken"], ["model.net", "NextToken"]),
    "a class that runs programs": (["--model.net", "subprocess.Popen"], ["model.net", "Popen"]),
    "a function for a class": (["--model.net", "os.system"], ["model.net", "os.system"]),
    "a regime that is none": (["--data", "torch.nn.Linear"], ["data", "Linear"]),
    "no such regime": (["--data", "grok.data.TreeHop"], ["data", "TreeHop"]),
    "no such optimizer": (["--model.optimizer", "torch.optim.Adamm"], ["model.optimizer", "Adamm"]),
    "no such schedule": (["--model.schedule", "grok.training.Warmpu"], ["schedule", "Warmpu"]),
    "no such objective": (["--model.objective", "Nothing"], ["model.objective", "Nothing"]),
    "no such callback": (["--trainer.callbacks", "grok.callbacks.Nothing"], ["trainer.callbacks", "Nothing"]),
}

TYPES = {
    "wrong type": (["--data.phi", "many"], "data.phi: Expected a float"),
    "text for an integer": (["--data.entities", "many"], ["data.entities", "many", "int"]),
    "a fraction for an integer": (["--data.entities", 12.5], ["data.entities", "12.5", "int"]),
    "null for an integer": (["--data.entities", "null"], ["data.init_args.entities=None", "int"]),
    "a list for an integer": (["--data.batch", "[1, 2]"], ["data.batch", "int"]),
    "text for a width": (["--model.net.width", "wide"], ["model.net.width", "wide", "int"]),
    "text for a number of steps": (["--trainer.max_steps", "all"], ["trainer.max_steps", "all", "int"]),
    "text for a seed": (["--seed_everything", "lucky"], ["seed_everything", "lucky", "int"]),
    "a fraction for a seed": (["--seed_everything", 1.5], ["seed_everything", "1.5", "int"]),
    "text for a switch": (["--data.lazy", "perhaps"], ["data.lazy", "perhaps", "bool"]),
    "text for a schedule": (["--evaluation.every", "often"], ["evaluation.every", "often", "int"]),
    "a fraction for a schedule": (["--evaluation.every", 2.5], ["evaluation.every", "2.5", "int"]),
    "text for a learning rate": (["--model.optimizer.lr", "fast"], ["model.optimizer", "fast", "float"]),
    "one beta": (["--model.optimizer", "grok.training.AdamAtan2", "--model.optimizer.betas", "[0.9]"], "betas"),
    "a mapping for a number": (["--data.phi", "{a: 1}"], ["data.phi", "float"]),
    "an unknown choice": (["--model.net.positions", "circular"], ["positions", "circular", "learned"]),
    "an unknown way with numbers that are not finite": (["--model.nonfinite", "hope"], ["nonfinite", "hope", "skip"]),
    "a time that is none": (["--trainer.max_time", "soon"], ["trainer", "soon", "DD:HH:MM:SS"]),
}

RANGES = {
    "out-degree above relations": (["--data.out_degree", 9], "data.init_args.out_degree=9: "),
    "negative size": (["--data.entities", -4], "data.init_args.entities=-4: give a number, 1 or more"),
    "heads": (["--model.net.heads", 3], "model.net.init_args.heads=3: use a divisor of width=16"),
    "no steps": (["--trainer.max_steps", -1], "trainer.max_steps=-1: give the number of optimizer steps"),
    "learning rate": (["--model.optimizer.lr", -1], "model.optimizer: Invalid learning rate: -1.0"),
    "seed": (["--seed_everything", -1], "seed_everything=-1: use an integer from 0"),
    "a seed of 33 bits": (["--seed_everything", 2**32], f"seed_everything={2**32}: use an integer from 0"),
    "a seed for the graph of 70 bits": (["--data.graph_seed", 2**70], [f"graph_seed={2**70}", "use"]),
    "a negative seed for the order": (["--data.order_seed", -1], ["order_seed=-1", "use"]),
    "a negative seed for the weights": (["--model.init_seed", -1], ["init_seed=-1", "use"]),
    "phi above the pool": (["--data.phi", 400], "phi=400.0: use at most"),
    "phi that is not a number": (["--data.phi", ".nan"], ["phi=nan", "give"]),
    "infinite phi": (["--data.phi", ".inf"], ["phi=inf", "give"]),
    "a share that is not a number": (["--data.ood", ".nan"], ["ood=nan", "give a share between 0 and 1"]),
    "everything out of distribution": (["--data.ood", 1], ["ood=1.0", "leave more facts in distribution"]),
    "empty split": (["--data.iid", 0], "test_inferred_iid: no query in this split"),
    "a graph of a billion compositions": (["--data.entities", 10**8], ["lazy", "compositions do not fit into memory"]),
    "a lazy graph of 10^15 entities": (
        ["--data.entities", 10**15, "--data.lazy", "true"],
        ["entities=1000000000000000", "use a smaller graph"],
    ),
    "a batch of 10^15 queries": (["--data.batch", 10**15], ["batch", "use"]),
    "a width of a trillion": (["--model.net.width", 10**12], ["width", "use"]),
    "a number of layers without end": (["--model.net.layers", 10**9], ["layers", "use"]),
    "a number of 30 digits": (["--data.entities", 10**30], ["entities", "use a smaller graph"]),
    "a dropout of everything": (["--model.net.dropout", 1], "model.net.init_args.dropout=1.0: use a share in [0, 1)"),
    "a dropout that is not a number": (["--model.net.dropout", ".nan"], ["dropout=nan", "use a share"]),
    "a learning rate that is not a number": (["--model.optimizer.lr", ".nan"], ["model.optimizer", "nan"]),
    "an infinite learning rate": (["--model.optimizer.lr", ".inf"], ["model.optimizer", "inf"]),
    "a negative weight decay": (["--model.optimizer.weight_decay", -1], ["model.optimizer", "weight_decay", "-1"]),
    "a clip that is not a number": (["--model.clip", ".nan"], ["model.clip=nan", "use"]),
    "no clip at zero": (["--model.clip", 0], ["model.clip=0.0", "null not to clip"]),
    "a moving average that never moves": (["--model.ema_decay", 1], ["model.ema_decay=1.0", "between 0 and 1"]),
    "a threshold that is not a number": (["--monitor.threshold", ".nan"], ["monitor.threshold=nan", "use an accuracy"]),
    "a start that is not a milestone": (["--start.step", "soon"], ["start.step='soon'", "memorised"]),
    "a negative start": (["--start.step", -1], ["start.step=-1", "use a step of the series"]),
    "no devices": (["--trainer.devices", 0], ["devices", "0"]),
    "less than no devices": (["--trainer.devices", -5], ["trainer.devices='-5'", "int > 0"]),
    "no such accelerator": (["--trainer.accelerator", "abacus"], ["accelerator", "abacus"]),
    "an accelerator that is not here": (["--trainer.accelerator", "tpu"], ["trainer.accelerator='tpu'", "not met"]),
    "no such precision": (["--trainer.precision", "12"], ["precision", "12"]),
    "no such strategy": (["--trainer.strategy", "hope"], ["hope"]),
    "negative epochs": (["--trainer.max_epochs", -7], ["max_epochs", "-7"]),
}

CONFLICTS = {
    "seed of the data": (["--data.seed", 2], "data.seed: is --seed_everything"),
    "automatic clipping": (["--trainer.gradient_clip_val", 1], "gradient clipping"),
    "accumulated gradients": (["--trainer.accumulate_grad_batches", 2], ["accumulate_grad_batches=2", "data.batch"]),
    "two directories": (["--trainer.default_root_dir", "x"], "use --run_dir"),
    "objective": (
        ["--model.objective", "grok.training.SquaredError"],
        "model.objective='SquaredError': the answers are",
    ),
    "padding too short": (
        ["--data.encoding", "grok.data.NextToken", "--data.encoding.pad", 2],
        "pad=2: use tight, or at least 3 positions",
    ),
    "decay before the warm-up ends": (["--model.schedule.decay_from", 2], ["decay_from=2", "at least warmup=5"]),
    "decay that ends before it begins": (["--model.schedule.decay_to", 20], ["decay_to=20", "decay_from=40"]),
    "dense saves without an end": (["--series.until", 100], ["series.until=100", "together"]),
    "an end that is no multiple": (
        ["--series.until", 100, "--series.then", 50],
        ["series.until=100", "multiple of every=30"],
    ),
    "rotary positions of odd heads": (
        ["--model.net.positions", "rope", "--model.net.width", 6],
        ["heads=2", "even head width"],
    ),
    "patching without a counterfactual": (["--tracing.enabled", "true", "--tracing.splits", "[nope]"], "nope"),
    "an analysis of another regime": (["--fourier.enabled", "true"], ["fourier", "ModularArithmetic", "use false"]),
    "an analysis of a split that is not there": (
        ["--lens.enabled", "true", "--lens.splits", "[test_inferred]"],
        ["lens.splits='test_inferred'", "test_inferred_iid"],
    ),
    "a start in nothing": (["--start.run", "nope"], ["start.run='nope'", "not there"]),
    "a start in a file": (["--start.run", "tiny.yaml"], ["start.run='tiny.yaml'", "a run starts from"]),
    "a checkpoint with a start": (["--ckpt_path", "nope.ckpt", "--start.run", "x"], ["ckpt_path='nope.ckpt'"]),
    "no such checkpoint": (["--ckpt_path", "nope.ckpt"], "ckpt_path='nope.ckpt': give an existing .ckpt file"),
    "a configuration as a checkpoint": (["--ckpt_path", "tiny.yaml"], ["ckpt_path='tiny.yaml'", "RUN/last.ckpt"]),
    "a group of weights that there are not": (
        ["--model.groups", "{nothing: {lr: 0.1}}"],
        ["groups", "nothing", "no weight has this name"],
    ),
}

DIRECTORIES = {
    "file as directory": (["--run_dir", "tiny.yaml"], "tiny.yaml is not a directory that can be written to"),
    "a directory below a file": (["--run_dir", "tiny.yaml/run"], ["tiny.yaml", "is not a directory"]),
    "a name of 300 letters": (["--run_dir", "r" * 300], ["run_dir=", "too long"]),
    "a path of 5000 letters": (["--run_dir", "r/" * 2500], ["run_dir=", "too long"]),
    "a NUL byte": (["--run_dir", "r\0un"], ["run_dir=", "NUL"]),
    "an experiment that leads elsewhere": (["--experiment", "../../elsewhere"], ["experiment=", "../../elsewhere"]),
    "an experiment that is a path from the root": (["--experiment", "/etc"], ["experiment=", "/etc"]),
    "a system directory": (["--run_dir", "/proc/nope"], ["/proc", "nope"]),
    "a device": (["--run_dir", "/dev/null"], ["/dev/null", "is not a directory"]),
    "an empty name": (["--run_dir", ""], ["run_dir=''"]),
}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [pytest.param(*case, id=name) for table in (KEYS, TYPES, RANGES, CONFLICTS) for name, case in table.items()],
)
def test_a_setting(refused, tiny, arguments, told):
    refused("fit", "--config", tiny, *arguments, told=told)


@pytest.mark.parametrize(("arguments", "told"), DIRECTORIES.values(), ids=DIRECTORIES.keys())
def test_a_run_directory_that_cannot_be(refused, tiny, arguments, told):
    refused("fit", "--config", tiny, *arguments, told=told)


# ------------------------------------------------------------------ files

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)

# Content of the configuration file, and what the message must say beside its name.
FILES = {
    "empty": ("", "empty"),
    "only a comment": ("# nothing\n", "empty"),
    "null": ("null", "mapping"),
    "a list": ("- trainer\n- data\n", "mapping"),
    "a text": ("hello", "mapping"),
    "a number": ("17", "mapping"),
    "two documents": ("trainer: {}\n---\ntrainer: {}\n", "document"),
    "a key given twice": ("trainer: {max_steps: 5}\nmodel: {}\ntrainer: {max_steps: 6}\n", ["trainer", "twice"]),
    "a deep key given twice": ("trainer: {max_steps: 5, max_steps: 6}\n", ["line 1", "max_steps", "twice"]),
    "tabs": ("trainer:\n\tmax_steps: 5\n", ["line 2", "\\t"]),
    "an open bracket": ("trainer: {max_steps: 5\n", "not YAML"),
    "wrong indentation": ("trainer:\n    max_steps: 5\n  logger: false\n", ["not YAML", "line 3"]),
    "an alias without an anchor": ("trainer: *nothing\n", ["line 1", "nothing"]),
    "aliases of aliases of aliases": (BOMB, ["aliases", "write less"]),
    "an alias of itself": ("trainer: &a [*a]\n", "aliases"),
    "nested too deep": ("[" * 1200, "deep"),
    "nested too deep, and closed": ("trainer: " + "[" * 1200 + "]" * 1200, "deep"),
    "a program": ("trainer: !!python/object/apply:os.system ['touch pwned']\n", ["line 1", "python/object"]),
    "a class": ("trainer: !!python/name:os.system\n", ["line 1", "python/name"]),
    "a tag of one's own": ("trainer: !mine {max_steps: 5}\n", ["line 1", "!mine"]),
    "a date that there is not": ("seed_everything: 2024-13-45\n", "month"),
    "an integer of 5000 digits": ("seed_everything: " + "9" * 5000, "digits"),
    "a key that is a number": ("17: 4\n", "17"),
    "a key that is a list": ("[1, 2]: 4\n", "key"),
    "a NUL byte": ("trainer: \0\n", "not YAML"),
    "UTF-16": ("trainer: {max_steps: 5}\n".encode("utf-16"), "UTF-8"),
    "Latin-1": ("experiment: Grüße\n".encode("latin-1"), ["UTF-8", "0xfc"]),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "UTF-8"),
    "zeros": (bytes(4096), "not YAML"),
    "unknown section": ("trainr: {max_steps: 5}\n", ["trainr", "no such key"]),
    "unknown keys of another version": (
        "trainer: {accelerator: cpu, max_steps: 5}\nrotation: {every: 3}\n",
        ["rotation", "no such key"],
    ),
    "a list for a section": ("trainer: [5, 6]\n", ["trainer"]),
    "a text for a section": ("evaluation: often\n", ["evaluation", "often"]),
    "arguments that are a list": (
        "data: {class_path: grok.data.TwoHopComposition, init_args: [12, 4]}\n",
        ["data", "init_args"],
    ),
    "a class that is a number": ("data: {class_path: 17}\n", ["data", "17"]),
    "a class and no module": ("data: {class_path: ''}\n", ["data"]),
    "a run directory with a NUL byte": ('run_dir: "r\\0un"\n', ["NUL"]),
}


@pytest.mark.parametrize(("content", "told"), FILES.values(), ids=FILES.keys())
def test_a_configuration_file(refused, tiny, tmp_path, content, told):
    (tmp_path / "broken.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused("fit", "--config", tiny, "--config", "broken.yaml", told=told)


def test_no_data(refused, tmp_path):
    (tmp_path / "broken.yaml").write_text("model: {net: {class_path: grok.models.LoopedTransformer}}\n")
    refused("fit", "--config", "broken.yaml", told=["data", "required"])


def no_file(path):
    pass


def a_directory(path):
    path.mkdir()


def a_loop(path):
    path.symlink_to(path.name)


def a_dangling_link(path):
    path.symlink_to("nothing.yaml")


def a_terabyte(path):
    path.touch()
    os.truncate(path, 2**40)


PLACES = {
    "no file": (no_file, "broken.yaml"),
    "a directory": (a_directory, ["broken.yaml", "directory"]),
    "a link to itself": (a_loop, "broken.yaml"),
    "a link to nothing": (a_dangling_link, "broken.yaml"),
    "a terabyte": (a_terabyte, ["broken.yaml", "more than"]),
}


@pytest.mark.parametrize(("make", "told"), PLACES.values(), ids=PLACES.keys())
def test_what_is_no_configuration_file(refused, tmp_path, make, told):
    make(tmp_path / "broken.yaml")
    refused("fit", "--config=broken.yaml", told=told)


ENDLESS = {"zeros without end": "/dev/zero", "nothing at all": "/dev/null", "below a file": "tiny.yaml/x.yaml"}


@pytest.mark.parametrize("name", ENDLESS.values(), ids=ENDLESS.keys())
def test_another_place(refused, tiny, name):
    refused("fit", "--config", name, told=name)


def test_a_good_file_and_a_bad_one(refused, tiny, tmp_path):
    (tmp_path / "more.yaml").write_text("trainer: {max_stepz: 5}\n")
    refused("fit", "--config", tiny, "--config", "more.yaml", told=["max_stepz: no such key", "max_steps"])


def test_no_value_for_the_file(refused, tiny):
    refused("fit", "--config", told="config")
