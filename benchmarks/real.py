"""Speed on real pretrained models: training, evaluation and startup, next to plain TRL and loops.

    make smollm2
    python -m benchmarks.real --data ROWS.json   # writes docs/results/real_cpu.json

Every measurement is a process of its own; rounds interleave the contenders, so that a slow minute
of the machine meets all of them. ROWS.json is a training set in LLM-Adapters' format.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rosa.common.environment import describe_environment

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "real_cpu.json"
BATCH, WARMUP, ROWS, QUESTIONS = 16, 2, 2000, 48
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
TRAINING = {
    "trl-lora": "plain TRL SFTTrainer, LoRA r=16 on all linears",
    "rosa-lora": "`rosa train`, LoRA r=16 on all linears",
    "rosa": "`rosa train`, RoSA without layer selection",
    "rosa-dls": "`rosa train`, RoSA with layer selection (interval 2)",
    "ln_tuning": "`rosa train`, LN tuning",
    "loop-rosa": "own loop, RoSA",
    "loop-floor": "own loop, frozen model, gradient to the first layer's input",
}
COMMANDS = {
    "help": ["--help"],
    "train --help": ["train", "--help"],
    "params": ["params", "MODEL"],
    "mistyped key": ["train", "RECIPE", "--learning_rat", "1"],
    "missing file": ["train", "nope.yaml"],
    "missing model": ["evaluate", "runs/nope", "--tasks", "boolq"],
}


def main() -> None:
    """Runs the parts that were asked for and keeps the others' figures."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--data", default="tiny-sums")
    parser.add_argument("--questions", help="folder of benchmark test sets, for the evaluation")
    parser.add_argument("--adapter", help="adapter or run folder that the evaluation scores")
    parser.add_argument("--parts", nargs="*", default=["training", "evaluation", "startup"])
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure = TRAINERS.get(options.one) or EVALUATORS[options.one]
        print(json.dumps(measure(options)))
        return
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    name = Path(options.model).name
    for part in options.parts:
        what = {"training": options.precision, "padding": Path(options.data).stem}.get(part)
        key = f"{part} {what}" if what else part
        figures = PARTS[part](options)
        found.setdefault(name, {})[key] = {"environment": describe_environment(), **figures}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def training(options: argparse.Namespace) -> dict[str, Any]:
    """Real tokens per second and the seconds to the first step, of every contender."""
    rounds = [{c: _process(c, options) for c in TRAINING} for _ in range(options.rounds)]
    return {"batch": BATCH, "contenders": {c: _summary([r[c] for r in rounds]) for c in TRAINING}}


def evaluation(options: argparse.Namespace) -> dict[str, Any]:
    """Questions per second of `rosa evaluate`, a plain `generate` loop and lm-eval."""
    rounds = [{c: _process(c, options) for c in EVALUATORS} for _ in range(options.rounds)]
    return {c: _summary([r[c] for r in rounds]) for c in EVALUATORS}


def startup(options: argparse.Namespace) -> dict[str, Any]:
    """Wall seconds of commands that compute nothing."""
    places = {"MODEL": options.model, "RECIPE": "recipes/tiny.yaml"}
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(options.rounds + 1):
        for name, words in COMMANDS.items():
            began = time.perf_counter()
            command = [sys.executable, "-m", "rosa", *(places.get(word, word) for word in words)]
            subprocess.run(command, capture_output=True)
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def padding(options: argparse.Namespace) -> dict[str, Any]:
    """Share of padding in what a step computes, in percent: rows grouped by length, or shuffled."""
    from torch import Generator, randperm

    from rosa.data.length_grouping import LengthGroupedSampler
    from rosa.data.sources import load_training_rows
    from rosa.data.tokenization import tokenize_rows
    from rosa.models.loading import load_tokenizer

    records = [(options.data, n, row) for n, row in enumerate(load_training_rows(options.data), 1)]
    rows = tokenize_rows(records, load_tokenizer(options.model), max_length=512).rows
    lengths = [len(row["input_ids"]) for row in rows]
    orders = {
        "grouped": list(LengthGroupedSampler(lengths, BATCH, seed=1)),
        "shuffled": randperm(len(lengths), generator=Generator().manual_seed(1)).tolist(),
    }

    def share(order: list[int], batch: int) -> float:
        cut = [[lengths[i] for i in order[at : at + batch]] for at in range(0, len(order), batch)]
        return 100 * (1 - sum(lengths) / sum(max(b) * len(b) for b in cut))

    shares = {f"{n}, batch {b}": share(o, b) for n, o in orders.items() for b in (2, 4, BATCH)}
    return {"data": Path(options.data).name, "rows": len(rows), "percent": shares}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "training": training,
    "evaluation": evaluation,
    "startup": startup,
    "padding": padding,
}


