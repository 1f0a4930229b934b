"""One optimizer step at several sizes: ours beside a bare loop over our model and beside the reference form.

*Reference form*: Hugging Face's `GPT2LMHeadModel` as Wang et al. 2024 run it: 52,464 vocabulary rows, queries padded to
10 tokens, read-out at all of them, loss on the answer and `</a>`, dropout 0.1, eager attention, AdamW, a list of
dictionaries collated for every batch (fp16 with a gradient scaler on a GPU, float32 on a CPU). It has as many blocks as
our model applies, none of them shared. *Bare*: forward, backward, clipping, AdamW written out, over our own model.
*Ours*: `GrokModule` with `fast` through the Trainer, 50 steps a block.

Every form runs in a process of its own; the least of three stretches of steps counts (of the reference form: of two, or
of one where a step takes a minute), as other work on a machine only adds. FLOPs are those of the plain form of the
model, counted by torch: what `fast` leaves out shows in the time, and the share of what a large matrix product
achieves in the same process is of useful work. All forms of the sizes `4x2` and `8` have dropout 0.1; at quickstart
size only the reference form has.

    OMP_NUM_THREADS=1 python scripts/benchmark/step.py --sizes quickstart 4x2 8 --batch 512
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from report import Report, in_a_process, peak_gigabytes, smoke_option, synchronize
from sizes import SIZES, Bare, flops_of, made, matmul_ceiling, seconds_per_step_of_trainer
from torch import Tensor, nn

ROWS, PADDED = 52_464, 10
FORMS = ["reference", "bare", "ours"]
REPEATS = 3


def reference_batches(rows: Tensor, targets: Tensor, size: int, device: str) -> Iterator[dict[str, Tensor]]:
    """`h r1 r2 t </a>` and padding, as a list of dictionaries collated by torch's own collate."""
    from torch.utils.data import DataLoader

    end, pad = ROWS - 2, ROWS - 1
    items = []
    for row, answer in zip(rows.tolist(), targets[:, 0].tolist(), strict=True):
        tokens = [*row, answer, end]
        filled = [*tokens, *[pad] * (PADDED - len(tokens))]
        labels = [-100] * len(row) + [answer, end] + [-100] * (PADDED - len(tokens))
        items.append(
            {
                "input_ids": torch.tensor(filled),
                "attention_mask": torch.tensor([1] * len(tokens) + [0] * (PADDED - len(tokens))),
                "labels": torch.tensor(labels),
            }
        )
    while True:
        for batch in DataLoader(items, batch_size=size, shuffle=True, drop_last=True):  # type: ignore[arg-type]
            yield {name: tensor.to(device) for name, tensor in batch.items()}


class Reference:
    """The reference form."""

    def __init__(self, name: str, batch: int, device: str) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        size = SIZES[name]
        assert size.blocks is not None
        data = size.data(batch=batch)
        table = data.generated.train.batches(0, 1)
        queries = [next(table).queries] + [data.generated.train.batch(step).queries for step in range(1, 4)]
        rows, targets = (torch.cat([getattr(one, part) for one in queries]) for part in ("inputs", "targets"))
        heads = {64: 4, 16: 2}.get(size.width, 12)
        config = GPT2Config(
            vocab_size=ROWS, n_positions=1024, n_embd=size.width, n_layer=size.blocks, n_head=heads,
            attn_implementation="eager",
        )  # fmt: skip
        self.model = GPT2LMHeadModel(config).train().to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.1)
        self.half = device.startswith("cuda")
        self.scaler = torch.amp.GradScaler(enabled=self.half)
        self.batches = reference_batches(rows, targets, batch, device)

    def steps(self, start: int, stop: int) -> None:
        """Optimizer steps, of which only the number counts."""
        for _ in range(start, stop):
            with torch.autocast("cuda", torch.float16, enabled=self.half):
                loss = self.model(**next(self.batches)).loss
            self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
            loss.item()  # shown by the progress bar of the released code


