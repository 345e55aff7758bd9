"""guides/comparing.md: its commands and Python run; PEFT reads and trains its experiments."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, get_peft_model
from transformers import AutoModelForCausalLM

import rosa
from rosa.budget.parameters import load_model_config
from rosa.cli.main import main
from tests.support.pages import ROOT, blocks, read_page, rosa_commands, section
from tests.support.tiny_folder import tiny_llama

PAGE = section(read_page("guides/comparing.md"), "## In PEFT's method comparison")
EXPERIMENTS = sorted((ROOT / "recipes" / "peft-method-comparison").glob("*/*"))
IDS = [folder.name for folder in EXPERIMENTS]
# What `training_params.json` may set, by the suite's TrainConfig.
KNOWN = {"optimizer_kwargs", "lr_scheduler", "max_steps", "batch_size", "grad_norm_clip", "seed"}


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=IDS)
def test_the_configuration_is_peft_s_and_complete(folder: Path) -> None:
    assert sorted(f.name for f in folder.iterdir()) == [
        "adapter_config.json",
        "training_params.json",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an unknown key would be a warning
        config = PeftConfig.from_pretrained(folder)
    assert isinstance(config, rosa.RosaConfig)
    assert (config.r, config.alpha, config.r_low) == (128, 0.1, 0.25)
    assert (config.dls is not None) == folder.name.endswith("dls")
    json.dumps(config.to_dict())  # the suite writes it into its results
    assert json.loads((folder / "training_params.json").read_text()).keys() <= KNOWN
    assert f"`rosa/{folder.name}`" in PAGE


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=IDS)
def test_the_budget_on_llama_3b(folder: Path) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_model_config("Llama-3.2-3B"))
        adapted = get_peft_model(model, PeftConfig.from_pretrained(folder))
    trainable, total = adapted.get_nb_trainable_parameters()
    assert trainable == 17_604_608
    assert f"{trainable:,} trainable parameters ({100 * trainable / total:.2f} %)" in PAGE


def loop(folder: Path, steps: int = 6) -> list[float]:
    """Training as the suite does it, with the lines that the page adds."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama(), PeftConfig.from_pretrained(folder))
    settings = json.loads((folder / "training_params.json").read_text())["optimizer_kwargs"]
    optimizer = torch.optim.AdamW(model.parameters(), **settings)
    page = {"model": model, "optimizer": optimizer, "rosa": rosa, "max_steps": steps}
    below, above = page_lines()
    exec(below, page)
    ids = torch.randint(3, 50, (4, 12))
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        exec(above, page)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    assert model.generate(input_ids=ids, max_new_tokens=3).shape == (4, 15)
    selection = page["dls"]
    assert (selection is not None) == folder.name.endswith("dls")
    if selection is not None:
        assert selection.step == steps
    return losses


def page_lines() -> tuple[str, str]:
    """The code that the page puts below the optimizer's creation and above the clipping."""
    [block] = re.findall(r"```python\n(# below get_opt.*?)```", PAGE, flags=re.DOTALL)
    below, above = block.split("\n\n")
    return below, above


@pytest.mark.filterwarnings("ignore:.*never selects.*", "ignore:.*no choice.*")
@pytest.mark.parametrize("folder", EXPERIMENTS, ids=IDS)
def test_a_loop_of_the_suite_s_shape_trains_it(folder: Path) -> None:
    losses = loop(folder)
    assert losses[-1] < losses[0]


def test_the_page_s_command_registers_the_type_without_a_change_to_the_script(
    tmp_path: Path,
) -> None:
    shutil.copytree(EXPERIMENTS[0].parent, tmp_path / "experiments" / "rosa")
    (tmp_path / "data.py").write_text("FOUND = 'beside the script'\n")
    (tmp_path / "run.py").write_text(
        "import sys\nfrom data import FOUND\nfrom peft import PeftConfig\n"
        "assert __name__ == '__main__'\n"
        "print(FOUND, PeftConfig.from_pretrained(sys.argv[-1]).peft_type)\n"
    )
    [code] = re.findall(r'python -c "(.*?)"', PAGE)
    words = ["-v", "experiments/rosa/llama-3.2-3B-default"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path,
        env={**os.environ},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "beside the script" in done.stdout
    assert "ROSA" in done.stdout


def test_the_dry_run_and_the_cost_plot_run(in_a_copy: Path) -> None:
    page = read_page("guides/comparing.md")
    (command,) = rosa_commands(section(page, "## `rosa compare`"))[:1]
    assert main(command) == 0
    (code,) = blocks(section(page, "## Accuracy against cost"), "python")
    exec(code, {})
    assert (in_a_copy / "costs.png").is_file()


def test_the_example_grid_is_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (grid,) = blocks(section(read_page("guides/comparing.md"), "### The grid"), "yaml")
    path = tmp_path / "grid.yaml"
    path.write_text(grid.replace("Qwen/Qwen2.5-0.5B", "Qwen2.5-0.5B"))
    assert main(["compare", str(path), "--dry_run"]) == 0
    assert "LoRA-matched" in capsys.readouterr().out
