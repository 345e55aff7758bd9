"""`rosa push`: what goes to the hub, against a stand-in for its API."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, ModelCard

from rosa.cli.main import main
from rosa.models.hub_upload import files_to_push
from rosa.train.model_card import write_model_card
from rosa.train.recipe import Recipe, dump_recipe

TOKEN = "hf_secretsecretsecret"
SAVED = {"adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json", "README.md"}


class Hub:
    """A stand-in for `HfApi`: its repositories, by name, and whether they are private."""

    def __init__(self, **private: bool) -> None:
        self.private = private
        self.commits: list[tuple[str, dict[str, bytes]]] = []

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> Any:
        assert exist_ok
        name = repo if "/" in repo else f"me/{repo}"
        self.private.setdefault(name, private)
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{name}")

    def repo_info(self, repo: str) -> Any:
        return SimpleNamespace(private=self.private[repo])

    def create_commit(
        self, repo: str, operations: list[CommitOperationAdd], *, commit_message: str
    ) -> None:
        content = {}
        for operation in operations:
            with operation.as_file() as stream:
                content[operation.path_in_repo] = stream.read()
        self.commits.append((repo, content))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(**{"me/open": False})
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
    return hub


def write_run(folder: Path, base: str) -> Path:
    """The folder of a finished run of `rosa train` on `base`."""
    (folder / "checkpoint-2").mkdir(parents=True)
    (folder / "checkpoint-2" / "optimizer.pt").write_bytes(b"x")
    (folder / ".rows").write_text("x")
    (folder / "training_args.bin").write_bytes(b"x")
    config = {"peft_type": "ROSA", "base_model_name_or_path": base, "r": 4}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer_config.json").write_text("{}")
    recipe = Recipe(model=base, data="tiny-sums", output_dir=str(folder), dls=None)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    write_model_card(folder, recipe, 2, 0.5, [])
    return folder


def said(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> str:
    capsys.readouterr()
    assert main(["push", *map(str, words)]) == code
    out, err = capsys.readouterr()
    assert TOKEN not in out + err
    return out + err


def test_a_run_is_pushed_private_with_a_card_that_the_hub_accepts(
    tmp_path: Path, hub: Hub, capsys
) -> None:
    base = tmp_path / "models" / "mine"
    base.mkdir(parents=True)
    run = write_run(tmp_path / "run", str(base))
    out = said(capsys, run, "me/adapter", "--base_model", "Qwen/Qwen2.5-0.5B")
    assert "pushed to https://huggingface.co/me/adapter (private)" in out
    assert hub.private["me/adapter"] is True
    [(repo, files)] = hub.commits
    assert (repo, set(files)) == ("me/adapter", {*SAVED, "recipe.yaml"})
    config = json.loads(files["adapter_config.json"])
    assert config == {
        "peft_type": "ROSA", "base_model_name_or_path": "Qwen/Qwen2.5-0.5B", "r": 4
    }  # fmt: skip
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == "Qwen/Qwen2.5-0.5B"
    assert card.data.to_dict()["library_name"] == "peft"
    assert 'PeftModel.from_pretrained(model, "me/adapter")' in card.text
    assert "model: Qwen/Qwen2.5-0.5B" in files["recipe.yaml"].decode()
    assert str(base).encode() not in b"".join(files.values())
    assert str(base) in (run / "adapter_config.json").read_text()  # the run itself is as it was


def test_a_dry_run_lists_every_file_with_its_size_and_needs_no_token(
    tmp_path: Path, hub: Hub, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    run = write_run(tmp_path / "run", "Qwen/Qwen2.5-0.5B")
    out = said(capsys, run, "adapter", "--dry_run")
    assert "7 B  adapter_model.safetensors" in out
    assert {line.split()[-1] for line in out.splitlines()[:-2]} == {*SAVED, "recipe.yaml"}
    assert not hub.commits
    assert "run `hf auth login`" in said(capsys, run, "adapter", code=2)


def test_a_public_repository_needs_the_flag(tmp_path: Path, hub: Hub, capsys) -> None:
    run = write_run(tmp_path / "run", "Qwen/Qwen2.5-0.5B")
    assert "me/open exists and is public" in said(capsys, run, "me/open", code=2)
    assert not hub.commits
    assert "(public)" in said(capsys, run, "open", "--public")
    assert said(capsys, run, "me/new", "--public").endswith("me/new (public)\n")
    assert [repo for repo, _ in hub.commits] == ["me/open", "me/new"]


def test_an_adapter_of_peft_s_trainer_gets_a_valid_card(tmp_path: Path) -> None:
    """PEFT's own card and tag name the path of a local base model."""
    base = "/data/models/x"
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    front = f"base_model: {base}\nlibrary_name: peft\ntags:\n- base_model:adapter:{base}\n- lora"
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n\n# Card\n")
    files = files_to_push(tmp_path, "me/x", "Qwen/Qwen2.5-0.5B")
    card = ModelCard(bytes(files["README.md"]).decode())
    assert card.data.to_dict() == {
        "base_model": "Qwen/Qwen2.5-0.5B",
        "library_name": "peft",
        "tags": ["lora", "base_model:adapter:Qwen/Qwen2.5-0.5B"],
    }
    (tmp_path / "README.md").unlink()
    assert ModelCard(bytes(files_to_push(tmp_path, "me/x", "Q/w")["README.md"]).decode()).data.tags


def test_the_toy_model_is_known_by_its_name(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "/site-packages/rosa/assets/rosa-tiny")
    files = files_to_push(run, "me/x", None)
    assert json.loads(bytes(files["adapter_config.json"]))["base_model_name_or_path"] == "rosa-tiny"
    assert ModelCard(bytes(files["README.md"]).decode()).data.base_model is None


def test_a_model_s_folder_is_pushed_as_it_is(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "modeling_rosa_llama.py", "README.md"):
        (tmp_path / name).write_text("{}")
    files = files_to_push(tmp_path, "me/x", None)
    assert files == {file.name: file for file in tmp_path.iterdir()}


def test_mistakes_are_one_sentence(tmp_path: Path, hub: Hub, capsys, monkeypatch) -> None:
    run = write_run(tmp_path / "run", str(tmp_path))
    assert "the base model's hub id with --base_model" in said(capsys, run, "me/x", code=2)
    assert "is not a name on the hub" in said(capsys, run, "me/x/y", code=2)
    assert "there is no folder" in said(capsys, tmp_path / "no", "me/x", code=2)
    assert "is not the folder of an adapter" in said(capsys, tmp_path, "me/x", code=2)
    (run / "adapter_model.safetensors").unlink()
    assert "nothing to push" in said(capsys, run, "me/x", code=2)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("403 Forbidden:\nno write access")

    run = write_run(tmp_path / "other", "Qwen/Qwen2.5-0.5B")
    monkeypatch.setattr(hub, "create_repo", refuse)
    assert "cannot push to me/x: 403 Forbidden: no write access" in said(
        capsys, run, "me/x", code=2
    )
    assert not hub.commits
