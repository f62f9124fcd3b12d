# Two commands matter: `make run` opens the dashboard, `make test` checks everything. Both set up what is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A test machine may have several cores, but torch in every worker must not ask for all of them.
WORKERS ?= 2
# Chromium is installed while pip installs, and mypy reads while the tests run.
MAKEFLAGS += --jobs=2

.PHONY: run test unit journeys lint docs format browser clean

run: $(VENV)/run.stamp
	$(BIN)/streamlit run app.py

test: lint docs journeys

unit: $(VENV)/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope -m "not journey"

# Alone: a browser, a server and what it evaluates are enough for two cores.
journeys: unit browser
	$(BIN)/python -m pytest -m journey

# Writes the pages that are made from the code, then the site in site/; a broken link or docstring is an error.
docs: $(VENV)/test.stamp
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict --quiet

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The journeys drive a real Chromium. Debian and Ubuntu get it from apt when we are root; elsewhere we say what to do.
browser:
	@sh tests/install_browser.sh

clean:
	rm -rf $(VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "mapmerge needs Python 3.11 or later: run make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "Python's venv module is missing: on Debian and Ubuntu, apt-get install python3-venv"; exit 1; }

# The package itself is installed in place, so that the command `mapmerge` is there.
$(VENV)/run.stamp: requirements.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	@touch $@

$(VENV)/test.stamp: requirements.txt requirements-dev.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[test]"
	@touch $@ $(VENV)/run.stamp
