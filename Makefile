PYTHON ?= python3
BIN := .venv/bin
# Where `make bake` puts the project, and more words for cookiecutter: make bake OUT=.. ARGS="--no-input"
OUT ?= build
ARGS ?=
# Answers that are drawn at random, of each kind.
NUM_EXAMPLES ?= 20
SUDO ?= $(shell test "$$(id -u)" = 0 || echo sudo)

.DEFAULT_GOAL := help
.PHONY: help demo bake check test test-template test-project test-vision test-trackers test-latest test-all tools constraints executorch schemathesis peers clean

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

check: .venv/ready ## lint and format check of the template as it lies
	$(BIN)/ruff check --config ruff.toml
	$(BIN)/ruff format --check --config ruff.toml

test: test-template test-project ## what must pass before a change lands: both of the next

test-template: .venv/ready ## what needs no install: rules, generated projects of all answers, refusals, updates
	NUM_EXAMPLES=$(NUM_EXAMPLES) $(BIN)/python -m pytest -n 2 --ignore=tests/test_project.py $(ARGS)

test-project: .venv/ready ## the generated project's own tests, in an environment that its Makefile makes
	$(BIN)/python -m pytest -m "not story" tests/test_project.py $(ARGS)

test-vision: .venv/ready ## what a project with vision=true has more, in an environment of its own (6 GB)
	mkdir -p build/vision/digit-classifier
	find build/vision/digit-classifier -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +
	$(BIN)/cookiecutter . --no-input --overwrite-if-exists --output-dir build/vision vision=true git_init=false
	$(MAKE) -C build/vision/digit-classifier PYTHON=$(PYTHON) setup check
	$(MAKE) -C build/vision/digit-classifier test ARGS="tests/unit tests/integration/test_configs.py tests/integration/test_pairs.py tests/e2e/test_vision.py"

test-trackers: .venv/ready ## runs in TensorBoard, Weights & Biases (offline) and MLflow, in an environment for each
	for tracker in tensorboard wandb mlflow; do \
		mkdir -p build/trackers/$$tracker/digit-classifier && \
		find build/trackers/$$tracker/digit-classifier -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} + && \
		$(BIN)/cookiecutter . --no-input --overwrite-if-exists --output-dir build/trackers/$$tracker \
			tracking=$$tracker git_init=false && \
		$(MAKE) -C build/trackers/$$tracker/digit-classifier PYTHON=$(PYTHON) setup && \
		$(MAKE) -C build/trackers/$$tracker/digit-classifier test \
			ARGS="tests/e2e/test_$$tracker.py tests/integration/test_configs.py" || exit 1; \
	done

test-latest: .venv/ready ## the newest releases that a project allows, and with them the way from training to serving
	mkdir -p build/latest/digit-classifier
	find build/latest/digit-classifier -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +
	$(BIN)/cookiecutter . --no-input --overwrite-if-exists --output-dir build/latest git_init=false
	$(PYTHON) -m venv build/latest/digit-classifier/.venv
	cd build/latest/digit-classifier && .venv/bin/python -m pip install --quiet --upgrade pip && \
		.venv/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager -e . --group dev --group serve && \
		touch .venv/ready
	$(MAKE) -C build/latest/digit-classifier ARGS= check train export
	$(MAKE) -C build/latest/digit-classifier test ARGS="--ignore=tests/unit/test_constraints.py \
		tests/unit tests/integration tests/e2e/test_commands.py tests/e2e/test_serve.py"

test-all: NUM_EXAMPLES = 100
test-all: test-template test-vision test-trackers test-latest executorch schemathesis ## all tests: also each case of strategies, exports and serving, and the README in a fresh clone
	EXECUTORCH_PYTHON="$(CURDIR)/build/executorch/bin/python" \
	SCHEMATHESIS="$(CURDIR)/build/schemathesis/bin/schemathesis" $(BIN)/python -m pytest tests/test_project.py $(ARGS)

tools: ## install nginx, wrk and Chromium (packages of Debian), which tests and benchmarks of the server need
	$(SUDO) apt-get install --yes --no-install-recommends nginx wrk chromium chromium-driver

constraints: .venv/ready ## take the newest versions that a project allows into its constraints.txt and its image
	$(BIN)/python tools/constraints.py

executorch: build/executorch/ready ## an environment with ExecuTorch, for the test of the page on phones

build/executorch/ready: .venv/ready
	$(PYTHON) -m venv build/executorch
	$(BIN)/cookiecutter . --no-input --overwrite-if-exists --output-dir build/executorch git_init=false
	build/executorch/bin/python -m pip install --quiet -c build/executorch/digit-classifier/constraints.txt \
		torch==2.13.0 torchao==0.18.0 executorch==1.4.1
	@touch $@

schemathesis: build/schemathesis/ready ## an environment with schemathesis, which makes requests from a description

build/schemathesis/ready: .venv/ready
	$(PYTHON) -m venv build/schemathesis
	build/schemathesis/bin/python -m pip install --quiet schemathesis==4.32.5
	@touch $@

peers: build/peers/ready ## environments of what benchmarks/serving.py and benchmarks/peer.py measure beside a project

build/peers/ready: .venv/ready
	for peer in mlserver==1.7.1 litserve==0.2.19; do \
		$(PYTHON) -m venv "build/peers/$${peer%%=*}" && \
		"build/peers/$${peer%%=*}/bin/python" -m pip install --quiet "$$peer" onnxruntime==1.32.0 || exit 1; \
	done
	$(BIN)/cookiecutter . --no-input --overwrite-if-exists --output-dir build/peers git_init=false
	$(PYTHON) -m venv build/peers/lightning-hydra-template
	build/peers/lightning-hydra-template/bin/python -m pip install --quiet torch==2.14.1 torchvision==0.29.1 \
		hydra-colorlog==1.2.0 rootutils==1.0.7 -e build/peers/digit-classifier
	@touch $@

clean: ## remove what the commands above made
	rm -rf build .venv .hypothesis .pytest_cache .ruff_cache
