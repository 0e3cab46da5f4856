# `make demo` and `make test` set up everything they need; nothing but Python 3.11, make and a compiler is expected.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch first and exactly: anything that resolves it later would fetch another build.
INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt
# half the usual widths and higher rates: minutes are few; on a busy machine five of them have to do
SMALL := --set plan.widths=8,16,32,64 --set train.validation_cases=4
THREADS := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

.PHONY: demo test test-all test-slow coverage mutants evidence bench torture golden lint types check tables docs package clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch==2.13.0
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) --editable ".[dev]"
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(INSTALL) --editable ".[docs]"
	@touch $@

demo: $(VENV)/.installed   ## synthetic volumes, a U-Net and draws from it in two to five minutes, prediction, evaluation, one page
	rm -rf demo
	$(BIN)/diffuseg demo-data demo/data --cases 40
	$(BIN)/diffuseg train demo/data --method unet --out demo/unet --steps 200 --max-minutes 2 --set learning_rate=3e-3 $(SMALL)
	$(BIN)/diffuseg predict demo/unet/best.safetensors demo/data/imagesTs --out demo/unet_predictions --quiet
	$(BIN)/diffuseg evaluate demo/unet_predictions demo/data/labelsTs --out demo/unet_evaluation
	$(BIN)/diffuseg train demo/data --method distributional --from demo/unet/last.safetensors --out demo/run --steps 150 --max-minutes 3 \
		--set learning_rate=2e-3 $(SMALL)
	$(BIN)/diffuseg predict demo/run/best.safetensors demo/data/imagesTs --out demo/predictions
	$(BIN)/diffuseg evaluate demo/predictions demo/data/labelsTs --out demo/evaluation

test: $(VENV)/.installed-dev   ## the fast tests
	$(THREADS) $(BIN)/python -m pytest -n 2 -m "not slow"

test-all: $(VENV)/.installed-dev   ## every test
	$(THREADS) $(BIN)/python -m pytest -n 2

golden: $(VENV)/.installed-dev   ## write anew what tests/golden holds later versions against
	$(THREADS) $(BIN)/python -m tests.golden.make

test-slow: $(VENV)/.installed-dev   ## those that take minutes
	$(THREADS) $(BIN)/python -m pytest -n 2 -m slow

coverage: $(VENV)/.installed-dev   ## the fast tests again, and how much of each package they run
	$(THREADS) $(BIN)/python -m pytest -n 2 -m "not slow" --cov --cov-report=json
	$(BIN)/python -m tools.coverage_gate

mutants: $(VENV)/.installed-dev   ## break the methods in one place at a time: do the tests notice? ONLY=cdal for a part
	$(THREADS) $(BIN)/python -m tools.mutants --only "$(ONLY)"

evidence: $(VENV)/.installed-dev   ## one row of the tables from nothing: ROW=thyroid/unet/0 DATA=/path/to/thyroid; without ROW, their names; DRY=--dry
	$(THREADS) $(BIN)/python -m benchmarks.evidence $(ROW) $(DATA) $(DRY)

bench: $(VENV)/.installed-dev   ## what things cost, as ratios of runs that take turns, into benchmarks/results/speed.json; some minutes
	$(THREADS) $(BIN)/python -m benchmarks.speed
	$(THREADS) $(BIN)/python -m benchmarks.flops
	$(BIN)/python -m benchmarks.table

torture: $(VENV)/.installed-dev   ## broken files and texts, kills, full disks, foreign requests: about ten minutes; figures are kept
	$(THREADS) $(BIN)/python -m tools.torture

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests benchmarks tools
	$(BIN)/ruff format --check src tests benchmarks tools
	$(BIN)/python -m benchmarks.table --check
	$(BIN)/python -m benchmarks.figures --check

types: $(VENV)/.installed-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

check: lint types test   ## what CI runs

tables: $(VENV)/.installed-dev   ## render the tables and curves of README and docs from benchmarks/results
	$(BIN)/python -m benchmarks.table
	$(BIN)/python -m benchmarks.figures

# the builder of the site: mkdocs or zensical
SITE ?= mkdocs

docs: $(VENV)/.installed-docs   ## the site of the documentation, in build/site; any warning is an error
	$(BIN)/python -m tools.site
	NO_MKDOCS_2_WARNING=1 $(BIN)/$(SITE) build --clean --strict

package: $(VENV)/.installed-dev   ## wheel and sdist in dist/, each installed in a bare environment and tried there
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m tools.package dist

clean:
	rm -rf $(VENV) demo build dist src/*.egg-info
