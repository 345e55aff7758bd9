"""The `modeling_rosa_*.py` of an export: the architecture's classes with RoAE in the decoder."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rosa
from rosa.export import modeling
from rosa.export.bundle import bundle
from rosa.export.state import decoder_name

_HEAD = '''"""{architecture} with RoAE, the input-dependent part of RoSA (Pan et al., AAAI 2026).

Written by rosa-peft {version}; needs PyTorch and Transformers alone. License: Apache-2.0.
"""

from __future__ import annotations

{imports}

{code}


class {config}({base_config}):
    """The configuration of {base_head}, and in `rosa` that of RoAE."""

    model_type = "rosa_{model_type}"


class {decoder}({base_decoder}):
    """{base_decoder}, whose queries and keys are modulated."""

    config_class = {config}

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        add_roae(self, config.rosa)


class {head}({base_head}):
    """{base_head} around {decoder}."""

    config_class = {config}

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.{prefix} = {decoder}(config)
'''


@dataclass(frozen=True)
class ExportedClasses:
    """Names of the classes of one export, and the text of the file that defines them."""

    file: str
    text: str
    config: str
    decoder: str
    head: str

    @property
    def auto_map(self) -> dict[str, str]:
        """What tells Transformers' Auto classes which class of which file to take."""
        module = self.file.removesuffix(".py")
        classes = {
            "AutoConfig": self.config,
            "AutoModel": self.decoder,
            "AutoModelForCausalLM": self.head,
        }
        return {auto: f"{module}.{name}" for auto, name in classes.items()}

    def load(self, folder: Path) -> Any:
        """The module, imported from its file in `folder`."""
        name = f"rosa_export_{self.file.removesuffix('.py')}"
        spec: Any = importlib.util.spec_from_file_location(name, folder / self.file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # where dataclasses look for it
        spec.loader.exec_module(module)
        return module


def exported_classes(model: Any) -> ExportedClasses:
    """The classes of the export of a causal language model of Transformers, without an adapter."""
    prefix = decoder_name(model)
    decoder = model.get_submodule(prefix)
    bases = {"config": type(model.config), "decoder": type(decoder), "head": type(model)}
    imports, code = bundle(modeling)
    own = [f"from {base.__module__} import {base.__name__}" for base in bases.values()]
    names = {name: f"Rosa{base.__name__}" for name, base in bases.items()}
    model_type = model.config.model_type
    text = _HEAD.format(
        architecture=type(model).__name__,
        version=rosa.__version__,
        imports="\n".join(sorted({*imports, *own})),
        code=code,
        model_type=model_type,
        prefix=prefix,
        **names,
        **{f"base_{name}": base.__name__ for name, base in bases.items()},
    )
    file = f"modeling_rosa_{model_type.replace('-', '_')}.py"
    return ExportedClasses(file, text, **names)