def measure(form: str, name: str, batch: int, steps: int, device: str) -> dict[str, Any]:
    """Seconds and FLOPs of a step of one form, and the peak memory of this process."""
    times = []
    if form == "ours":
        block = min(50, steps)
        module, data = made(name, batch, device, fast=True, block=block)
        precision = SIZES[name].precision if device.startswith("cuda") else "32-true"
        times = [seconds_per_step_of_trainer(module, data, steps, block, device, precision, REPEATS)]
        memory = peak_gigabytes(device)
        plain, _ = made(name, batch, device)
        first = data.generated.train.to(device).batch(0)
        flops = flops_of(lambda: plain.loss(first).backward())
    else:
        loop: Bare | Reference
        if form == "bare":
            module, data = made(name, batch, device)
            loop = Bare(module, data, device, SIZES[name].precision)
        else:
            loop = Reference(name, batch, device)
        flops = flops_of(lambda: loop.steps(0, 1))
        synchronize(device)
        for repeat in range(REPEATS if form == "bare" else 1 if name == "8" and batch > 64 else 2):
            began = time.perf_counter()
            loop.steps(1 + repeat * steps, 1 + (repeat + 1) * steps)
            synchronize(device)
            times.append((time.perf_counter() - began) / steps)
        memory = peak_gigabytes(device)
    return {
        "seconds": min(times),
        "flops": flops,
        "gigabytes": memory,
        "ceiling": matmul_ceiling(device),
    }


def main() -> None:
    """Measure every size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["quickstart", "4x2", "8"])
    parser.add_argument(
        "--forms", nargs="+", choices=["reference", "bare", "ours"], default=["reference", "bare", "ours"]
    )
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--steps", type=int, default=None, help="timed steps; by default 100 if they are small, else 2")
    parser.add_argument("--reference_steps", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    smoke_option(parser)
    options = parser.parse_args()
    if options.smoke:
        options.sizes, options.batch, options.steps, options.reference_steps = ["tiny"], 16, 2, 1
    small = options.device.startswith("cuda")

    def steps_of(name: str, form: str) -> int:
        default = 100 if small or name in ("tiny", "quickstart") else 2
        if form == "reference":
            return options.reference_steps or min(default, 20 if small else 3 if name == "quickstart" else 1)
        return options.steps or default

    if options.only:
        name, form = options.only
        result = measure(form, name, options.batch, steps_of(name, form), options.device)
        print("RESULT " + json.dumps(result))
        return
    if "reference" in options.forms and find_spec("transformers") is None:
        print("the reference form is left out: pip install 'grok-circuits[benchmark]'")
        options.forms = [form for form in options.forms if form != "reference"]
    report = Report("step", options, options.device)
    passed = ["--batch", str(options.batch), "--device", options.device]
    for key in ("steps", "reference_steps"):
        passed += [f"--{key}", str(getattr(options, key))] if getattr(options, key) else []
    for name in options.sizes:
        found: dict[str, dict[str, Any]] = {}
        for form in options.forms:
            if form == "reference" and SIZES[name].blocks is None:
                continue
            found[form] = in_a_process(["--only", name, form, *passed])
            one = found[form]
            against = {f"x {other}": found[other]["seconds"] / one["seconds"] if other in found else None
                       for other in ("reference", "bare")}  # fmt: skip
            report.row(
                {
                    "size": name,
                    "batch": options.batch,
                    "form": form,
                    "ms / step": 1000 * one["seconds"],
                    **against,
                    "model GFLOP / step": one["flops"] / 1e9,
                    "model GFLOP / s": one["flops"] / one["seconds"] / 1e9,
                    "share of matmul ceiling": one["flops"] / one["seconds"] / one["ceiling"],
                    "peak GB": one["gigabytes"],
                }
            )
    report.end()


if __name__ == "__main__":
    main()
