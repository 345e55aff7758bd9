"""Where PEFT would be silent or lose something: checks of names, other methods, disabled adapters.

A model may hold adapters of other methods too, such as LoRA on the feed-forward. All are attached
to one base model, RoSA (or DyPAM) last, under names of their own; PEFT then keeps them in one table
of configurations, and trains, saves and disables them together (docs/guides/quickstart.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from operator import attrgetter
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from rosa.errors import RosaError, did_you_mean

HALF = (torch.float16, torch.bfloat16)
PEFT_PREFIX = "base_model.model."
# Before 0.19 PEFT casts only the first adapter of a half-precision model to float32.
ADDED_ADAPTERS_ARE_CAST = "autocast_adapter_dtype" in signature(PeftModel.add_adapter).parameters
# PEFT itself adds these for the heads of classifiers and of question answering; one of them fits.
_HEADS = ("classifier", "score", "qa_outputs")


def check_base_model(model: nn.Module, adapter_name: str, own: type[PeftConfig]) -> None:
    """Raises RosaError where PEFT would silently lose an adapter of another method."""
    if isinstance(model, PeftModel):
        raise RosaError(
            "get_peft_model was given a PeftModel: adapters of nested PeftModels do not load "
            "again; give it the base model, model.get_base_model(), which has the other adapter in "
            "it already"
        )
    config = getattr(model, "peft_config", {}).get(adapter_name)
    if config is not None and not isinstance(config, own):
        raise RosaError(
            f"the model already has an adapter '{adapter_name}', of {config.peft_type.value}: give "
            "one of the two another name, get_peft_model(model, config, adapter_name=...)"
        )
    check_not_offloaded(model)


def check_not_offloaded(model: nn.Module) -> None:
    """Raises RosaError for modules whose weights Accelerate brings in for each forward pass."""

    def offloads(hook: Any) -> bool:
        return getattr(hook, "offload", False) or any(map(offloads, getattr(hook, "hooks", ())))

    hooked = {n: m for n, m in model.named_modules() if offloads(getattr(m, "_hf_hook", None))}
    offloaded = [
        n for n, m in hooked.items() if next(m.parameters(recurse=False), None) is not None
    ]
    if offloaded:
        raise RosaError(
            f"{len(offloaded)} modules of the model are offloaded to the CPU or to disk, the first "
            f"is {offloaded[0]}: adapters of attention modules and copies of norms need weights in "
            "place; load the model without offloading (device_map={'': device}), or quantized"
        )


def check_single_active(method: str, names: Sequence[str]) -> None:
    """Raises RosaError where several adapters are to be active together."""
    if len(names) > 1:
        raise RosaError(
            f"{method} runs one adapter at a time, but {', '.join(names)} were activated together; "
            "activate one of them"
        )


def check_modules_to_save(
    model: nn.Module, names: Iterable[str] | None, adapted: Sequence[str]
) -> None:
    """Raises RosaError for a name in `modules_to_save` without a module, or inside an attention.

    Args:
        names: matched as PEFT does, by the end of a module's name.
        adapted: names of the attention modules that are wrapped; inside them a copy would take the
            place of the module whose output is modulated.
    """
    modules = [name for name, _ in model.named_modules() if name]
    for name in names or ():
        matched = [module for module in modules if module.endswith(name)]
        if not matched and name not in _HEADS:
            known = {module.rpartition(".")[2] for module in modules}
            raise RosaError(
                f"modules_to_save names '{name}', but no module's name ends so"
                f"{did_you_mean(name, known)}"
            )
        for module in matched:
            if any(module.startswith(f"{attention}.") for attention in adapted):
                raise RosaError(
                    f"modules_to_save names '{name}', which matches {module}, inside an attention "
                    "module that is adapted; give longer names that match only modules outside"
                )


def check_not_trained_elsewhere(
    model: nn.Module, names: Iterable[str], own: Collection[str]
) -> None:
    """Raises RosaError for a module to be trained in full that another method trains.

    Args:
        names: of the modules.
        own: names of the method's own adapters.
    """
    for name in names:
        module = model.get_submodule(name)
        adapters: set[str] = set()
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            for attribute in module.adapter_layer_names:
                adapters |= attrgetter(attribute)(module).keys() - set(own)
        if adapters:
            raise RosaError(
                f"{name} is already trained by the adapter '{min(adapters)}' of another method; "
                "leave it to one of the two (RoSA trains norms unless train_norms=False or "
                "exclude_modules names them)"
            )


def drop_unexpected_keys(
    model: nn.Module, adapter_name: str, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Loaded tensors without those that would replace weights of the base model; with a warning.

    Of the base model only the embeddings may come with an adapter (PEFT's `save_embedding_layers`).

    Args:
        state: by the model's own names, with PEFT's prefix or without it.
    """
    names = set(model.state_dict())
    embeddings = embedding_names(model)
    unexpected, kept = [], dict(state)
    for key in state:
        forms = (key, key.removeprefix(PEFT_PREFIX), PEFT_PREFIX + key)
        name = next((form for form in forms if form in names), None)
        if (name and f".{adapter_name}." in name) or any(f.startswith(embeddings) for f in forms):
            continue
        unexpected.append(key)
        if name is not None:
            del kept[key]
    if unexpected:
        more = f" and {len(unexpected) - 3} more" if len(unexpected) > 3 else ""
        warnings.warn(
            f"unexpected keys in the file of the adapter '{adapter_name}' are not loaded: "
            f"{', '.join(unexpected[:3])}{more}; check that adapter_config.json is the one it was "
            "saved with, and the base model the one it was trained on",
            stacklevel=4,
        )
    return kept


