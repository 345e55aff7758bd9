"""What can be checked of an export before PyTorch is imported."""

from __future__ import annotations

import re
from pathlib import Path

from rosa.common.files import check_new_folder
from rosa.errors import RosaError
from rosa.models.devices import DTYPES
from rosa.models.loading import check_model_files, find_adapter_config, read_adapter_json

SHARD_SIZE = "50GB"  # Transformers' own default


def check_export(adapter: str, out: Path, dtype: str, max_shard_size: str) -> Path:
    """Raises RosaError as `export_adapter`; returns the adapter's configuration file."""
    if dtype not in ("auto", *DTYPES):
        raise RosaError(f"unknown dtype {dtype!r}; choose from {', '.join(('auto', *DTYPES))}")
    if not re.fullmatch(r"[1-9]\d*([KMGT]i?)?B", max_shard_size, re.IGNORECASE):
        raise RosaError(f"max_shard_size must be a size such as 5GB, not {max_shard_size!r}")
    config_file = find_adapter_config(adapter)
    if config_file is None:
        folders = sorted(Path(adapter).glob("*/adapter_config.json"))
        if folders:
            names = ", ".join(str(file.parent) for file in folders)
            raise RosaError(f"{adapter} holds several adapters; export one of them: {names}")
        raise RosaError(f"{adapter} is not an adapter: it has no adapter_config.json")
    peft_type = read_adapter_json(config_file).get("peft_type")
    if peft_type != "ROSA":
        raise RosaError(
            f"{adapter} is a {peft_type} adapter, but only RoSA adapters are exported; what can be "
            "merged into the weights needs no export: PEFT's merge_and_unload()"
        )
    check_model_files(adapter)
    check_new_folder(out)
    return config_file
