# `make demo` shows what augury does, `make test` checks it; both install what they need into .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV     := $(BIN)/uv
STAMP  := $(VENV)/.installed

PARTS     := core train lab authoring cli $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
TESTS     := core train lab authoring cli plugins system fuzz
MANIFESTS := pyproject.toml $(PARTS:%=%/pyproject.toml)
EDITABLE  := $(PARTS:%=-e ./%) -e '.[dev]'
# Twenty images of each class, so that the table shows differences.
DEMO      := compare --dataset digits --model resnet20_cifar --with-each isda,dcutmix,agmax,resmooth \
             --with resmooth+dcutmix+isda+agmax --seeds 3 --jobs 2 --set data.images_per_class=20 \
             --set "data.augmented=crop:1 cutout:3" --set optim.batch_size=50 --set optim.epochs=40 \
             --set optim.lr=0.03 --set schedule.warmup_epochs=5 --output demo

# Extra arguments for pytest: make unit PYTEST_ARGS="-k isda -x"
PYTEST_ARGS ?=
# And for the soak: make soak SOAK_ARGS="--runs 20 --first 300"
SOAK_ARGS ?=
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# Where Python may not keep its bytecode, every start would compile torch and all it brings anew: 15 s instead of 5.
COMPILE := $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode)

# uv never fetches a Python of its own, and waits for large wheels on slow lines.
export UV_PYTHON_DOWNLOADS = never
export UV_HTTP_TIMEOUT ?= 300

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install demo test test-all $(TESTS:%=test-%) lint format types layers unit fuzz soak bench docs recipes networks docs-check wheels constraints clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{ printf "make %-12s %s\n", $$1, $$2 }'
	@echo "make test-core    the tests of one part; likewise $(wordlist 2,9,$(TESTS:%=test-%))"

install: $(STAMP) ## augury, its methods and the developers' tools in .venv (PYTHON=python3.12 picks the Python)

$(STAMP): $(MANIFESTS) constraints.txt | $(UV)
	@echo "== install"
	$(UV) pip install --python $(BIN)/python $(COMPILE) -c constraints.txt --build-constraints constraints.txt $(EDITABLE)
	@touch $@

# A venv that could not be completed is removed, so that the next try starts afresh.
$(UV):
	@echo "== $(VENV) and uv"
	@test -x $(BIN)/python || command -v $(PYTHON) >/dev/null || { \
	  echo "make: no '$(PYTHON)' here. Install Python 3.11 or newer, or name yours: make install PYTHON=python3.12" >&2; exit 1; }
	@py=$(BIN)/python; test -x $$py || py=$(PYTHON); \
	  $$py -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $$py is $$($$py -V 2>&1), augury needs Python 3.11 or newer. Name one: make install PYTHON=python3.12" >&2; \
	  test $$py = $(PYTHON) || echo "make: remove the old $(VENV) first: rm -r $(VENV)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "make: '$(PYTHON) -m venv' failed, see above. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null 2>&1 || { \
	  echo "make: $(VENV) has no pip and no ensurepip. Debian and Ubuntu: apt install python3-venv; then rm -r $(VENV)" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv

demo: install ## the main job on real images: baseline, each method and a composition, compared on the digits
	$(BIN)/augury $(DEMO)
	$(BIN)/augury report demo

test: install lint types layers unit ## lint, types, import layers and the tests: what a change must pass

test-all: install lint types layers ## the same with the slow suites
	@echo "== pytest, slow suites too"
	$(PYTEST) -m "not gpu" $(PYTEST_ARGS)

lint: install ## ruff: rules and formatting
	@echo "== ruff check"
	$(BIN)/ruff check .
	@echo "== ruff format"
	$(BIN)/ruff format --check .

format: install ## rewrite the files as `make lint` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: install ## mypy on every package
	@echo "== mypy"
	$(BIN)/mypy

layers: install ## which package and module may import which
	@echo "== import layers"
	$(BIN)/lint-imports

$(TESTS:%=test-%): test-%: install
	@echo "== pytest tests/$*"
	$(PYTEST) tests/$* -m "not slow and not gpu" --augury-quick $(PYTEST_ARGS)

unit: install ## the tests alone
	@echo "== pytest"
	$(PYTEST) -m "not slow and not gpu" --augury-quick $(PYTEST_ARGS)

fuzz: install ## 10,000 hostile files and texts instead of the 300 of `make unit`, other ones each time (half an hour)
	@echo "== fuzzing"
	$(PYTEST) tests/fuzz --hypothesis-profile=fuzz --timeout=3600 $(PYTEST_ARGS)

soak: install ## 100 short runs, each killed at random moments, resumed, and compared with its undisturbed twin (10 minutes)
	@echo "== soak"
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m tests.soak $(SOAK_ARGS)

bench: install ## the table of ratios against plain implementations
	$(BIN)/python benchmarks/run.py

docs: install ## the documentation as a site, in site/; writes its pages of settings and hooks anew
	$(BIN)/python docs/settings.py
	$(BIN)/python docs/reference.py
	$(BIN)/python docs/build.py

recipes: install ## write the recipes of published runs anew, from the tables in plugins/*/published.py
	$(BIN)/python plugins/write_recipes.py

networks: install ## build timm's networks and ours once, and write the table that `augury backbones` reads (half an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore train/networks.py

docs-check: install ## run every command of the README and the guides, on small images
	@echo "== the guides' commands"
	$(PYTEST) tests/system/test_docs*.py tests/system/test_readme.py tests/system/test_tutorial.py $(PYTEST_ARGS)

wheels: install ## the wheels of all distributions, in dist/
	@for part in $(PARTS) .; do \
	  $(UV) build --wheel --no-build-isolation --python $(BIN)/python --out-dir dist $$part || exit 1; done

# The newest of everything in a venv that holds nothing else. The wheels that torch itself pins for its platform stay out.
constraints: $(UV) ## write constraints.txt anew, with the newest versions
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && \
	  $(UV) venv --quiet --python $(BIN)/python "$$fresh/venv" && \
	  $(UV) pip install --python "$$fresh/venv/bin/python" $(EDITABLE) uv && \
	  { echo "# Exact versions that augury is built and tested with. Written by: make constraints"; \
	    $(UV) pip freeze --python "$$fresh/venv/bin/python" --exclude-editable | grep -vE '^(nvidia-|cuda-|triton)'; \
	  } > "$$fresh/constraints.txt" && cp "$$fresh/constraints.txt" constraints.txt

clean: ## remove caches, wheels, the site and the demo's output; .venv stays
	rm -rf dist demo site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find core train lab authoring cli plugins tests benchmarks examples docs -name __pycache__ -type d -prune -exec rm -rf {} +
