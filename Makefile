# Every target with a "##" text lists itself in `make help`.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DETACH ?=
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

export PYTHONUNBUFFERED := 1

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 13); sys.exit(0 if ok else "Riverlens needs Python 3.11 or 3.12; this is " + sys.version.split()[0] + ". Point PYTHON at one: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing the Python packages into $(VENV) (a few minutes the first time) …"
	$(PIP_INSTALL) -e '.[cpu]'
	@echo "Compiling the search's inner loops for this processor (some seconds) …"
	$(BIN)/python -c "import actors.index.kernels.walking"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the development packages …"
	$(PIP_INSTALL) -e '.[cpu,dev]'
	@touch $@

.PHONY: install
install: $(VENV)/.installed ## Install what runs the system

.PHONY: demo
demo: export RIVERLENS_HOME := $(CURDIR)/.demo
demo: $(VENV)/.installed ## Start everything, index sample pictures, search them (DETACH=1: then stop)
	$(BIN)/riverlens demo --up $(if $(DETACH),--detach,)

.PHONY: up
up: $(VENV)/.installed ## Run the whole system in the foreground until Ctrl-C
	$(BIN)/riverlens up

.PHONY: lint
lint: $(VENV)/.installed-dev ## Style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: test
test: $(VENV)/.installed-dev ## All tests but the long ones
	$(BIN)/python -m pytest -m "not gpu and not tls" $(PYTEST_ARGS)

.PHONY: test-brokers
test-brokers: $(VENV)/.installed-dev ## The tests of the whole system, all of them on both kinds of broker
	RIVERLENS_TEST_BROKERS=both $(BIN)/python -m pytest -m "not tls" tests/browser tests/integration $(PYTEST_ARGS)

.PHONY: test-unit
test-unit: $(VENV)/.installed-dev ## Only the tests that start no process
	$(BIN)/python -m pytest tests/unit tests/property tests/golden tests/test_architecture.py tests/test_docs.py $(PYTEST_ARGS)

.PHONY: test-tls
test-tls: $(VENV)/.installed-dev ## The Kafka clients and the whole system on an Apache Kafka that asks for TLS and SASL
	$(BIN)/python -m pytest -m tls tests/integration/test_kafka_tls.py $(PYTEST_ARGS)

.PHONY: dashboards
dashboards: $(VENV)/.installed-dev ## Write the Grafana dashboards and the alert rules of infra/monitoring from the metric names
	$(BIN)/python -m infra.monitoring

.PHONY: fuzz
fuzz: $(VENV)/.installed-dev ## Mutated pictures through the decoding processes: no crash, no hang, no leak (FUZZ_ARGS="--seconds 600 --seed 7")
	$(BIN)/python -m tests.fuzz $(FUZZ_ARGS)

.PHONY: chaos
chaos: $(VENV)/.installed-dev ## Faults under load and an offline checker (CHAOS_ARGS="--seconds 600 --seed 7 --faults kill-ingest,…")
	$(BIN)/python -m tests.chaos $(CHAOS_ARGS)

.PHONY: schemathesis
schemathesis: $(VENV)/.installed-dev ## Every operation of the running API, all phases, many examples (SCHEMATHESIS_SEED=7 SCHEMATHESIS_EXAMPLES=500)
	SCHEMATHESIS_PHASES=examples,coverage,fuzzing SCHEMATHESIS_EXAMPLES=$${SCHEMATHESIS_EXAMPLES:-100} \
	$(BIN)/python -m pytest tests/integration/test_access.py -k what_it_says $(PYTEST_ARGS)

.PHONY: infra
infra: $(VENV)/.installed-dev ## Checks of infra/: Terraform, manifests, container images, with the tools that are installed
	$(BIN)/python -m pytest tests/infra $(PYTEST_ARGS)

# OpenTofu cannot be installed by its name, because its go.mod replaces a module, so it is built where Go put its source.
TOOLS := $(CURDIR)/build/infra/bin
$(TOOLS)/tofu:
	cd "$$(go mod download -json github.com/opentofu/opentofu@v1.12.6 | sed -n 's/^\t"Dir": "\(.*\)",$$/\1/p')" && go build -o $@ ./cmd/tofu
$(TOOLS)/helm:
	GOBIN=$(TOOLS) go install helm.sh/helm/v3/cmd/helm@v3.19.0
$(TOOLS)/kubeconform:
	GOBIN=$(TOOLS) go install github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0
$(TOOLS)/terraform-stand-in: tests/infra/stand_in/main.go tests/infra/stand_in/go.mod
	cd tests/infra/stand_in && go build -o $@ .

.PHONY: infra-full
infra-full: $(VENV)/.installed-dev $(TOOLS)/tofu $(TOOLS)/helm $(TOOLS)/kubeconform $(TOOLS)/terraform-stand-in ## The same with OpenTofu, Helm and kubeconform, built with Go first (ten minutes)
	INFRA_TOOLS=required $(BIN)/python -m pytest tests/infra $(PYTEST_ARGS)

.PHONY: test-gpu
test-gpu: $(VENV)/.installed-dev ## Tests that need an NVIDIA GPU
	$(BIN)/python -m pytest -m gpu tests/gpu $(PYTEST_ARGS)

.PHONY: bench-quality
bench-quality: $(VENV)/.installed-dev ## Recall and precision of the offline model on held-out pictures
	$(BIN)/python -m benchmarks.quality

.PHONY: calibrate
calibrate: $(VENV)/.installed-dev ## Fit the confidence of searches, draw its curve, measure it (CALIBRATE_ARGS="--model NAME --out FILE" for another model)
	$(BIN)/python -m evaluation.calibrate $(CALIBRATE_ARGS)
	$(if $(CALIBRATE_ARGS),,$(BIN)/python -m benchmarks.confidence)

.PHONY: bench-confidence
bench-confidence: $(VENV)/.installed-dev ## Precision and recall of `no_confident_match` on held-out pictures
	$(BIN)/python -m benchmarks.confidence

# Where one of them cannot be had, the others still come, and the result lists it as failed.
.venv-peers/.installed: $(BIN)/python benchmarks/index/peers.txt
	@echo "Installing the other systems of the index benchmark into .venv-peers …"
	$(BIN)/python -m venv .venv-peers
	@install='.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps'; \
	if $$install -r benchmarks/index/peers.txt; then touch $@; \
	else sed 's/ *#.*//; /^$$/d' benchmarks/index/peers.txt | xargs -n 1 $$install || true; fi

.PHONY: bench-index
bench-index: $(VENV)/.installed-dev .venv-peers/.installed ## The shard engine beside raw FAISS and other vector stores (BENCH_ARGS="--points 1000000 …")
	$(BIN)/python -m benchmarks.index $(BENCH_ARGS)

.PHONY: bench-index-quantization
bench-index-quantization: $(VENV)/.installed-dev ## Recall, memory and speed of the engine's quantizations
	$(BIN)/python -m benchmarks.index.quantization $(BENCH_ARGS)

.PHONY: bench-index-filters
bench-index-filters: $(VENV)/.installed-dev ## Recall and speed of filtered searches
	$(BIN)/python -m benchmarks.index.filters $(BENCH_ARGS)

.PHONY: bench-ways
bench-ways: $(VENV)/.installed-dev ## Ways to reach the shards: actor calls, deployment handles, search ports, the same process
	$(BIN)/python -m benchmarks.ways $(BENCH_ARGS)

.PHONY: bench-capacity
bench-capacity: $(VENV)/.installed-dev ## What `riverlens plan` counts with: bytes, service times, a small cluster (BENCH_ARGS="--only service,cluster")
	$(BIN)/python -m benchmarks.capacity $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.capacity.constants

.PHONY: bench-rerank
bench-rerank: $(VENV)/.installed-dev ## What re-ranking gains on turned, cut and scaled copies, and what its stages cost
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.rerank $(BENCH_ARGS)

.PHONY: lock
lock: $(VENV)/.installed-dev ## Write the installed versions into constraints.txt
	@{ echo "# Versions every machine installs; written by 'make lock'."; $(BIN)/python -m pip freeze --exclude-editable; } > constraints.txt

.PHONY: bench-serving
bench-serving: $(VENV)/.installed-dev ## The whole system over HTTP: searches a second, while points arrive, with a shard killed (BENCH_ARGS="--points 50000 --only load …")
	$(BIN)/python -m benchmarks.serving $(BENCH_ARGS)

# Where it cannot be had, the result lists it as failed.
.venv-peers-milvus/.installed: $(BIN)/python benchmarks/serving/peers-milvus.txt
	@echo "Installing Milvus Lite into .venv-peers-milvus …"
	$(BIN)/python -m venv .venv-peers-milvus
	-@.venv-peers-milvus/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/serving/peers-milvus.txt && touch $@

.PHONY: bench-serving-peers
bench-serving-peers: $(VENV)/.installed-dev .venv-peers/.installed .venv-peers-milvus/.installed ## The same searches against the servers of chromadb and Milvus Lite; adds to the result of bench-serving
	$(BIN)/python -m benchmarks.serving --only peers $(BENCH_ARGS)
