# Every target creates .venv first and reuses it. Needs Python 3.11 or 3.12 and make.
PYTHON ?= python3
TORCH ?= torch==2.13.0  # the tested release; choose the build for your machine, such as TORCH=torch==2.13.0+cu130
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
# Processes that run tests; those of one server, or of one module, share a process.
WORKERS ?= 2

.PHONY: setup demo serve gateway test unit lint bench perf repository clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); wanted: 3.11 or 3.12, for example make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet "$(strip $(TORCH))"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: setup  ## start the server, make out/demo.png over HTTP and gRPC, print latencies, stop the server
	$(BIN)/python benchmarks/demo.py $(ARGS)

serve: setup  ## serve the demo family on ports 8000 (HTTP), 8001 (gRPC), 8002 (metrics)
	$(BIN)/swiftdiffusion serve --repository model_repository $(ARGS)

gateway: setup  ## OpenAI's images API, A1111's API and a page on port 8080, in front of a server that runs (make serve)
	$(BIN)/swiftdiffusion gateway $(ARGS)

test: setup  ## all tests that this machine can run
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup $(ARGS)

unit: setup  ## the tests that need no server
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup tests/unit $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p .venv/typing && ln -sfn "$(CURDIR)" .venv/typing/swiftdiffusion
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

bench: setup  ## request through Triton against its raw module calls, as JSON with the machine's description
	$(BIN)/python benchmarks/overhead.py $(ARGS)

perf: setup  ## perf_analyzer against a server that runs (make serve)
	$(BIN)/swiftdiffusion perf $(ARGS)

repository: setup  ## write model_repository/ anew
	$(BIN)/swiftdiffusion export --checkpoint export/demo/weights --repository model_repository --steps 20 --guidance-scale 2 --loras export/demo/loras \
	  --controlnet edges=export/demo/controlnets/edges --controlnet layout=export/demo/controlnets/layout

clean:
	rm -rf .venv .perf out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
