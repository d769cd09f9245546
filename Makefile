# `make infer` shows everything, `make test` checks it in minutes, `make test-all` in full, and
# `make test-long` tries every fault that `test-all` draws from. Each makes .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := .ci/install
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
TORCHVISION := $(shell sed -n 's/^torchvision==//p' constraints.txt)

# Else every process of the tests would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: infer test test-all test-long docs kernels venv lint clean

infer: .venv/installed
	$(BIN)/photozhpc infer --survey roman-sim

# Files stay whole (their fixtures are shared) and in this order: the long ones come first.
PYTEST := $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder

test: lint kernels
	$(PYTEST) -n 2 tests/pipeline tests/unit

# Also what needs Slurm, a browser, an S3 server, kills of processes; these mostly wait.
test-all: test
	$(PYTEST) -n 3 tests/system

test-long: venv
	$(PYTEST) -n 3 -m 'slow or not slow' tests/system

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# The documentation site, in build/site. The variable silences an advertisement for a successor.
docs: venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open build/site/index.html; to search it: python3 -m http.server --directory build/site"

venv: .venv/installed-dev

# With an NVIDIA driver pip's default CUDA build is right. Without one a CPU build is asked for by
# name, so that pip cannot fall back on gigabytes of CUDA: first from wherever this machine's pip
# looks, then from PyTorch's own index.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@if [ "$$(uname -s)" != Linux ] || nvidia-smi -L >/dev/null 2>&1; then \
	    $(INSTALL) torch torchvision; \
	else \
	    $(INSTALL) 'torch==$(TORCH)+cpu' torchvision 2>/dev/null || \
	    $(INSTALL) --index-url https://download.pytorch.org/whl/cpu \
	        'torch==$(TORCH)+cpu' 'torchvision==$(TORCHVISION)+cpu'; \
	fi
	$(INSTALL) -e .
	@touch $@

.venv/installed-dev: .venv/installed
	$(INSTALL) -e '.[dev]'
	@touch $@

kernels: .venv/kernels

.venv/kernels: .venv/installed-dev
	$(BIN)/python tests/compile_kernels.py
	@touch $@

clean:
	rm -rf .venv out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
