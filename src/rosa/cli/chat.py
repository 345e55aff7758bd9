"""`rosa chat MODEL_OR_ADAPTER`: talk to a model or an adapter, in a terminal or a script."""

from __future__ import annotations

import io
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Literal

from rosa.cli.parser import Parser, add_loading_options, loading_options
from rosa.data.prompts import PROMPTS, TEMPLATE_KEY
from rosa.errors import RosaError
from rosa.models.loading import (
    adapter_base,
    check_model_files,
    find_adapter_config,
    load,
    load_tokenizer,
    tokenizer_source,
)

if TYPE_CHECKING:
    from rosa.evaluate.conversation import Conversation

Stop = Callable[[], bool]


def build_parser() -> Parser:
    """The options of `rosa chat`."""
    parser = Parser(
        prog="rosa chat",
        description="Talk to a model or an adapter. A line is a turn; one that ends with a "
        "backslash continues on the next. Ctrl-C ends a reply; Ctrl-C twice, or Ctrl-D, exits.",
    )
    add = parser.add_argument
    add("model", help="hub id or folder of a model or adapter, or 'rosa-tiny'")
    add(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="a turn, instead of the lines of standard input; may be repeated",
    )
    add("--system", type=str | None, help="the system message, for models with a chat template")
    add("--compare", action="store_true", help="the base model's reply beside the adapter's")
    add(
        "--template",
        type=Literal["chat", "alpaca", "plain"] | None,
        help="prompt around a turn; default: the one that the adapter was trained with, else the "
        "model's chat template, if it has one",
    )
    add("--temperature", type=float, default=0.0, help="of sampling; 0 takes the likeliest token")
    add("--max_new_tokens", type=int, default=512, help="length of a reply, at most")
    add_loading_options(parser)
    return parser


def run(args: Any) -> None:
    """Loads the model, and replies to `--prompt`, a terminal or the lines of standard input."""
    _check(args)
    from rosa.evaluate.conversation import Conversation, check_system

    config_file = find_adapter_config(args.model)
    base = adapter_base(args.model, config_file) if config_file else args.model
    tokenizer = load_tokenizer(
        tokenizer_source(args.model, base), trust_remote_code=args.trust_remote_code
    )
    template = choose_template(args, tokenizer, is_adapter=config_file is not None)
    if args.system is not None:
        check_system(tokenizer, template, args.system)
    loaded = load(args.model, **loading_options(args))
    options = (template, args.system, args.temperature, args.max_new_tokens)
    conversations = [
        Conversation(loaded.model, loaded.tokenizer, *options, use_adapter=use)
        for use in ([False, True] if args.compare else [True])
    ]
    if args.prompt is None and sys.stdin.isatty():
        return talk(conversations)
    for text in read_turns() if args.prompt is None else args.prompt:
        take_turn(conversations, text)


def _check(args: Any) -> None:
    """Raises RosaError for what can be known to be wrong before a library is imported."""
    if args.max_new_tokens < 1:
        raise RosaError(f"--max_new_tokens must be at least 1, not {args.max_new_tokens}")
    if args.temperature < 0:
        raise RosaError(f"--temperature must be at least 0, not {args.temperature:g}")
    if not all(text.strip() for text in args.prompt or ()):
        raise RosaError("--prompt is empty; give the text of a turn")
    check_model_files(args.model)
    if args.compare and find_adapter_config(args.model) is None:
        raise RosaError(f"--compare is for adapters, and '{args.model}' is a base model")


