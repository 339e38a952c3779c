PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DOCS := .venv/.docs
PARALLEL := --numprocesses 2 --dist loadfile --no-loadscope-reorder
TORCH := torch mpmath networkx setuptools sympy

.PHONY: help demo test test-all coverage lint types bench report docs wheel lock clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# pip does not compile the modules: if the first import did not keep the bytecode, each process would compile torch again.
unexport PYTHONDONTWRITEBYTECODE

# A current pip takes two thirds of the time of pip 23.2.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(INSTALLED) ## install, then train and compare all models on the default data
	$(BIN)/python -m arnn_lightning

test: $(INSTALLED) ## run the tests but the slow ones
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow'

test-all: $(INSTALLED) ## run all tests
	$(BIN)/python -m pytest $(PARALLEL)

coverage: $(INSTALLED) ## run the tests, and list the lines that none of them reaches
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PARALLEL)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: $(INSTALLED) ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED) ## check types
	$(BIN)/mypy

bench: $(INSTALLED) ## measure speed against reference implementations and the bare loop
	$(BIN)/python benchmarks/reference.py

RECORDED := experiments/results/recorded
RESTORED := outputs/recorded
REPORT := outputs/report/recorded

report: $(INSTALLED) ## Table 2 and the page of the recorded runs, and a picture of it where Chromium is installed
	rm -rf $(RESTORED)
	$(BIN)/python experiments/record.py restore $(RECORDED) $(RESTORED)
	$(BIN)/python -m arnn_lightning task=report runs=$(RESTORED) paths.data=$(RESTORED) hydra.run.dir=$(REPORT)
	! command -v chromium || chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1160,1500 \
		--screenshot=docs/report.png file://$(CURDIR)/$(REPORT)/report.html

$(DOCS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

docs: $(DOCS) ## build the documentation into site/; a broken link is an error
	$(BIN)/zensical build --clean --strict
	cp docs/*.md site/ # llms.txt lists these
	cp experiments/README.md site/experiments.md

wheel: $(INSTALLED) ## build sdist and wheel, and try the wheel in an empty environment and folder
	rm -rf build dist
	$(BIN)/python -m build --outdir dist .
	sh tests/try_wheel.sh dist/*.whl constraints.txt

lock: ## hash the versions of constraints.txt into requirements.lock (needs uv); torch is installed by itself
	echo "torch; sys_platform == 'none'" | uv pip compile pyproject.toml --extra serve --constraint constraints.txt \
		--override - --universal --generate-hashes --no-annotate --custom-compile-command 'make lock' --quiet \
		$(TORCH:%=--no-emit-package %) --output-file requirements.lock

clean: ## remove the environment and everything built
	rm -rf .venv build dist site .cache src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
