"""`rosa push FOLDER REPO`: an adapter or a model to the Hugging Face Hub, private by default."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rosa.cli.parser import Parser
from rosa.common.formatting import format_bytes
from rosa.errors import RosaError


def build_parser() -> Parser:
    """The options of `rosa push`."""
    parser = Parser(
        prog="rosa push",
        description="Push an adapter or a model to the Hugging Face Hub, with the token of "
        "`hf auth login` or HF_TOKEN. Folders in it (checkpoints, results) and hidden files stay.",
    )
    add = parser.add_argument
    add("folder", type=str, help="folder of an adapter or a model")
    add("repo", type=str, help="name on the hub, such as me/my-adapter; made if it is not there")
    add("--dry_run", action="store_true", help="list the files and their sizes, and do no more")
    add("--public", action="store_true", help="make the repository public; default: private")
    add(
        "--base_model",
        type=str | None,
        help="hub id of an adapter's base model, where it was trained on a local folder",
    )
    return parser


def run(args: Any) -> None:
    """Lists what goes to the hub, and puts it there; raises `RosaError` on bad input."""
    from rosa.models.hub_upload import files_to_push, push_files

    folder = Path(args.folder)
    if not folder.is_dir():
        raise RosaError(f"there is no folder {folder}; give the folder of an adapter or a model")
    files = files_to_push(folder, args.repo, args.base_model)
    sizes = {
        name: len(content) if isinstance(content, bytes) else content.stat().st_size
        for name, content in files.items()
    }
    lines = [f"{format_bytes(size):>10}  {name}" for name, size in sizes.items()]
    total = f"{format_bytes(sum(sizes.values())):>10}  in {len(files)} files"
    sys.stdout.write("\n".join([*lines, total]) + "\n")
    if args.dry_run:
        sys.stdout.write("nothing was pushed (--dry_run)\n")
        return
    url, is_private = push_files(files, args.repo, public=args.public)
    sys.stdout.write(f"pushed to {url} ({'private' if is_private else 'public'})\n")
