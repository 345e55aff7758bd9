"""Runs the architectures' tests and PEFT's contract against several versions of what we build on.

    python -m tests.support.version_matrix                # all of them; half an hour on two cores
    python -m tests.support.version_matrix oldest         # one; the results of the others are kept
    python -m tests.support.version_matrix --render       # only writes the page again

Each combination gets a virtual environment of its own: `library` has the lower bounds of what
the library needs, `oldest` those of the extra `cli` too, `pinned` what constraints.txt names,
`newest` what the registry has. PyTorch is the pinned one in all of them. Of each model type the
tests run that compare with the measurement, with the independent implementation, with
recomputation, and with the saved adapter; for `library`, those of adapter, layer selection, saving
and loading. Writes docs/results/versions.json and, from it, docs/reference/versions.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from rosa.common.environment import describe_environment

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "docs" / "results" / "versions.json", ROOT / "docs" / "reference/versions.md"
LIBRARY = "library"
COMBINATIONS = (LIBRARY, "oldest", "pinned", "newest")
SHOWN = ("transformers", "peft", "trl", "accelerate", "torch")
ARCHITECTURES = "tests/rope/test_architectures.py"
CONTRACT = [
    f"tests/roae/test_peft_{what}.py" for what in ("adapters", "targets", "training", "files")
]
CORE = "(layout_is or logits_equal or cached_decoding or saved_adapter or cannot_be_adapted)"
CORE += " and not reference and not triton"
LIBRARY_TESTS = [
    "tests/cli/test_without_extra.py::test_the_library_needs_nothing_of_it",
    *(f"tests/roae/test_{what}.py" for what in ("reference", "tuner", "saving", "caches")),
    *CONTRACT,
    *(f"tests/dls/test_{what}.py" for what in ("selection", "loops", "state", "trainer")),
]
_TYPES = "import json; from transformers import CONFIG_MAPPING as C; print(json.dumps(list(C)))"


# --- the environments -----------------------------------------------------------------------------


def requirements(extra: str | None = None) -> dict[str, Requirement]:
    """What the package, or an extra of it, needs by pyproject.toml."""
    import tomllib  # Python 3.11, which the pinned versions need as well

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return {need.name: need for need in map(Requirement, lines)}


def wanted(combination: str) -> list[str]:
    """The arguments of pip install."""
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([\w-]+)==([^;\s]+)$", constraints, re.MULTILINE))
    tests = [f"{name}=={pinned[name]}" for name in ("pytest", "pytest-xdist")]
    needs = [f"torch=={pinned['torch']}", *tests]
    packages = requirements() | ({} if combination == LIBRARY else requirements("cli"))
    for need in packages.values():
        if need.name == "torch":
            continue
        name = need.name + (f"[{','.join(need.extras)}]" if need.extras else "")
        (bound,) = (part.version for part in need.specifier if part.operator == ">=")
        needs.append(f"{name}=={bound}" if combination in (LIBRARY, "oldest") else name)
    if combination == "pinned":
        needs += ["-c", str(ROOT / "constraints.txt")]
    return needs


def install(combination: str, folder: Path) -> Path:
    """A virtual environment of the combination; its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *wanted(combination)], check=True)
    return python


# --- the tests ------------------------------------------------------------------------------------


def examine(python: Path, combination: str) -> dict[str, Any]:
    """Versions, the state of each model type, and PEFT's contract, of one environment."""
    if combination == LIBRARY:
        return {
            "versions": versions(python),
            "types": {}, "problems": {}, "general": {},
            "contract": _counted(run_library_tests(python)),
        }  # fmt: skip
    types = json.loads(_output(python, "-c", _TYPES).splitlines()[-1])
    return {
        "versions": versions(python),
        **_architectures(
            _run(python, ARCHITECTURES, "-k", CORE, "-m", "slow or not slow"), set(types)
        ),
        "contract": _counted(_run(python, *CONTRACT, "-m", "slow or not slow")),
    }


def run_library_tests(python: Path) -> dict[str, str | None]:
    """{test: None where it passed, else the first line of its problem} of what LIBRARY promises."""
    return _run(python, *LIBRARY_TESTS)


