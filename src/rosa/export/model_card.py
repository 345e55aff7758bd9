"""The model card of an exported model, with the license of its base."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from rosa.models.loading import is_hub_id, resolve_name, short_name

_LICENSE_KEYS = ("license", "license_name", "license_link")
_TEMPLATE = """---
{metadata}---

# {name}

{base} fine-tuned with RoSA, as one model: trained norms in place, the factors of RoAE as weights of
their own ({factors:,} of {parameters:,} parameters, {dtype}). `{file}` has the
code; it needs PyTorch and Transformers alone.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
```

License: {license}. Written by `rosa export` of rosa-peft.
"""


def write_model_card(folder: Path, base: str, **facts: Any) -> None:
    """README.md of an export, and a copy of the license files of a local base model."""
    license = base_license(base)
    metadata: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    metadata |= {"tags": ["rosa-peft", "custom_code"], **license}
    if is_hub_id(base):  # the hub accepts ids alone
        metadata["base_model"] = base
    text = _TEMPLATE.format(
        metadata=yaml.safe_dump(metadata, sort_keys=False),
        base=f"[{base}](https://huggingface.co/{base})" if is_hub_id(base) else short_name(base),
        license=_in_words(license, base),
        **facts,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    for file in Path(resolve_name(base)).glob("*"):
        if file.is_file() and file.stem.upper() in ("LICENSE", "NOTICE", "USE_POLICY"):
            shutil.copyfile(file, folder / file.name)


def base_license(base: str) -> dict[str, str]:
    """What the base's own model card says of its license; empty where none can be read."""
    from huggingface_hub import ModelCard

    file = Path(resolve_name(base)) / "README.md"
    if not is_hub_id(base) and not file.is_file():
        return {}
    try:
        card = ModelCard.load(file if file.is_file() else base)
    except Exception:  # of many kinds: offline, no card there, broken YAML
        return {}
    values = card.data.to_dict()
    return {key: str(values[key]) for key in _LICENSE_KEYS if values.get(key)}


def _in_words(license: dict[str, str], base: str) -> str:
    if not license:
        return f"that of the base model {short_name(base)}, which names none that could be read"
    return f"{license.get('license_name', license['license'])}, the base model's"
