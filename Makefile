PYTHON ?= python3
BIN := .venv/bin

override KDDA_DATA := $(if $(KDDA_DATA),$(abspath $(patsubst ~/%,$(HOME)/%,$(KDDA_DATA))))
export KDDA_DATA
export PATH := $(abspath $(BIN)):$(PATH)
export PYTHONHASHSEED ?= 0
NOTEBOOKS = find nbs kdda \( -name '*.ipynb' -o -name '*.py' \) -not -path '*/.ipynb_checkpoints/*' | LC_ALL=C sort | xargs sha256sum

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test lint sync notebooks pytest test-slow speed full-scale sweep readme lock docs browser wheel lab clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: .venv/.ready  ## make .venv with the exact versions of requirements.lock
.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "kdda needs Python 3.10 or newer: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $@

demo: setup  ## adapt a network from a game to a city: trains, scores, draws (4 minutes on 2 cores)
	kdda bench quickstart

test: setup lint sync notebooks pytest  ## what CI runs

lint: setup
	ruff check --quiet kdda tests data_scripts

sync: setup
	@echo "sync: nbdev_clean and nbdev_export must change nothing"
	@$(NOTEBOOKS) > .venv/before
	@nbdev_clean
	@nbdev_export
	@$(NOTEBOOKS) > .venv/after
	@diff .venv/before .venv/after || { echo "sync: the files above changed; commit what nbdev_clean and nbdev_export made of them"; exit 1; }

notebooks: setup
	OMP_NUM_THREADS=1 nbdev_test --n_workers 2 --timing

pytest: setup
	python -m pytest -n 2 --dist worksteal -m "not slow and not browser"

test-slow: setup  ## the tests that take minutes (kill and resume many times, ...)
	python -m pytest -m slow

speed: setup  ## compare speeds side by side; writes results/speed.json
	python tests/speed.py

full-scale: setup  ## what the published recipes take on this machine's GPU; writes results/full_scale.json
	python tests/full_scale.py

sweep: setup  ## make every committed number of results/ again (long; goes on where it stopped; real frames where KDDA_DATA is set)
	kdda sweep sweeps/laptop.yaml --jobs 2
	@test -n "$(KDDA_DATA)" || echo "sweep: without KDDA_DATA=FOLDER (that holds camvid/) the rows on real frames are left out"
	test -z "$(KDDA_DATA)" || kdda sweep sweeps/camvid.yaml --jobs 2
	kdda bench quickstart -p seeds "[0, 1, 2]"
	mkdir -p results/figures && cp runs/game2city-laptop.jpg results/figures/game2city.jpg
	kdda runs --export results

readme: setup  ## README.md from nbs/index.ipynb
	jupyter nbconvert --to notebook --execute --inplace --log-level=WARN nbs/index.ipynb
	rm -rf results/figures/readme
	jupyter nbconvert --to markdown --log-level=WARN --output-dir . --output README --NbConvertApp.output_files_dir=results/figures/readme \
	  --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_cell_tags=remove_cell --TagRemovePreprocessor.remove_input_tags=remove_input nbs/index.ipynb
	nbdev_clean --fname nbs/index.ipynb

lock: setup  ## resolve requirements.lock anew
	python -m pip install --quiet uv
	uv pip compile pyproject.toml --extra bench --extra export --extra dev --universal --python-version 3.10 --no-header --no-annotate --no-emit-index-url --quiet --upgrade -o requirements.lock
	uv pip compile pyproject.toml --extra docs -c requirements.lock --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --quiet \
	  | awk -F== 'NR==FNR {have[$$1]; next} !($$1 in have)' requirements.lock - > requirements-docs.lock

docs: setup .venv/.docs  ## the site, in build/docs/html; nothing is executed (Python 3.11)
	rm -rf build/docs
	python docs/pages.py build/docs/source
	sphinx-build -qW --keep-going -c docs build/docs/source build/docs/html
	@echo "open build/docs/html/index.html"
.venv/.docs: .venv/.ready requirements-docs.lock
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Sphinx needs Python 3.11 or newer: rm -r .venv; make docs PYTHON=python3.12"; exit 1; }
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-docs.lock
	touch $@

browser: docs  ## look at the site and train in JupyterLab, in Chromium (apt-get install chromium, or playwright install chromium)
	python -m pytest -m browser tests/test_browser.py

wheel: setup  ## build dist/*.whl
	rm -rf dist && python -m build --wheel --outdir dist .

lab: setup  ## JupyterLab on the notebooks
	jupyter lab nbs

clean:  ## remove what was built; runs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
