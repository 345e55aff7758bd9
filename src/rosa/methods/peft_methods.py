"""Every other PEFT method by its PEFT name (`ia3`, `oft`, `waveft`, ...), with its defaults.

They come from PEFT's registry, including methods of a later PEFT or of a plugin.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import PeftConfig

# Methods that need more than a recipe's rows of text, with the reason.
UNSUPPORTED = {
    "cpt": "it takes the loss on labeled parts of its own prompt",
    "multitask_prompt_tuning": "every row would have to name its task",
    "poly": "every row would have to name its task",
    "xlora": "it mixes LoRA adapters that are trained already",
}
# What PEFT's methods raise for a model or a value that they do not support.
ATTACH_ERRORS = (ValueError, TypeError, RuntimeError, AttributeError, ImportError, re.error)
VIRTUAL_TOKENS = 20  # as in PEFT's docs; its prompt methods have no default


def config_classes() -> dict[str, type[PeftConfig]]:
    """The configuration class of every method that PEFT knows, by its name in lower case."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return {kind.value.lower(): cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def default_kwargs(config_class: type[PeftConfig]) -> dict[str, Any]:
    """Arguments that are required and have no default in PEFT."""
    from peft import PromptLearningConfig

    prompt = issubclass(config_class, PromptLearningConfig)
    return {"num_virtual_tokens": VIRTUAL_TOKENS} if prompt else {}


def set_default_targets(config: Any, model_type: str) -> None:
    """Sets `target_modules` to all linear layers, in place, if neither user nor PEFT sets it.

    Not for methods whose targets are not linear layers: they find them themselves (embeddings,
    decoder layers), or PEFT requires them (norms).
    """
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as TUNERS
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as IA3

    if getattr(config, "target_modules", "none") is not None:
        return
    kind = str(config.peft_type.value)
    known = (
        IA3 if kind == "IA3" else getattr(TUNERS.get(config.peft_type), "target_module_mapping", {})
    )
    if not known or model_type in known or kind == "LN_TUNING":
        return
    config.target_modules = "all-linear"
    if any(field.name == "feedforward_modules" for field in dataclasses.fields(config)):
        config.feedforward_modules = []
