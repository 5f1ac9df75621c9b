# make demo: train ALBEF and NAS side by side. make test: lint, types and tests. make test-slow: what these leave out.
# make docs: the documentation, in build/docs. All make the virtual environment on their first run.
PYTHON := .venv/bin/python
STAMP := .venv/.stamp
TEST_STAMP := .venv/.stamp-test
# Test files at a time; each takes a core and up to 5 GB.
JOBS := 2

.PHONY: demo test test-slow docs venv lint format

demo: venv
	$(PYTHON) -m benchmarks.study --preset demo --out runs/demo --runs runs/demo

test: $(TEST_STAMP) lint
	$(PYTHON) -m pytest -n $(JOBS) --dist loadfile

# Each method resumed to the same bits, in pieces and on eight devices: a minute or two for each.
test-slow: $(TEST_STAMP)
	$(PYTHON) -m pytest -n $(JOBS) --dist loadfile -m slow

# Warnings are errors (mkdocs.yml). The variable silences a notice about the next version of MkDocs.
docs: $(TEST_STAMP)
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --quiet
	@echo "open build/docs/index.html"

venv: $(STAMP)

lint: venv
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: venv
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# A name on the path may be a wrapper without a Python behind it, so each candidate is run. An environment without a
# stamp is half made or not ours: it is completed, not deleted.
$(STAMP): requirements.txt setup.py
	@for name in python3.13 python3.12 python3.11 python3; do \
	  if "$$name" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then found=$$name; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "error: no Python >= 3.11 found; install one, e.g. python3.12" >&2; exit 2; fi; \
	if [ ! -x $(PYTHON) ]; then echo "making .venv with $$found"; "$$found" -m venv .venv; fi
	@echo "installing the requirements (about 1 GB, minutes on a slow line)"
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	@touch $@

# On top of the above; the CPU build of PyTorch is enough, and where it is there already, pip keeps it.
$(TEST_STAMP): requirements-test.txt $(STAMP)
	@echo "installing what only tests and documentation need (PyTorch, transformers, MkDocs)"
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	@touch $@
