# Every target goes from a bare clone to its end: it makes .venv, builds, installs, then does its job.
# Needed: Python 3.11 or newer with its headers and venv, a C compiler, make.

# Each candidate is run, not only looked up: a pyenv shim exists for versions that cannot start.
PYTHON ?= $(shell for p in python3.15 python3.14 python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& { echo $$p; break; }; done)

# Appended to the command line of pytest: make test ARGS='-k softmax -x'
ARGS ?=

BIN := .venv/bin
KERNELS := fastgrad/_kernels
CSRC := $(wildcard $(KERNELS)/csrc/*.[ch])
SOURCES := setup.py pyproject.toml $(wildcard $(KERNELS)/*.pyx $(KERNELS)/*.pxd) $(CSRC)
PIP := $(BIN)/python -Im pip install --quiet --disable-pip-version-check
# -I keeps the root off sys.path: from there repl/ would be importable as top-level `repl`.
PYTEST := $(BIN)/python -Im pytest

# The suite on so many threads.  On one, processor time: what else runs then matters less.
SUITE = mkdir -p .benchmarks && BENCH_THREADS=$(1) $(PYTEST) benchmarks -q \
	$(if $(filter 1,$(1)),--benchmark-timer=time.process_time) --benchmark-max-time=0.2 --benchmark-min-rounds=3 \
	--benchmark-columns=median,iqr,rounds --benchmark-json=.benchmarks/speed-$(1).json $(2)

.DEFAULT_GOAL := help
# Two pip runs in one environment at once break it.
.NOTPARALLEL:
.PHONY: help demo test lint types format bench bench-quick report fuzz clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile | expand -t 13

demo: .venv/.extra-demo ## fit handwritten digits with fastgrad and show what it does
	$(BIN)/fastgrad demo

test: .venv/.extra-test ## run the whole test suite
	$(PYTEST) -q -n auto $(ARGS)

lint: .venv/.extra-lint types ## check format, style and types; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint $(KERNELS) # it looks for pycodestyle on PATH
	$(if $(CSRC),$(BIN)/clang-format --dry-run --Werror $(CSRC))

# mypy cannot follow the import hook of an editable install, so it gets fastgrad as it is installed,
# with repl/ inside, made of links.
types: .venv/.extra-lint ## check types alone
	@rm -rf .venv/tree && mkdir -p .venv/tree/fastgrad
	@ln -s $(CURDIR)/fastgrad/* .venv/tree/fastgrad/ && ln -s $(CURDIR)/repl .venv/tree/fastgrad/repl
	cd .venv/tree && ../bin/mypy --config-file $(CURDIR)/pyproject.toml \
		--cache-dir $(CURDIR)/.mypy_cache -p fastgrad

format: .venv/.extra-lint ## rewrite Python and C in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(if $(CSRC),$(BIN)/clang-format -i $(CSRC))

bench: .venv/.extra-bench .venv/.extra-peers ## measure every case beside all peers: 20 minutes
	$(call SUITE,1,$(ARGS))
	$(call SUITE,2,$(ARGS))
	$(BIN)/python -m benchmarks report

bench-quick: .venv/.extra-bench .venv/.extra-peers ## measure a subset on one thread: 2 minutes
	$(call SUITE,1,-m quick $(ARGS))

# A missed bar is a result here, not an error: hence the dashes.
report: .venv/.extra-bench .venv/.extra-peers ## measure briefly, and make README's figures: 10 minutes
	$(BIN)/python -m benchmarks limit
	-$(BIN)/python -m benchmarks accuracy
	-$(BIN)/python -m benchmarks bars --quick
	$(BIN)/python -m benchmarks scaling --quick
	$(call SUITE,1,-m quick)
	$(BIN)/python -m benchmarks report --readme

fuzz: .venv/.extra-test ## search at random for failures, for minutes
	$(PYTEST) -q -m fuzz $(ARGS)

clean: ## remove .venv and everything built
	rm -rf .venv build dist *.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -f $(KERNELS)/*.so $(patsubst %.pyx,%.c,$(wildcard $(KERNELS)/*.pyx))
	find fastgrad repl tests -name __pycache__ -prune -exec rm -rf {} +

.venv/.made:
	@test -n "$(PYTHON)" || { echo "fastgrad needs Python 3.11 or newer with its venv module; found" \
		"none of python3.15, python3.14, python3.13, python3.12, python3.11, python3. Give one: make PYTHON=/path/to/python3" \
		>&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	@touch $@

# Lenient editable: works from the root and from outside. Its .so files lie beside the .pyx.
.venv/.built: .venv/.made $(SOURCES)
	@echo "building fastgrad"
	@$(PIP) -e .
	@touch $@

# PyPI's torch for Linux brings gigabytes of CUDA; this index has builds without, which count as newer.
.venv/.extra-peers: PIP += --extra-index-url https://download.pytorch.org/whl/cpu

# By name: the editable fastgrad already satisfies it, so pip adds the extra and does not build again.
.venv/.extra-%: .venv/.built
	@echo "installing what '$*' needs"
	@$(PIP) 'fastgrad[$*]'
	@touch $@