def choose_template(args: Any, tokenizer: Any, *, is_adapter: bool) -> str:
    """The template of prompts; prints a line where it is not the one that a user expects.

    Raises RosaError where there is no chat template and `--template` asks for it.
    """
    has_chat = bool(getattr(tokenizer, "chat_template", None))
    trained = tokenizer.init_kwargs.get(TEMPLATE_KEY)
    template = args.template or trained or ("chat" if has_chat else "plain")
    if template not in PROMPTS:
        raise RosaError(
            f"{args.model}: tokenizer_config.json names the unknown {TEMPLATE_KEY} {template!r}; "
            f"choose from {', '.join(PROMPTS)} with --template"
        )
    if template == "chat" and not has_chat:
        raise RosaError(
            f"the tokenizer of {args.model} has no chat template; use an instruct model, or "
            "--template alpaca or plain"
        )
    if args.template:
        return template
    if is_adapter and trained is None:
        _note(f"{args.model} does not record the prompt of its training; --template sets it")
    if trained == "alpaca":
        _note(f"{args.model} was trained on instructions: each turn is one, without those before")
    elif trained == "plain":
        _note(f"{args.model} was trained on single prompts: each turn is one, as it is written")
    elif not has_chat:
        _note(f"{args.model} has no chat template: each turn is a text that the model continues")
    return template


def talk(conversations: list[Conversation]) -> None:
    """The conversation in a terminal, until its end of file or the second Ctrl-C in a row."""
    with suppress(ImportError):
        import readline  # noqa: F401 (lines can be edited, and called back)
    stopped = False
    while True:
        try:
            text = read_turn("> ", "... ")
        except KeyboardInterrupt:
            sys.stdout.write("\n")
            if stopped:
                return
            stopped = True
            _note("Ctrl-C again leaves, and so does Ctrl-D")
            continue
        if text is None:
            sys.stdout.write("\n")
            return
        if text.strip():
            stopped = take_turn(conversations, text, ctrl_c_ends_reply)
            sys.stdout.write("\n")


@contextmanager
def ctrl_c_ends_reply() -> Iterator[Stop]:
    """Whether Ctrl-C was pressed; a second one, before the reply has ended, interrupts."""
    pressed = threading.Event()

    def on_signal(*_: Any) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def read_turns() -> Iterator[str]:
    """The turns of standard input that are not blank."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    while (text := read_turn()) is not None:
        if text.strip():
            yield text


def read_turn(first: str = "", more: str = "") -> str | None:
    """A line of standard input, with the next ones where it ends with a backslash.

    None at the end of file. `first` and `more` are shown before the lines.
    """
    lines: list[str] = []
    try:
        while not lines or lines[-1].endswith("\\"):
            lines.append(input(more if lines else first))
    except EOFError:
        if not lines:
            return None
    return "\n".join([*(line[:-1] for line in lines[:-1]), lines[-1].removesuffix("\\")])


def take_turn(
    conversations: list[Conversation],
    text: str,
    stopping: Callable[[], AbstractContextManager[Stop]] = lambda: nullcontext(lambda: False),
) -> bool:
    """Prints the replies to the user's turn `text`; returns whether the last one was stopped.

    `stopping` is entered for each reply, and gives what tells that it shall end.
    """
    text = text.encode(errors="replace").decode()  # arguments may hold bytes that are not UTF-8
    names = ["adapter" if each.use_adapter else "base model" for each in conversations]
    with _plain() if len(names) == 1 else side_by_side(names) as writers:
        for conversation, write in zip(conversations, writers, strict=True):
            with stopping() as stop:
                conversation.reply(text, write, stop)
    return stop()


@contextmanager
def _plain() -> Iterator[list[Callable[[str], Any]]]:
    """A function that writes to standard output, for the only reply."""
    yield [_write]
    _write("\n")


@contextmanager
def side_by_side(names: list[str]) -> Iterator[list[Callable[[str], Any]]]:
    """For each name a function that writes its text: in columns in a terminal, else in turn."""
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    console = Console(markup=False, highlight=False)
    texts = [Text() for _ in names]
    table = Table(*names, expand=True)
    table.add_row(*texts)
    with Live(table, console=console) if console.is_terminal else nullcontext():
        yield [text.append for text in texts]
    if not console.is_terminal:
        _write("".join(f"{name}:\n{text.plain}\n" for name, text in zip(names, texts, strict=True)))


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _note(text: str) -> None:
    sys.stderr.write(f"{text}\n")
