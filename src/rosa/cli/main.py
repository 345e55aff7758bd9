"""`rosa COMMAND ...`: runs the command's module and prints a user's mistake as one sentence.

A command module has two functions: `build_parser()` returns a `rosa.cli.parser.Parser`, and
`run(args)` does the work and returns an exit code or None.
"""

from __future__ import annotations

import codecs
import importlib.util
import io
import locale
import logging
import os
import sys
import warnings
from typing import Any

from rosa.errors import RosaError, did_you_mean, one_line

COMMANDS = {
    "demo": "fine-tune the embedded model with RoSA and score it before and after",
    "train": "fine-tune a model from a recipe",
    "chat": "talk to a model or an adapter, in a terminal or a script",
    "evaluate": "score a model or an adapter on benchmarks",
    "compare": "train and score a grid of methods, models, data and seeds",
    "reproduce": "run a table or figure of the paper, at its scale or on the toy model",
    "tables": "print a study's tables, or the paper's: text, Markdown, LaTeX, CSV",
    "report": "write a study's report.html: tables, plots, layer maps, every example",
    "plot": "draw which layers a run chose, how often, and their scores",
    "inspect": "draw how strong a model's queries and keys are, and what an adapter does",
    "params": "count the trainable parameters of each method, without loading weights",
    "export": "write an adapter and its base as one model that needs Transformers alone",
    "push": "put an adapter or a model on the Hugging Face Hub",
    "convert": "turn a GGUF file into a Hugging Face model folder",
}
# What the extra "cli" brings, by the names that are imported.
NEEDED = (
    "datasets", "jinja2", "jsonargparse", "matplotlib", "numpy", "psutil", "rich", "scipy",
    "tensorboard", "trl", "yaml",
)  # fmt: skip
EXIT_UNEXPECTED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
TRACEBACK = "ROSA_TRACEBACK"


def usage() -> str:
    """The text of `rosa --help`."""
    lines = [f"  {name:<9}  {what}" for name, what in COMMANDS.items()]
    head = ["usage: rosa COMMAND ...", "       rosa --version", ""]
    return "\n".join([*head, *lines, "", "Options of a command: rosa COMMAND --help"])


def main(argv: list[str] | None = None) -> int:
    """Entry point of `rosa`; returns the exit code: 0, 1 unexpected, 2 bad input, 130 Ctrl-C."""
    if argv is None:
        _restart_in_utf8()
        argv = sys.argv[1:]
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage() + "\n")
        return 0
    if argv[0] in ("-V", "--version"):
        import rosa

        sys.stdout.write(f"rosa {rosa.__version__}\n")
        return 0
    command, rest = argv[0], argv[1:]
    for stream in (sys.stdout, sys.stderr):  # terminals that cannot print "…"
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            return _run(command, rest)
    except RosaError as error:
        _complain(f"rosa {command}: {error}")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        _complain(f"rosa {command}: interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `rosa ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        reason = one_line(error)
        _complain(
            f"rosa {command}: unexpected {type(error).__name__}: {reason} "
            f"({TRACEBACK}=1 shows the traceback; if your input is right, please report it)"
        )
        return EXIT_UNEXPECTED


def _run(command: str, rest: list[str]) -> int:
    if command not in COMMANDS:
        raise RosaError(
            f"there is no such command{did_you_mean(command, COMMANDS)}; "
            f"the commands are {', '.join(COMMANDS)}"
        )
    missing = [name for name in NEEDED if not _is_installed(name)]
    if missing:
        raise RosaError(
            f"the commands need {', '.join(missing)}; run: pip install 'rosa-peft[cli]'"
        )
    # It logs missing kernels, and the precision of its 8-bit layers.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    module = importlib.import_module(f"rosa.cli.{command}")
    args = module.build_parser().parse_args(rest)
    if os.environ.get("ROSA_OPS"):  # before a model is loaded or a folder is taken
        from rosa.ops.variants import check_environment

        check_environment()
    return module.run(args) or 0


def _restart_in_utf8() -> None:
    """Restarts this process in Python's UTF-8 mode if the locale is ASCII (LC_ALL=C, PYTHONUTF8=0).

    PyTorch and TRL read files of their own in the locale's encoding, which fails there.
    """
    is_ascii = codecs.lookup(locale.getpreferredencoding(False)).name == "ascii"
    if is_ascii and os.name == "posix" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _is_installed(name: str) -> bool:
    if name in sys.modules:
        return sys.modules[name] is not None
    return importlib.util.find_spec(name) is not None


def _warn(message: Warning | str, *_where: Any, **_more: Any) -> None:
    """Prints a warning without the line of code that raised it."""
    sys.stderr.write(f"warning: {' '.join(str(message).split())}\n")


def _complain(message: str) -> None:
    sys.stderr.write(message + "\n")
