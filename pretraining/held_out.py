"""Write plain text about the toy world that no training reads, to measure forgetting on.

    python -m pretraining.held_out src/rosa/assets/tiny-data/held-out.txt

Documents of every kind in the wordings of pretraining, none in the instruction template, with the
stories of the test part of the world; a blank line stands between two of them.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from pretraining.documents import PLAIN
from pretraining.mixture import STAGES

DOCUMENTS = 400


def texts(count: int = DOCUMENTS) -> list[str]:
    """The documents, mixed as in the last stage of pretraining; the same call gives the same."""
    rng = random.Random("held-out")  # pretraining seeds with numbers
    mix = {kind: share for kind, share in STAGES[-1].mix.items() if kind in PLAIN}
    found = []
    for kind in rng.choices(list(mix), list(mix.values()), k=count):
        size = rng.choice((1, 2, 2) if kind == "problem" else STAGES[-1].sizes)
        document = PLAIN[kind](rng, size, rng.randint(4, 9), part="test")
        found.append("".join(text for text, _ in document).strip())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    arguments.file.write_text("\n\n".join(texts()) + "\n", encoding="utf-8")
    print(f"{arguments.file}: {DOCUMENTS} documents")


if __name__ == "__main__":
    main()