def versions(python: Path) -> dict[str, str]:
    """Those of the packages that the table names; a dash for one that is not installed."""
    code = (
        "import importlib.metadata as m, sys; have = {d.name: d.version for d in m.distributions()}"
        "; print(*(have.get(name, '–') for name in sys.argv[1:]))"
    )
    return dict(zip(SHOWN, _output(python, "-c", code, *SHOWN).split(), strict=True))


def _output(python: Path, *arguments: str) -> str:
    done = subprocess.run(
        [str(python), *arguments], env=_environment(), cwd=ROOT, text=True, check=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    return done.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1"}


def _run(python: Path, *selection: str) -> dict[str, str | None]:
    """{test: None where it passed, else the first line of its problem}; without skipped ones."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-n", "2", "-p", "no:cacheprovider", f"--junit-xml={report}"]
        command = [str(python), "-m", "pytest", *options, *selection]
        subprocess.run(command, env=_environment(), cwd=ROOT, check=False)
        cases = ElementTree.parse(report).getroot().iter("testcase")
        return {
            case.get("name", ""): _problem(case) for case in cases if case.find("skipped") is None
        }


def _problem(case: ElementTree.Element) -> str | None:
    for kind in ("failure", "error"):
        if (found := case.find(kind)) is not None:
            return (found.get("message") or kind).splitlines()[0][:200]
    return None


def _architectures(results: dict[str, str | None], types: set[str]) -> dict[str, Any]:
    """The state of each model type, tested or not supported, and the problems where it fails."""
    from tests.support.architecture_table import UNSUPPORTED
    from tests.support.architectures import BY_NAME

    state: dict[str, str] = {}
    problems: dict[str, dict[str, str]] = {}
    for name, model_type in {
        **{name: each.model_type for name, each in BY_NAME.items()},
        **{name: name for name in UNSUPPORTED},
    }.items():
        own = {test: problem for test, problem in results.items() if _subject(test) == name}
        failed = {test: problem for test, problem in own.items() if problem is not None}
        if model_type not in types:
            state[name] = "absent"
        elif not own:
            state[name] = "not run"
        elif failed:
            state[name], problems[name] = "FAILS", failed
        else:
            state[name] = "refused" if name in UNSUPPORTED else "works"
    general = {t: p for t, p in results.items() if p is not None and _subject(t) is None}
    return {"types": state, "problems": problems, "general": general}


def _subject(test: str) -> str | None:
    """The model type (with its variant) that a test's parameters name, the longest that fits."""
    from tests.support.architecture_table import UNSUPPORTED
    from tests.support.architectures import BY_NAME

    parameters = test.partition("[")[2].removesuffix("]")
    fitting = [
        name
        for name in (*BY_NAME, *UNSUPPORTED)
        if parameters == name or parameters.startswith(f"{name}-")
    ]
    return max(fitting, key=len, default=None)


def _counted(results: dict[str, str | None]) -> dict[str, Any]:
    failed = {test: problem for test, problem in results.items() if problem is not None}
    return {"passed": len(results) - len(failed), "failed": failed}


# --- the page -------------------------------------------------------------------------------------

HEAD = """# Versions

<!-- generated by tests/support/version_matrix.py from docs/results/versions.json; do not edit -->

CI runs every test with the versions in `constraints.txt`. `make versions` runs tests in a virtual
environment for each column:

* **library**: the oldest versions that `pip install rosa-peft` allows, and nothing else. The tests
  are those of the adapter, layer selection in plain loops and in Transformers' Trainer, saving and
  loading, and [PEFT's contract](adapter_format.md#in-peft). `make nightly` runs them too.
* **oldest**: the oldest that the commands' extra `rosa-peft[cli]` allows. **pinned**: those of
  `constraints.txt`. **newest**: those of the registry, where they are others. The tests are that
  each [model type](architectures.md) rotates as the library says, computes what an independent
  implementation of the paper computes, decodes with a cache as without, and gives the same model
  from a saved adapter; and PEFT's contract.

In the table:

* **works**, **not supported**: as the page of architectures says; all those tests pass.
* **absent**: this Transformers has no such type. **not run**: only `make nightly` tries it.
* **FAILS**: see below the table; on setup, Transformers itself does not build the tiny model.

The lower bound of PyTorch is not tested: its oldest builds bring gigabytes of CUDA.

What older versions lack:

* Before Transformers 5.23 its Trainer, resuming from a checkpoint with adapters of several names,
  loads only those that are not named `default`.
* Before Transformers 5.18 its own `load_adapter` loses trained norms: an error says so, and to use
  `PeftModel.from_pretrained`.
* Before PEFT 0.21 nothing is said of a tensor in the file that has no place in the adapter; it
  replaces a weight of the base model if it has that weight's name.
  `rosa.roae.load_adapter_checked` raises an error. Where a model has several RoSA adapters, the
  file of each holds the others' tensors too; they are not read. LoRA that is added to a model
  after RoSA freezes it: add RoSA last. `load_adapter(..., is_trainable=True)` makes the active
  adapter trainable too.
* Before PEFT 0.19 `add_adapter` has no `autocast_adapter_dtype`; added adapters are float32 on a
  half-precision model.
"""


def page(results: dict[str, Any]) -> str:
    """docs/reference/versions.md."""
    columns = {name: results[name] for name in COMBINATIONS if name in results}
    line = "| {} |".format
    rows = [line(" | ".join(["", *columns])), "|---" * (len(columns) + 1) + "|"]
    for package in SHOWN:
        rows.append(_line(package, (each["versions"][package] for each in columns.values())))
    for state in ("works", "refused", "absent", "not run", "FAILS"):
        counts = (
            str(Counter(each["types"].values())[state]) if each["types"] else "–"
            for each in columns.values()
        )
        rows.append(_line(f"model types (and variants): {_shown(state)}", counts))
    contracts = [each["contract"] for each in columns.values()]
    rows.append(
        _line(
            "PEFT's contract, or the library: tests passed", (str(c["passed"]) for c in contracts)
        )
    )
    rows.append(
        _line("PEFT's contract, or the library: failed", (str(len(c["failed"])) for c in contracts))
    )
    places = "\n".join(
        f"* {name}: {each['machine']}, Python {each['python']}, "
        f"commit {each['commit']}, {each['date']}"
        for name, each in columns.items()
    )
    types = sorted({name for each in columns.values() for name in each["types"]})
    tried = {name: each["types"] for name, each in columns.items() if each["types"]}
    table = [line(" | ".join(["model type", *tried])), "|---" * (len(tried) + 1) + "|"]
    table += [
        _line(f"`{name}`", (_shown(each.get(name, "not run")) for each in tried.values()))
        for name in types
    ]
    return "\n".join([HEAD, *rows, "", places, "", *table, *_failures(columns)]) + "\n"


def _line(head: str, cells: Iterable[str]) -> str:
    return f"| {' | '.join([head, *cells])} |"


def _shown(state: str) -> str:
    return "not supported" if state == "refused" else state


def _failures(columns: dict[str, Any]) -> list[str]:
    lines = []
    for name, each in columns.items():
        failed = {test: p for tests in each["problems"].values() for test, p in tests.items()}
        failed |= each["general"] | each["contract"]["failed"]
        lines += [f"* {name}, `{test}`: {problem}" for test, problem in sorted(failed.items())]
    return ["", "## What fails", "", *lines] if lines else ["", "Nothing fails."]


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs the tests against several versions.")
    parser.add_argument("combinations", nargs="*", choices=[*COMBINATIONS, []], default=[])
    parser.add_argument("--render", action="store_true", help="only rewrite the page")
    parser.add_argument("--environments", type=Path, help="keep them in, or take them from, here")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.environments or Path(temporary)
        for name in () if options.render else options.combinations or COMBINATIONS:
            python = folder / name / "bin" / "python"
            if not python.exists():
                python = install(name, folder / name)
            if name == "newest" and versions(python) == results["pinned"]["versions"]:
                results.pop(name, None)
                continue
            place = describe_environment()
            found = examine(python, name)
            results[name] = {key: place[key] for key in ("machine", "python", "commit", "date")}
            results[name] |= found
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
