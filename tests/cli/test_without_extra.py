"""The library without what the commands need, and what a command says then."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rosa.cli.main import COMMANDS, NEEDED
from tests.support.version_matrix import requirements

CORE = {"torch", "transformers", "peft", "accelerate", "safetensors"}
IMPORTED_AS = {"pyyaml": "yaml"}
OF_TRANSFORMERS = {"tokenizers", "huggingface_hub"}
THERE_ANYWAY = {"jinja2", "numpy", "psutil", "yaml"}  # PyTorch and PEFT need them
BLOCK = f"""
import sys
for name in {sorted(set(NEEDED) - THERE_ANYWAY)}:
    sys.modules[name] = None
"""
LIBRARY = """
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import rosa

def base():
    return AutoModelForCausalLM.from_pretrained(rosa.tiny_model_path())

model = get_peft_model(base(), rosa.RosaConfig(r=4)).train()
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
dls = rosa.DynamicLayerSelection(
    model, optimizer, rosa.DlsConfig(interval=1, warmup=0), total_steps=3
)
tokens = torch.arange(16).reshape(2, 8)
for _ in range(3):
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
assert len(dls.history) == 3
rosa.DlsCallback(rosa.DlsConfig())
model.eval().save_pretrained(sys.argv[1])
again = PeftModel.from_pretrained(base(), sys.argv[1])
assert torch.equal(again(input_ids=tokens).logits, model(input_ids=tokens).logits)
assert not torch.equal(again(input_ids=tokens).logits, base()(input_ids=tokens).logits)
"""
COMMAND = "from rosa.cli.main import main; sys.exit(main(sys.argv[1:]))"


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCK + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_library_needs_nothing_of_it(tmp_path: Path) -> None:
    done = run(LIBRARY, str(tmp_path))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_what_to_install(command: str) -> None:
    done = run(COMMAND, command, "--help")
    missing = ", ".join(sorted(set(NEEDED) - THERE_ANYWAY))
    said = f"rosa {command}: the commands need {missing}; run: pip install 'rosa-peft[cli]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def test_help_and_version_work() -> None:
    assert all(run(COMMAND, option).returncode == 0 for option in ("--help", "--version"))


def test_the_extra_brings_what_the_commands_check() -> None:
    assert set(requirements()) == CORE
    names = {IMPORTED_AS.get(name, name) for name in requirements("cli")}
    assert names - CORE - OF_TRANSFORMERS == set(NEEDED)
