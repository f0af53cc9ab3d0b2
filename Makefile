# The developer's commands. Each is one word.
PY ?= .venv/bin/python

.PHONY: setup fix check test slow bench docs
setup:  ## make .venv and install smalti with its test extra
	python3 -m venv .venv && .venv/bin/pip install -c constraints/newest.txt -e '.[test]'
fix:    ## mend what a tool can mend
	$(PY) -m ruff check --fix src tests benchmarks docs && $(PY) -m ruff format src tests benchmarks docs
check:  ## lint, types, import contracts
	$(PY) -m pytest tests/rules
test:   ## the suite that every change must pass
	$(PY) -m pytest -n 2
slow:   ## the long tests
	$(PY) -m pytest -n 2 -m slow
bench:  ## every benchmark; ratios, measured side by side
	$(PY) -m benchmarks
docs:   ## write the generated parts of the documentation, then check its commands and links
	$(PY) docs/build.py && $(PY) -m pytest tests/rules -k docs
