"""What PEFT would pass over in silence, or only notice when the model is half changed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from rosa.errors import RosaError, did_you_mean

_PEFT_PREFIX = "base_model.model."
# PEFT itself adds these for the heads of classifiers and of question answering; one of them fits.
_HEADS = ("classifier", "score", "qa_outputs")


def check_one_adapter(names: Sequence[str]) -> None:
    """Raises RosaError where several adapters are to be active together."""
    if len(names) > 1:
        raise RosaError(
            f"RoSA runs one adapter at a time, but {', '.join(names)} were activated together; "
            "activate one of them"
        )


def check_modules_to_save(
    model: nn.Module, names: Iterable[str] | None, adapted: Sequence[str]
) -> None:
    """Raises RosaError for a name of `modules_to_save` that cannot be served.

    Args:
        names: matched as PEFT does, by the end of a module's name.
        adapted: names of the attention modules that RoSA wraps; inside them a copy would take the
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
            attention = next((site for site in adapted if module.startswith(f"{site}.")), None)
            if attention is not None:
                raise RosaError(
                    f"modules_to_save names '{name}', which is also the end of {module}, inside an "
                    "attention module that RoSA adapts; name modules outside of those, with as "
                    "much of their name as tells them apart"
                )


def without_strangers(
    model: nn.Module, adapter_name: str, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Loaded tensors, without those that would replace weights of the base model; with a warning.

    Of the base model only the embeddings may come with an adapter (PEFT's `save_embedding_layers`).

    Args:
        state: by the model's own names, with PEFT's prefix or without it.
    """
    names = set(model.state_dict())
    embeddings = _embedding_names(model)
    strangers, kept = [], dict(state)
    for key in state:
        forms = (key, key.removeprefix(_PEFT_PREFIX), _PEFT_PREFIX + key)
        name = next((form for form in forms if form in names), None)
        if (name and f".{adapter_name}." in name) or any(f.startswith(embeddings) for f in forms):
            continue
        strangers.append(key)
        if name is not None:
            del kept[key]
    if strangers:
        more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
        warnings.warn(
            f"the adapter '{adapter_name}' has no place for {', '.join(strangers[:3])}{more}, "
            "which its file holds: they are left out; is adapter_config.json the one that it was "
            "saved with, and the base model the one it was trained on?",
            stacklevel=4,
        )
    return kept


def _embedding_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the input and output embeddings, each with a dot at its end."""
    getters = (getattr(model, f"get_{kind}_embeddings", None) for kind in ("input", "output"))
    embeddings = [getter() for getter in getters if getter is not None]
    return tuple(
        f"{name}."
        for name, module in model.named_modules(remove_duplicate=False)
        if any(module is embedding for embedding in embeddings)
    )
