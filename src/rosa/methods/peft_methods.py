"""Every other method of PEFT, by PEFT's own name for it: `--method ia3`, `oft`, `waveft`, ...

They come from PEFT's registry, so one that a later PEFT adds, or that a plugin registers, is there
without a line of code. Their arguments are PEFT's defaults.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import PeftConfig

# What a recipe cannot train, as it has rows of text and nothing else.
REFUSED = {
    "cpt": "it takes the loss on labeled parts of its own prompt",
    "multitask_prompt_tuning": "every row would have to name its task",
    "poly": "every row would have to name its task",
    "xlora": "it mixes LoRA adapters that are trained already",
}
# What PEFT's methods raise where a model or a value does not suit them.
ATTACHING_FAILED = (ValueError, TypeError, RuntimeError, AttributeError, ImportError, re.error)
VIRTUAL_TOKENS = 20  # PEFT's docs; its prompt methods have no default


def config_classes() -> dict[str, type[PeftConfig]]:
    """The configuration class of every method that PEFT knows, by its name in lower case."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return {kind.value.lower(): cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def default_kwargs(config_class: type[PeftConfig]) -> dict[str, Any]:
    """What must be given and PEFT has no default for."""
    from peft import PromptLearningConfig

    prompt = issubclass(config_class, PromptLearningConfig)
    return {"num_virtual_tokens": VIRTUAL_TOKENS} if prompt else {}


def set_targets(config: Any, model_type: str) -> None:
    """Targets all linear layers where neither the user nor PEFT says which, in place.

    Not where a method's targets are something else than linear layers: such a method finds them
    itself (embeddings, decoder layers) or PEFT asks for them (norms).
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
