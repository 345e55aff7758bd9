"""Pretrain rosa-tiny on the toy world and write the folder that the package carries.

    python -m pretraining.pretrain --out runs/rosa-tiny

One core reads about 6,500 tokens a second, so that is half an hour. The run is seeded; it saves its
state at every report and resumes from there when rerun.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.utils import logging

from pretraining import skills, tokenizer
from pretraining.documents import Document
from pretraining.mixture import STAGES, Stage, draw, sample_texts

ANSWER_WEIGHT, CONTEXT_WEIGHT = 1.0, 0.15
MASTERED = 0.85  # accuracy at what a stage is for that ends it
LONGEST = 2_500_000  # tokens in a stage that never gets there


def new_model(words: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """Six layers of width 128, with grouped-query attention and tied embeddings."""
    config = Qwen2Config(
        vocab_size=len(words), hidden_size=128, intermediate_size=384, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
        max_position_embeddings=1024, initializer_range=0.05,
        bos_token_id=None, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    table = model.get_input_embeddings().weight.data
    for piece, index in words.get_vocab().items():
        if piece.startswith("Ġ") and piece[1:] in words.get_vocab():
            # Begin with what is true: a word without its leading space is the same word.
            table[words.get_vocab()[piece[1:]]] = table[index]
    return model


def encode(words: Qwen2Tokenizer, document: Document) -> tuple[list[int], list[float]]:
    """Token ids and the weight of each in the loss; the end of the document counts too."""
    ids, marks = skills.encode(words, document)
    end = words.convert_tokens_to_ids(".")  # says nothing about the answer before it
    weights = [
        ANSWER_WEIGHT if is_answer and token != end else CONTEXT_WEIGHT
        for token, is_answer in zip(ids, marks, strict=True)
    ]
    return [*ids, words.eos_token_id], [*weights, ANSWER_WEIGHT]


def batches(words: Qwen2Tokenizer, rng: random.Random, run: Run,
            size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:  # fmt: skip
    """Batches of about `size` tokens, one document a row, of like lengths to waste no padding."""
    while True:
        pool = [encode(words, draw(rng, run.draw_stage(rng))) for _ in range(256)]
        pool.sort(key=lambda row: len(row[0]))
        groups: list[list[tuple[list[int], list[float]]]] = [[]]
        for row in pool:
            if (len(groups[-1]) + 1) * len(row[0]) > size:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        for group in groups:
            width = max(len(ids) for ids, _ in group)
            ids = [row + [words.pad_token_id] * (width - len(row)) for row, _ in group]
            weights = [row + [0.0] * (width - len(row)) for _, row in group]
            yield torch.tensor(ids), torch.tensor(weights)


def optimizers(model: Qwen2ForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, norms and biases."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def schedule(progress: float) -> float:
    """Warm up for a hundredth, stay, and fall to nothing over the last third."""
    return min(1.0, progress / 0.01, max(0.0, (1 - progress) / 0.33))


def loss_of(model: Qwen2ForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids, use_cache=False).logits
    losses = cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    kept = weights[:, 1:].flatten()
    return (losses * kept).sum() / kept.sum()


class Run:
    """Model, optimizers and counters; everything that a checkpoint holds."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.checkpoint = arguments.out / "checkpoint.pt"
        if self.checkpoint.exists():
            self.words = Qwen2Tokenizer.from_pretrained(arguments.out)
        else:
            self.words = tokenizer.build(sample_texts())
        torch.manual_seed(arguments.seed)
        self.model = new_model(self.words)
        self.optimizers = optimizers(self.model, arguments.rate)
        self.seen = self.steps = 0
        self.stage = 0
        self.stage_from = 0  # tokens seen when the stage began
        self.seconds = 0.0
        if self.checkpoint.exists():
            self.load()

    def load(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.seen, self.steps, self.seconds = state["seen"], state["steps"], state["seconds"]
        self.stage, self.stage_from = state["stage"], state["stage_from"]

    def save(self) -> None:
        self.model.save_pretrained(self.arguments.out)
        self.words.save_pretrained(self.arguments.out)
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "seen": self.seen,
            "steps": self.steps,
            "seconds": self.seconds,
            "stage": self.stage,
            "stage_from": self.stage_from,
        }
        partial = self.checkpoint.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def step(self, ids: torch.Tensor, weights: torch.Tensor) -> float:
        share = schedule(self.seen / self.arguments.tokens)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.arguments.rate * share
        loss = loss_of(self.model, ids, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.seen += ids.numel()
        self.steps += 1
        return loss.item()

    def report(self, loss: float) -> None:
        names = skills.EARLY if self.stage < len(STAGES) - 1 else None
        table = skills.measure(self.model, self.words, count=64, names=names)
        until = STAGES[self.stage].until
        long = self.seen - self.stage_from > LONGEST
        if until and (long or min(table[name] for name in until) > MASTERED):
            self.stage, self.stage_from = self.stage + 1, self.seen
        found = " ".join(f"{name}={value:.2f}" for name, value in table.items())
        rate = self.seen / max(self.seconds, 1e-9)
        print(f"{self.seen / 1e6:6.2f} M  {self.seconds / 60:5.1f} min  {rate:6.0f}/s  "
              f"loss {loss:.3f}  stage {self.stage}  {found}", flush=True)  # fmt: skip

    def draw_stage(self, rng: random.Random) -> Stage:
        """The present stage; it takes over from the last one within half a million tokens."""
        fresh = rng.random() * 5e5 < self.seen - self.stage_from
        return STAGES[self.stage if fresh else max(0, self.stage - 1)]

    def train(self) -> None:
        # A resumed run draws other documents than those it has seen: the seed moves on with it.
        rng = random.Random(f"{self.arguments.seed}-{self.seen}")
        mean, next_report = math.nan, self.seen
        if self.seen >= self.arguments.tokens:
            return
        for ids, weights in batches(self.words, rng, self, self.arguments.batch):
            began = time.perf_counter()
            loss = self.step(ids, weights)
            self.seconds += time.perf_counter() - began
            mean = loss if math.isnan(mean) else 0.98 * mean + 0.02 * loss
            done = self.seen >= self.arguments.tokens
            if self.seen >= next_report or done:
                next_report = self.seen + self.arguments.every
                self.report(mean)
                self.save()
            if done:
                return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=12_000_000)
    parser.add_argument("--batch", type=int, default=2048, help="tokens in a step")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=250_000, help="tokens between reports")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.disable_progress_bar()
    arguments.out.mkdir(parents=True, exist_ok=True)
    run = Run(arguments)
    run.train()
    record = {"seed": arguments.seed, "tokens": run.seen, "steps": run.steps,
              "minutes": round(run.seconds / 60, 1), "threads": arguments.threads,
              **skills.provenance()}  # fmt: skip
    (arguments.out / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