def _process(contender: str, options: argparse.Namespace) -> dict[str, float]:
    given = {k: v for k, v in vars(options).items() if v is not None and k not in ("one", "parts")}
    flags = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "benchmarks.real", "--one", contender, *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{contender}: {done.stderr[-2000:]}")
    print(contender, done.stdout.splitlines()[-1], file=sys.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _summary(rounds: list[dict[str, float]]) -> dict[str, Any]:
    return {
        key: {"median": statistics.median(r[key] for r in rounds), "all": [r[key] for r in rounds]}
        for key in rounds[0]
    }


def _figures(marks: list[tuple[float, float]], began: float) -> dict[str, float]:
    """From (time, real tokens so far) after each step."""
    (first, before), (last, after) = marks[WARMUP - 1], marks[-1]
    return {
        "tokens_per_second": (after - before) / (last - first),
        "step_seconds": (last - first) / (len(marks) - WARMUP),
        "first_step_seconds": marks[0][0] - began,
    }


def _rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    from rosa.data.sources import load_training_rows
    from rosa.data.splits import sample

    return sample(load_training_rows(options.data), ROWS, seed=1)


def rosa_train(method: str, **keys: Any) -> Callable[[argparse.Namespace], dict[str, float]]:
    """`rosa train` as a user runs it; times are those of its own callbacks."""

    def measure(options: argparse.Namespace) -> dict[str, float]:
        began = time.perf_counter()
        from transformers import TrainerCallback

        from rosa.train import run, trainer
        from rosa.train.recipe import Recipe

        marks: list[tuple[float, float]] = []

        class Clock(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
                marks.append((time.perf_counter(), built[0]._meter.totals.tokens))

        built: list[Any] = []
        build = trainer.build_trainer

        def with_clock(*args: Any) -> Any:
            built.append(build(*args))
            built[0].add_callback(Clock())
            return built[0]

        run.build_trainer = with_clock
        with tempfile.TemporaryDirectory() as folder:
            recipe = Recipe(
                model=options.model,
                data=options.data,
                output_dir=f"{folder}/run",
                method=method,
                limit=ROWS,
                validation=0,
                max_steps=WARMUP + options.steps,
                save_steps=1000,
                batch_size=BATCH,
                gradient_accumulation=1,
                precision=options.precision,
                seed=1,  # the rows and their order, as in the own loop
                report_to=[],
                **keys,
            )
            run.train(recipe, log=lambda line: None)
        return _figures(marks, began)

    return measure


def plain_trl(options: argparse.Namespace) -> dict[str, float]:
    """What TRL's documentation shows, on the same rows as prompt and completion."""
    began = time.perf_counter()
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from rosa.data.prompts import instruction_prompt

    rows = [
        {
            "prompt": instruction_prompt(row["instruction"], row.get("input") or ""),
            "completion": row["output"],
        }
        for row in _rows(options)
    ]
    marks: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            marks.append((time.perf_counter(), trainer._total_train_tokens))

    half = options.precision == "bf16"
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=options.model,
            args=SFTConfig(
                folder,
                per_device_train_batch_size=BATCH,
                max_steps=WARMUP + max(1, options.steps // 2),  # rows of all lengths in each
                bf16=half,
                use_cpu=not torch.cuda.is_available(),
                model_init_kwargs={"dtype": torch.bfloat16 if half else torch.float32},
                gradient_checkpointing=False,
                save_strategy="no",
                report_to="none",
            ),
            train_dataset=Dataset.from_list(rows),
            peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM"),
            callbacks=[Clock()],
        )
        trainer.train()
    return _figures(marks, began)


def own_loop(adapted: bool) -> Callable[[argparse.Namespace], dict[str, float]]:
    """As fast as this model goes: rows of like length, logits of supervised positions only."""

    def measure(options: argparse.Namespace) -> dict[str, float]:
        began = time.perf_counter()
        import torch
        from peft import get_peft_model
        from torch.nn.functional import cross_entropy
        from torch.nn.utils.rnn import pad_sequence

        from rosa import RosaConfig
        from rosa.data.length_grouping import LengthGroupedSampler
        from rosa.data.tokenization import tokenize_rows
        from rosa.models.loading import load_base_model, load_tokenizer

        tokenizer = load_tokenizer(options.model)
        records = [(options.data, n, row) for n, row in enumerate(_rows(options))]
        rows = tokenize_rows(records, tokenizer, max_length=512).rows
        base: Any = load_base_model(options.model, dtype=options.precision, device="cpu")
        model = get_peft_model(base, RosaConfig()) if adapted else base.requires_grad_(False)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True) if adapted else None
        order = list(LengthGroupedSampler([len(r["input_ids"]) for r in rows], BATCH, 1))
        marks, tokens = [], 0
        for step in range(WARMUP + options.steps):
            chosen = [rows[i] for i in order[step * BATCH : (step + 1) * BATCH]]
            ids, labels = (
                pad_sequence([torch.tensor(r[key]) for r in chosen], True, padding)
                for key, padding in (("input_ids", 0), ("labels", -100))
            )
            lengths = torch.tensor([len(r["input_ids"]) for r in chosen])
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
            embedded = base.get_input_embeddings()(ids).detach().requires_grad_(not adapted)
            wanted = labels[:, 1:] != -100
            hidden = base.model(inputs_embeds=embedded, attention_mask=mask, use_cache=False)[0]
            logits = base.lm_head(hidden[:, :-1][wanted]).float()
            cross_entropy(logits, labels[:, 1:][wanted]).backward()
            if optimizer:
                optimizer.step()
                optimizer.zero_grad()
            tokens += int(mask.sum())
            marks.append((time.perf_counter(), float(tokens)))
        return _figures(marks, began)

    return measure


def scored(
    answer: Callable[[Any, Any, list[Any]], int],
) -> Callable[[argparse.Namespace], dict[str, float]]:
    """Questions per second of `answer(model, tokenizer, requests)`, which returns their number."""

    def measure(options: argparse.Namespace) -> dict[str, float]:
        from rosa.evaluate.options import EvaluationOptions
        from rosa.evaluate.requests import build_requests
        from rosa.models.loading import load

        # An adapter of this benchmark's own training shows answers as they are after training.
        loaded = load(options.adapter or options.model, dtype=options.precision, device="cpu")
        asked = EvaluationOptions(data=options.questions, limit=QUESTIONS)
        requests = build_requests(["openbookqa", "boolq"], asked)
        began = time.perf_counter()
        questions = answer(loaded.model.eval(), loaded.tokenizer, requests)
        return {"questions_per_second": questions / (time.perf_counter() - began)}

    return measure


def rosa_evaluate(model: Any, tokenizer: Any, requests: list[Any]) -> int:
    """What `rosa evaluate` does after loading, at its defaults."""
    from rosa.evaluate.options import EvaluationOptions
    from rosa.evaluate.run import evaluate

    evaluate(model, tokenizer, requests, EvaluationOptions(batch_size=BATCH))
    return sum(len(r.examples) for r in requests)


def generate_loop(model: Any, tokenizer: Any, requests: list[Any]) -> int:
    """Batches in the order of the file, `generate` to the end or 32 tokens."""
    import torch

    tokenizer.padding_side = "left"
    prompts = [e.prompt for r in requests for e in r.rendered(tokenizer).examples]
    for at in range(0, len(prompts), BATCH):
        batch = tokenizer(prompts[at : at + BATCH], return_tensors="pt", padding=True)
        with torch.inference_mode():
            output = model.generate(**batch, max_new_tokens=32, do_sample=False)
        tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :])
    return len(prompts)


def lm_eval_generate(model: Any, tokenizer: Any, requests: list[Any]) -> int:
    """lm-evaluation-harness' own generation on the same prompts."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    prompts = [e.prompt for r in requests for e in r.rendered(tokenizer).examples]
    settings = {"until": ["\n\n"], "max_gen_toks": 32, "do_sample": False}
    asked = [
        Instance(request_type="generate_until", doc={}, arguments=(prompt, settings), idx=i)
        for i, prompt in enumerate(prompts)
    ]
    HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH).generate_until(asked)
    return len(prompts)


TRAINERS: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
    "trl-lora": plain_trl,
    "rosa-lora": rosa_train("lora", adapter=LORA),
    "rosa": rosa_train("rosa", dls=None),
    "rosa-dls": rosa_train("rosa", dls={"interval": 2}),
    "ln_tuning": rosa_train("ln_tuning"),
    "loop-rosa": own_loop(True),
    "loop-floor": own_loop(False),
}
EVALUATORS: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
    "rosa-evaluate": scored(rosa_evaluate),
    "generate-loop": scored(generate_loop),
    "lm-eval": scored(lm_eval_generate),
}


if __name__ == "__main__":
    main()
