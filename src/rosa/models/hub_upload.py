"""What of an adapter's or a model's folder goes to the Hugging Face Hub, and putting it there.

An adapter's base model is named by its hub id: a path on this machine tells others nothing, and the
hub rejects a model card with one.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rosa.errors import RosaError, errors_as
from rosa.models.identity import recipe_beside
from rosa.models.loading import BUILT_IN, is_hub_id, read_adapter_json

CARD, CONFIG = "README.md", "adapter_config.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_BASE_TAG = "base_model:adapter:"  # PEFT's


def files_to_push(folder: Path, repo: str, base_model: str | None) -> dict[str, Path | bytes]:
    """Each file for the repository: where it lies, or its content where that is another.

    These are the files of the folder itself: checkpoints and results in folders below it, hidden
    files and pickles stay. `base_model` is the hub id of an adapter's base, if it is not known.

    Raises:
        RosaError: the folder holds no adapter and no model, or the base model is a local folder.
    """
    from huggingface_hub.utils import validate_repo_id

    for name in filter(None, (repo, base_model)):
        with errors_as(f"{name!r} is not a name on the hub"):
            validate_repo_id(name)
    is_adapter = (folder / CONFIG).is_file()
    if not is_adapter and not (folder / "config.json").is_file():
        raise RosaError(f"{folder} is not the folder of an adapter or a model: it has no {CONFIG}")
    files: dict[str, Path | bytes] = {
        file.name: file
        for file in sorted(folder.iterdir())
        if file.is_file() and not file.name.startswith(".") and file.suffix not in PICKLES
    }
    if not any(name.endswith(".safetensors") for name in files):
        raise RosaError(f"{folder} has no .safetensors file, so there is nothing to push")
    if not is_adapter:
        if base_model:
            raise RosaError(f"--base_model is for adapters, and {folder} holds a model")
        return files
    config = read_adapter_json(folder / CONFIG)
    given = str(config.get("base_model_name_or_path") or "")
    base = base_model or _public_base(given, folder)
    config["base_model_name_or_path"] = base
    files[CONFIG] = json.dumps(config, indent=2, sort_keys=True).encode()
    recipe = recipe_beside(str(folder))
    local = {name: base for name in (given, str(recipe.get("model") or "")) if not is_hub_id(name)}
    if "recipe.yaml" in files:
        text = (folder / "recipe.yaml").read_text(encoding="utf-8")
        files["recipe.yaml"] = _replace_paths(text, local).encode()
    local[str(recipe.get("output_dir") or "")] = repo
    files[CARD] = _card(folder / CARD, repo, base, local).encode()
    return dict(sorted(files.items()))


def _public_base(given: str, folder: Path) -> str:
    """The base model as others can load it."""
    if Path(given).name in BUILT_IN:
        return Path(given).name
    if not given or not is_hub_id(given):
        raise RosaError(
            f"{folder / CONFIG} names {given or 'no base model'!r}, which others do not have; give "
            "the base model's hub id with --base_model"
        )
    return given


def _card(file: Path, repo: str, base: str, replaced: dict[str, str]) -> str:
    """The model card with the public name of the base model, which the hub checks."""
    from huggingface_hub import ModelCard

    text = f"---\nlibrary_name: peft\n---\n\n# {repo}\n"
    if file.is_file():
        text = file.read_text(encoding="utf-8")
    with errors_as(f"{file} is not a model card"):
        card = ModelCard(_replace_paths(text, replaced))
    data: Any = card.data
    on_hub = None if base in BUILT_IN else base
    data.base_model = on_hub
    tags = [tag for tag in data.tags or [] if not tag.startswith(_BASE_TAG)]
    data.tags = [*tags, f"{_BASE_TAG}{on_hub}"] if on_hub else tags
    return str(card)


def _replace_paths(text: str, names: dict[str, str]) -> str:
    """`text` with other names for whole paths; one without a slash only where it is quoted."""
    for old, new in names.items():
        path = re.escape(old)
        pattern = rf"(?<![\w./-]){path}(?![\w/-])" if "/" in old else rf'(?<="){path}(?=")'
        text = re.sub(pattern, new, text) if old else text
    return text


def push_files(files: dict[str, Path | bytes], repo: str, *, public: bool) -> tuple[str, bool]:
    """Puts `files` in one commit to a repository of the hub, made if there is none.

    Returns its address, and whether it is private. Raises RosaError for a repository that is
    public, unless `public`.
    """
    import huggingface_hub
    from huggingface_hub import CommitOperationAdd

    if huggingface_hub.get_token() is None:
        raise RosaError("there is no token for the hub; run `hf auth login`, or set HF_TOKEN")
    api = huggingface_hub.HfApi()
    with errors_as(f"cannot push to {repo}"):
        url = api.create_repo(repo, private=not public, exist_ok=True)
        is_private = bool(api.repo_info(url.repo_id).private)
        if not (public or is_private):
            raise RosaError(f"{url.repo_id} exists and is public; push to it with --public")
        operations = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in files.items()
        ]
        api.create_commit(url.repo_id, operations, commit_message="Upload with rosa push")
    return str(url), is_private
