"""`rosa chat`: scripts, a terminal with Ctrl-C, and the prompt that an adapter was trained with."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest
import torch

from rosa.cli.chat import take_turn
from rosa.cli.main import main
from rosa.data.prompts import instruction_prompt
from rosa.evaluate.conversation import Conversation
from rosa.models.loading import load
from rosa.train.run import train
from tests.support.processes import PATIENCE
from tests.support.tiny_folder import tiny_llama, word_tokenizer, write_model_folder
from tests.support.train_runs import make_recipe

CHAT = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
ROWS = {
    "alpaca": {"instruction": "How many", "output": "answer1"},
    "plain": {"prompt": "How many", "completion": " answer1"},
    "chat": {
        "messages": [
            {"role": "user", "content": "How many"},
            {"role": "assistant", "content": "answer1"},
        ]
    },
}
SHORT = ["--max_new_tokens", "8"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An instruct model."""
    folder = write_model_folder(tmp_path_factory.mktemp("base"))
    tokenizer = word_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run for each kind of rows."""
    folder = tmp_path_factory.mktemp("runs")
    for name, row in ROWS.items():
        data = folder / f"{name}.json"
        data.write_text(json.dumps([row] * 8))
        keys = {"model": str(base), "data": str(data), "adapter": {"r": 4, "r_low": 1.0}}
        recipe = make_recipe(
            folder, folder / name, **keys, dls=None, max_steps=3, learning_rate=0.1, validation=0
        )
        assert train(recipe, log=lambda _: None).finished
    return folder


def chat(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert main(["chat", *map(str, words), *SHORT]) == code
    return tuple(capsys.readouterr())


@pytest.mark.parametrize("name", ROWS)
def test_an_adapter_is_asked_as_it_was_trained(name: str, runs: Path, capsys) -> None:
    loaded = load(str(runs / name))
    expected = Conversation(loaded.model, loaded.tokenizer, name, max_new_tokens=8)
    texts = ["How many", "Please choose"]
    replies = [expected.reply(text) for text in texts]
    out, notes = chat(capsys, runs / name, "--prompt", texts[0], "--prompt", texts[1])
    assert out == "".join(f"{reply}\n" for reply in replies)
    said = {"alpaca": "trained on instructions", "plain": "trained on single prompts"}
    assert (said[name] in notes) if name in said else (notes == "")
    if name == "alpaca":
        assert expected.prompt(texts[1]) == instruction_prompt(texts[1])


def test_standard_input_is_a_conversation(base: Path, capsys, monkeypatch) -> None:
    loaded = load(str(base))
    talk = Conversation(loaded.model, loaded.tokenizer, "chat", "Please", max_new_tokens=8)
    replies = [talk.reply(text) for text in ("How many\nis the", "true")]
    monkeypatch.setattr(sys, "stdin", io.StringIO("How many\\\nis the\n\ntrue"))
    out, _ = chat(capsys, base, "--system", "Please")
    assert out == "".join(f"{reply}\n" for reply in replies)


def test_compare_prints_the_base_model_as_it_is_alone(base: Path, runs: Path, capsys) -> None:
    words = ["--prompt", "How many", "--prompt", "true", "--template", "alpaca"]
    alone = [chat(capsys, model, *words)[0].splitlines() for model in (base, runs / "alpaca")]
    assert alone[0] != alone[1]
    out, _ = chat(capsys, runs / "alpaca", *words, "--compare")
    turns = zip(*alone, strict=True)
    assert out == "".join(f"base model:\n{one}\nadapter:\n{two}\n" for one, two in turns)


def test_ctrl_c_ends_the_base_model_s_reply_alone(base: Path, runs: Path, capsys) -> None:
    loaded = load(str(runs / "chat"))
    both = [
        Conversation(loaded.model, loaded.tokenizer, "chat", max_new_tokens=8, use_adapter=use)
        for use in (False, True)
    ]
    pressed = iter([lambda: True, lambda: False])
    assert take_turn(both, "How many", lambda: nullcontext(next(pressed))) is False
    stopped, whole = (each.turns for each in both)
    for each in both:
        each.turns = []
        each.reply("How many")
    assert stopped != both[0].turns
    assert whole == both[1].turns


def test_compare_in_a_terminal_has_two_columns(runs: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("rich.console.Console.is_terminal", property(lambda _: True))
    out, _ = chat(capsys, runs / "alpaca", "--prompt", "How many", "--compare")
    assert any("base model" in line and "adapter" in line for line in out.splitlines())


def test_the_end_of_file_ends_a_conversation_in_a_terminal(base: Path, capsys, monkeypatch) -> None:
    typed = io.StringIO("How many\n\n")
    monkeypatch.setattr(typed, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", typed)
    out, _ = chat(capsys, base)
    assert out.startswith("> ")
    assert out.count("> ") == 3


def test_a_model_without_a_template_says_so(tmp_path: Path, capsys) -> None:
    model = write_model_folder(tmp_path)
    _, notes = chat(capsys, model, "--prompt", "How many")
    assert notes == f"{model} has no chat template: each turn is a text that the model continues\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--compare"], "--compare is for adapters, and"),
        (["--template", "chat"], "has no chat template; use an instruct model, or --template"),
        (["--system", "Please"], "--system needs a chat template"),
        (["--temperature", "-1"], "--temperature must be at least 0, not -1"),
        (["--prompt", " "], "--prompt is empty"),
        (["--max_new_tokens=0"], "--max_new_tokens must be at least 1, not 0"),
    ],
)
def test_mistakes_are_one_sentence(words: list[str], said: str, capsys) -> None:
    capsys.readouterr()
    assert main(["chat", "rosa-tiny", "--prompt", "Bob has a", *words]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_an_unknown_template_in_the_adapter_s_tokenizer(runs: Path, tmp_path: Path, capsys) -> None:
    copy = tmp_path / "adapter"
    copy.mkdir()
    for file in (runs / "chat").iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "tokenizer_config.json").read_text())
    assert config["prompt_template"] == "chat"
    (copy / "tokenizer_config.json").write_text(json.dumps({**config, "prompt_template": "no"}))
    _, err = chat(capsys, copy, "--prompt", "How many", code=2)
    assert "names the unknown prompt_template 'no'" in err
    del config["prompt_template"]
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    _, notes = chat(capsys, copy, "--prompt", "How many")
    assert "does not record the prompt of its training" in notes


class Terminal:
    """`rosa chat` with a terminal of its own."""

    def __init__(self, *words: str) -> None:
        self.screen, end = pty.openpty()
        # Its controlling terminal, so that a typed Ctrl-C is a signal.
        code = (
            "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
            "from rosa.cli.main import main; sys.exit(main(sys.argv[1:]))"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "chat", *words],
            stdin=end, stdout=end, stderr=end, start_new_session=True,
            env={**os.environ, "TERM": "dumb"},
        )  # fmt: skip
        os.close(end)
        self.text = ""

    def wait_for(self, ready: str | int) -> str:
        """What is printed up to and with the text `ready`, or until it has so many characters."""
        while (ready not in self.text) if isinstance(ready, str) else (len(self.text) < ready):
            assert select.select([self.screen], [], [], PATIENCE)[0], self.text
            self.text += os.read(self.screen, 4096).decode()
        until = self.text.index(ready) + len(ready) if isinstance(ready, str) else len(self.text)
        found, self.text = self.text[:until], self.text[until:]
        return found

    def wait_for_prompt(self) -> None:
        self.wait_for("> ")
        # A signal between the prompt and Python's wait for a key is only seen at the next key.
        while psutil.Process(self.process.pid).status() != psutil.STATUS_SLEEPING:
            time.sleep(0.05)

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())


@pytest.fixture
def endless(base: Path, tmp_path: Path) -> Iterator[Terminal]:
    """A chat with a model that never ends a reply."""
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[2] = 0  # </s>; other logits are large
    model.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    terminal = Terminal(str(tmp_path), "--max_new_tokens", "1000000")
    yield terminal
    terminal.process.kill()
    terminal.process.wait()
    os.close(terminal.screen)


def test_ctrl_c_ends_the_reply_and_the_second_the_program(endless: Terminal) -> None:
    endless.wait_for_prompt()
    endless.type("\x03")
    endless.wait_for("Ctrl-C again leaves, and so does Ctrl-D")
    endless.wait_for_prompt()
    for text in ("How many\n", "true\n"):
        endless.type(text)
        endless.wait_for(300)  # the reply has begun, and would not end
        endless.type("\x03")
        endless.wait_for_prompt()
        assert endless.process.poll() is None
    endless.type("\x03")
    began = time.monotonic()
    while endless.process.poll() is None and time.monotonic() < began + PATIENCE:
        time.sleep(0.05)
    assert endless.process.returncode == 0
