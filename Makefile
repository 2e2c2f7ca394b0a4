PYTHON ?= python3
BIN := .venv/bin
# Where `make bake` puts the project, and more words for cookiecutter: make bake OUT=.. ARGS="--no-input"
OUT ?= build
ARGS ?=
# Answers that are drawn at random, of each kind.
NUM_EXAMPLES ?= 20
# Variables of this Makefile must not reach the generated one, which would pass them on to `train`.
MAKEOVERRIDES :=
SUDO ?= $(shell test "$$(id -u)" = 0 || echo sudo)

.DEFAULT_GOAL := help
.PHONY: help demo bake check test test-template test-project test-all test-latest session tools pictures benchmarks clean

help: ## show what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else \
		"error: Python 3.11 to 3.13 is needed, but $(PYTHON) is %d.%d: give another, as PYTHON=python3.13" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $@

demo: .venv/ready ## generate a project in build/, install it, train it and export a verified bundle
	rm -rf build/digit-classifier
	$(BIN)/cookiecutter . --no-input --output-dir build
	$(MAKE) -C build/digit-classifier PYTHON=$(PYTHON) ARGS= setup train export
	@echo
	@echo "The verified bundle is in build/digit-classifier/artifacts/digit_classifier/1: read its README.md, the model card."
	@echo "next: make bake OUT=..   asks you some questions and generates a project of your own beside this folder"

bake: .venv/ready ## answer the questions and generate a project in OUT (default: build)
	$(BIN)/cookiecutter . --output-dir $(OUT) $(ARGS)

check: .venv/ready ## lint and format check of the template
	$(BIN)/ruff check --config ruff.toml
	$(BIN)/ruff format --check --config ruff.toml

test: test-template test-project ## all that must pass before a change is merged: test-template and test-project

test-template: .venv/ready ## what needs no install: rules, generated projects of all answers, refusals, updates
	NUM_EXAMPLES=$(NUM_EXAMPLES) $(BIN)/python -m pytest -n 2 --ignore=tests/test_project.py $(ARGS)

test-project: .venv/ready ## a generated project's own tests and those of the engine, in an environment that its Makefile makes
	$(BIN)/python -m pytest -m "not story" tests/test_project.py $(ARGS)

test-all: NUM_EXAMPLES = 100
test-all: test-template ## all tests: also all sessions but peers, each case of strategies, exports and serving, and the README in a fresh clone
	$(BIN)/python tools/sessions.py vision tensorboard wandb mlflow latest hydra executorch schemathesis kserve
	EXECUTORCH_PYTHON="$(CURDIR)/build/executorch/bin/python" \
	KSERVE_PYTHON="$(CURDIR)/build/kserve/bin/python" \
	SCHEMATHESIS="$(CURDIR)/build/schemathesis/bin/schemathesis" $(BIN)/python -m pytest tests/test_project.py $(ARGS)

test-latest: .venv/ready ## tests with the newest releases of all dependencies, and with the release candidate of Hydra 1.4
	$(BIN)/python tools/sessions.py latest hydra

session: .venv/ready ## an environment of its own and the tests that need it: make session NAME=vision (NAME= lists them)
	$(BIN)/python tools/sessions.py $(NAME)

tools: ## install nginx, wrk and Chromium (packages of Debian), which tests and benchmarks of the server need
	$(SUDO) apt-get install --yes --no-install-recommends nginx wrk chromium chromium-driver

pictures: .venv/ready ## make the pictures of the READMEs from real runs; it needs Chromium (make tools)
	$(BIN)/python tools/pictures.py

benchmarks: .venv/ready ## measure everything and write the tables of docs/benchmarks.md, or some: ARGS="training serving"
	$(BIN)/python tools/benchmarks.py $(ARGS)

clean: ## remove what the commands above made
	rm -rf build .venv .hypothesis .pytest_cache .ruff_cache
