# One target a job; each makes .venv by itself. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tiny models run 20 times slower when threads fight over two cores.
export OMP_NUM_THREADS ?= 1

.PHONY: help train test test-fast fuzz check format tiny-vlm tiny-vlm-tools bench wheel clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,demo]'
	touch $@

train: $(VENV)/.base ## GRPO from the embedded tiny model, a few minutes on two cores; RUN="seed=1 name=s1" adds options
	OMP_NUM_THREADS=2 $(BIN)/mmreason train $(RUN)

test: $(VENV)/.dev ## all tests, two at a time
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: $(VENV)/.dev ## the tests that need no minutes and no browser
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not browser"

fuzz: $(VENV)/.dev ## property tests with examples that no run has tried
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not browser" --hypothesis-profile search

# The top-level packages are installed inside mmreason, which mypy does not see in a checkout: a tree of links shows it.
TYPES := build/types/mmreason
check: $(VENV)/.dev ## ruff lint and format, strict types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/types && mkdir -p $(TYPES)
	cd $(TYPES) && ln -s ../../../mmreason/* . && for p in rewards tools data conf; do ln -s ../../../$$p $$p; done
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p mmreason

format: $(VENV)/.dev ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tiny-vlm: $(VENV)/.base ## retrain the embedded model from random weights (about an hour) into runs/tiny_vlm/final
	OMP_NUM_THREADS=1 $(BIN)/mmreason sft recipe=tiny_vlm name=tiny_vlm trainer.num_threads=1 resume=auto

tiny-vlm-tools: $(VENV)/.base ## teach the embedded model its tools (about an hour) into runs/tiny_tools/final
	OMP_NUM_THREADS=1 $(BIN)/mmreason train recipe=tiny_tools name=tiny_tools trainer.num_threads=1 resume=auto

bench: $(VENV)/.dev ## ours beside stock TRL: where a step's time goes, what sharing prompts saves, rewards per second
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.prompt_once
	$(BIN)/python -m benchmarks.rewards
	$(BIN)/python -m benchmarks.perception
	$(BIN)/python -m benchmarks.agent

wheel: $(VENV)/.dev ## build the wheel into dist/
	rm -rf dist build/lib && $(BIN)/python -m build --wheel --outdir dist .

clean: ## remove build products, keep .venv and runs
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
