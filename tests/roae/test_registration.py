"""`import rosa` is light, and yet PEFT knows ROSA, whichever is imported first."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftConfig
from peft.utils import PeftType
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from rosa import DynamicLayerSelection, RosaConfig
from rosa.dls.config import DlsConfig
from tests.support.adapters import adapted
from tests.support.tiny_models import random_tokens

LOAD = "from peft import PeftConfig; print(type(PeftConfig.from_pretrained({folder!r})).__name__)"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_rosa_loads_neither_torch_nor_peft() -> None:
    loaded = run("import rosa, sys; print([m for m in ('torch', 'peft') if m in sys.modules])")
    assert loaded == "[]"


def test_what_the_tuners_share_can_be_imported_first() -> None:
    assert run("from rosa.attention.load import read_shapes; print(read_shapes.__name__)")


@pytest.mark.slow  # as it did here, where other tests load adapters
def test_a_saved_adapter_is_known_where_peft_came_first(tmp_path: Path) -> None:
    RosaConfig(r=4).save_pretrained(str(tmp_path))
    assert run(f"import peft, rosa; {LOAD.format(folder=str(tmp_path))}") == "RosaConfig"


def test_a_saved_adapter_is_known_where_rosa_came_first(tmp_path: Path) -> None:
    """And PEFT's spec may be looked up in between, as Transformers does, without harm."""
    RosaConfig(r=4).save_pretrained(str(tmp_path))
    code = (
        "import rosa, sys, importlib.util as u; assert u.find_spec('peft').origin; import peft; "
        "assert type(peft.__loader__).__name__ == 'SourceFileLoader'; "
        "assert not any('rosa' in type(finder).__module__ for finder in sys.meta_path); "
    )
    assert run(code + LOAD.format(folder=str(tmp_path))) == "RosaConfig"


def test_the_type_is_a_full_member_of_pefts_enum() -> None:
    member = PeftType("ROSA")
    assert member is PeftType.ROSA is PeftType["ROSA"]  # type: ignore[attr-defined]
    assert member in PeftType
    assert member in list(PeftType)
    assert (member.name, member.value, member == "ROSA") == ("ROSA", "ROSA", True)
    assert {member: 1}["ROSA"] == 1
    assert isinstance(RosaConfig(), PeftConfig)


def one_step(model: torch.nn.Module) -> None:
    tokens = random_tokens()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()


def said_of_selection(act: Callable[[], None]) -> list[str]:
    """The warnings about layer selection."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        act()
    return [str(w.message) for w in said if "layer selection" in str(w.message)]


def test_a_selection_that_is_not_attached_warns_once() -> None:
    model = adapted("llama-gqa", dls=DlsConfig())
    one_step(adapted("qwen2"))  # another model's optimizer says nothing
    first = said_of_selection(lambda: one_step(model))
    assert len(first) == 1
    assert re.search("asks for dynamic layer selection.*none is attached", first[0])
    assert not said_of_selection(lambda: one_step(model))


def test_an_attached_selection_is_not_warned_about() -> None:
    model = adapted("llama-gqa", dls=DlsConfig())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    DynamicLayerSelection(model, optimizer, model.peft_config["default"].dls, total_steps=100)
    assert not said_of_selection(lambda: one_step(model))


def test_no_warning_without_dls() -> None:
    assert not said_of_selection(lambda: one_step(adapted("llama-gqa")))


def test_a_step_that_only_builds_the_optimizers_state_is_no_training(recwarn) -> None:
    """As torch.distributed.checkpoint makes one, with zeros for gradients, before it loads."""
    model = adapted("llama-gqa", dls=DlsConfig())
    optimizer = torch.optim.AdamW(model.parameters())
    get_optimizer_state_dict(model, optimizer)
    assert not [w for w in recwarn if "none is attached" in str(w.message)]
    model(random_tokens()).logits.sum().backward()
    with pytest.warns(UserWarning, match="none is attached"):
        optimizer.step()