def embedding_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the input and output embeddings, each with a dot at its end."""
    getters = (getattr(model, f"get_{kind}_embeddings", None) for kind in ("input", "output"))
    embeddings = [getter() for getter in getters if getter is not None]
    return tuple(
        f"{name}."
        for name, module in model.named_modules(remove_duplicate=False)
        if any(module is embedding for embedding in embeddings)
    )


def adapter_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of every adapter in the model, of any method, without those of its base."""
    for module in model.modules():
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            for name in module.adapter_layer_names:
                yield from attrgetter(name)(module).parameters()


@contextmanager
def others_unchanged(model: nn.Module, own: Collection[str]) -> Iterator[None]:
    """Keeps what other methods train in full as it is while one of `own` is activated.

    PEFT deactivates there every adapter but the one that it activates.
    """
    kept = [
        (
            module,
            list(names),
            module._disable_adapters,
            [(p, p.requires_grad) for p in module.parameters()],
        )
        for module in model.modules()
        if isinstance(module, AuxiliaryTrainingWrapper)
        and (names := [name for name in module.active_adapters if name not in own])
    ]
    yield
    for module, names, disabled, parameters in kept:
        module.set_adapter(names)
        module._disable_adapters = disabled  # before 0.19 PEFT disables it too
        for parameter, requires_grad in parameters:
            parameter.requires_grad_(requires_grad)


class KeepRequiresGradMixin:
    """Restores `requires_grad` when disabled adapters are enabled; a base before PEFT's class.

    PEFT turns `requires_grad` on for the whole active adapter then: also for one that is loaded for
    inference, and for the layers that layer selection has frozen.
    """

    adapter_layer_names: tuple[str, ...]
    disable_adapters: bool
    _trainable: list[nn.Parameter] | None = None  # to restore, while adapters are disabled
    _enabling = False  # while PEFT activates again the adapters that are active

    def enable_adapters(self, enabled: bool) -> None:
        """PEFT's, with the `requires_grad` of before."""
        if enabled != self.disable_adapters:
            return  # they are as asked for
        trainable = self._trainable
        own = [(p, p.requires_grad) for p in self.adapter_parameters()]
        self._enabling = True
        try:
            super().enable_adapters(enabled)  # type: ignore[misc]
        finally:
            self._enabling = False
        if not enabled:
            self._trainable = [parameter for parameter, requires_grad in own if requires_grad]
            return
        self._trainable = None
        if trainable is not None:
            kept = set(map(id, trainable))
            for parameter, _ in own:
                parameter.requires_grad_(id(parameter) in kept)

    def set_adapter(self, *args: Any, **kwargs: Any) -> None:
        """PEFT's; what it makes trainable counts from here on."""
        self._trainable = None
        super().set_adapter(*args, **kwargs)  # type: ignore[misc]

    def adapter_parameters(self, adapter_name: str | None = None) -> Iterator[nn.Parameter]:
        """The parameters of one adapter, or of all."""
        for attribute in self.adapter_layer_names:
            for name, module in getattr(self, attribute).items():
                if adapter_name in (None, name):
                    yield from module.parameters()
