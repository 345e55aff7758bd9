"""What is measured side by side: a frozen model, the ways of adapting it, and one step of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from rosa import DlsConfig, DynamicLayerSelection, RosaConfig
from rosa.dls.choice import choose, num_selected

ATTENTION = ["q_proj", "k_proj", "v_proj"]
LINEARS = [*ATTENTION, "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = {"r": 16, "lora_alpha": 32, "target_modules": LINEARS}
MANY_STEPS = 1_000_000  # a run that is never near its end
DRAWS = 5  # a seed of which seven draws reach as far down as draws do on average
Choose = Callable[[int], list[int]]  # of so many layers these


def llama(width: int, layers: int, **changes: Any) -> LlamaConfig:
    """Grouped queries and heads of 64."""
    heads = width // 64
    sizes = {
        "hidden_size": width,
        "intermediate_size": width * 43 // 16,  # 1,376 of 512, as Llama's own share
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 4),
        "head_dim": 64,
        "vocab_size": 4096,
    }
    return LlamaConfig(**{**sizes, **changes})


@dataclass(frozen=True)
class Size:
    """A `llama` of random weights."""

    name: str
    width: int
    layers: int
    vocabulary: int = 4096

    def config(self) -> LlamaConfig:
        return llama(
            self.width, self.layers, vocab_size=self.vocabulary, max_position_embeddings=8192
        )

    def build(self, dtype: torch.dtype, device: str) -> LlamaForCausalLM:
        """The frozen model, the same for every contender."""
        torch.manual_seed(0)
        return LlamaForCausalLM(self.config()).requires_grad_(False).to(device, dtype)


SIZES = {
    size.name: size
    for size in (Size("512x8", 512, 8), Size("1024x6", 1024, 6), Size("2048x16", 2048, 16, 32768))
}


@dataclass(frozen=True)
class Contender:
    """A way of adapting a model.

    Attributes:
        title: what tables call it.
        config: PEFT's; None leaves the model frozen, "layers" trains every weight of its layers.
        layers: those that train, a share of all of them chosen by `spread` or `upper`; None is all
            without layer selection.
        each_round: `layers` of each round, where every round has its own choice.
        prepared: for inference, by `prepare_for_inference()`.
    """

    title: str
    config: Callable[[], Any] | str | None = None
    layers: Choose | None = None
    each_round: Callable[[int], Choose] | None = None
    prepared: bool = False


def spread(share: float) -> Choose:
    """A choice of layers from the first on, evenly: the gradient has to go all the way down."""
    return lambda count: sorted({int(i / share) for i in range(max(1, round(share * count)))})


def upper(share: float) -> Choose:
    """The topmost layers: nothing below them is computed backwards."""
    return lambda count: list(range(count - max(1, round(share * count)), count))


def drawn(share: float, round_: int) -> Choose:
    """What DLS draws where it explores: the same for all who ask, another in each round."""
    step = DlsConfig().interval * (round_ + 1)
    return lambda count: (
        choose([0.0] * count, range(count), num_selected(share, count), 0.0, DRAWS, step).selected
    )


def rosa(**changes: Any) -> Callable[[], RosaConfig]:
    return lambda: RosaConfig(**changes)


def lora(**changes: Any) -> Callable[[], peft.LoraConfig]:
    return lambda: peft.LoraConfig(**{**LORA, **changes})


def adalora() -> peft.AdaLoraConfig:
    return peft.AdaLoraConfig(
        init_r=16, target_r=8, total_step=MANY_STEPS, tinit=1, tfinal=1, target_modules=LINEARS
    )


CONTENDERS: Mapping[str, Contender] = {
    "floor": Contender("frozen model"),
    "ln_tuning": Contender("LN tuning", lambda: peft.LNTuningConfig(
        target_modules=["input_layernorm", "post_attention_layernorm"]
    )),
    "lora": Contender("LoRA, all linears, r=16", lora()),
    "lora_qkv": Contender("LoRA, q, k, v, r=16", lora(target_modules=ATTENTION)),
    "dora": Contender("DoRA, all linears, r=16", lora(use_dora=True)),
    "adalora": Contender("AdaLoRA, all linears, r=16", adalora),
    "vera": Contender("VeRA, all linears, r=256", lambda: peft.VeraConfig(
        r=256, target_modules=LINEARS
    )),
    "c3a": Contender("C3A, all linears, blocks of 16", lambda: peft.C3AConfig(
        block_size=16, target_modules=LINEARS
    )),
    "miss": Contender("MiSS, all linears, r=16", lambda: peft.MissConfig(
        r=16, target_modules=LINEARS
    )),
    "rosa": Contender("RoSA", rosa()),
    "rosa_pre": Contender("RoSA, `pre`", rosa(rope_stage="pre")),
    "rosa_dls": Contender("RoSA + DLS, k 0.5", rosa(), spread(0.5)),
    "rosa_dls_drawn": Contender(
        "RoSA + DLS, k 0.5, as drawn", rosa(), drawn(0.5, 0), partial(drawn, 0.5)
    ),
    "rosa_dls_upper": Contender("RoSA + DLS, upper half", rosa(), upper(0.5)),
    "roae": Contender("RoAE without norms", rosa(train_norms=False)),
}  # fmt: skip
DECODING: Mapping[str, Contender] = {
    "floor": Contender("bare model"),
    "lora": CONTENDERS["lora"],
    "rosa": CONTENDERS["rosa"],
    "rosa_prepared": Contender("RoSA, prepared", rosa(), prepared=True),
    "rosa_pre": CONTENDERS["rosa_pre"],
    "rosa_pre_prepared": Contender("RoSA, `pre`, prepared", rosa(rope_stage="pre"), prepared=True),
}


class Training:
    """A contender with its optimizer: `step()` is a training step, `forward()` its first half."""

    def __init__(self, contender: Contender, model: LlamaForCausalLM, batch: Tensor) -> None:
        self.batch = batch
        self.model: Any = model
        if contender.config == "layers":
            model.model.layers.requires_grad_(True)
        elif callable(contender.config):
            self.model = peft.get_peft_model(model, contender.config())
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.trainable = sum(p.numel() for p in trained)
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True) if trained else None
        if self.optimizer is None:  # the least that any adapter of the first layer needs
            model.get_input_embeddings().register_forward_hook(_ask_gradient)
        self.dls: DynamicLayerSelection | None = None
        self._each_round, self._count = contender.each_round, model.config.num_hidden_layers
        if contender.layers is not None:
            self._select(contender.layers)
        self.model.train()
        self.steps = 0

    def _select(self, choose: Choose) -> None:
        if self.dls is not None:
            self.dls.detach()
        self.dls = DynamicLayerSelection(
            self.model, self.optimizer, DlsConfig(layers=choose(self._count)), MANY_STEPS
        )

    @property
    def changes(self) -> bool:
        """Whether rounds differ."""
        return self._each_round is not None

    def begin(self, round_: int) -> None:
        """Chooses the layers of a round, where each has a choice of its own."""
        if self._each_round is not None:
            self._select(self._each_round(round_))

    def resident(self) -> list[Tensor]:
        """What is in memory anyway."""
        return [self.batch, *self.model.parameters(), *self.model.buffers()]

    def forward(self) -> Tensor:
        """The loss of the batch."""
        return self.model(input_ids=self.batch, labels=self.batch, use_cache=False).loss

    def step(self) -> None:
        """Forward, backward, and the optimizer's step where there is one."""
        self.forward().backward()
        self.steps += 1
        if self.optimizer is not None:
            self.optimizer.step()
            allocate = getattr(self.model.base_model, "update_and_allocate", None)
            if allocate is not None:
                allocate(self.steps)
            self.optimizer.zero_grad()


class Inference:
    """A model, adapted or not, that reads a prompt and then decodes token by token."""

    def __init__(
        self, contender: Contender, model: LlamaForCausalLM, batch: int, prompt: int
    ) -> None:
        adapted = peft.get_peft_model(model, contender.config()) if contender.config else model
        self.model: nn.Module = adapted.eval()
        if contender.prepared:
            adapted.base_model.prepare_for_inference()
        device, vocabulary = model.device, model.config.vocab_size
        self.prompt = torch.randint(0, vocabulary, (batch, prompt), device=device)
        self.token = self.prompt[:, :1]
        self.cache = self.prefill()

    @torch.inference_mode()
    def prefill(self) -> Any:
        """The prompt's cache."""
        return self.model(input_ids=self.prompt, use_cache=True, logits_to_keep=1).past_key_values

    @torch.inference_mode()
    def decode(self, tokens: int = 8) -> None:
        """One token after another on the prompt's cache, which is left as it was."""
        for _ in range(tokens):
            self.model(input_ids=self.token, past_key_values=self.cache, use_cache=True)
        self.cache.crop(-tokens)


def _ask_gradient(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return output.requires_grad_()
