# Every target sets up .venv first; the tests and the linters need its larger form.
PYTHON := .venv/bin/python

.PHONY: generate submission results methods ail861 test lint bench clean

generate: .venv/ready
	$(PYTHON) run_llama.py --option generate

# make submission ANDREWID=jdoe [COURSE=fall2025] [SUBMISSION_FLAGS="--zero_shot_pooling last_column"]
# make submission COURSE=ail861 ENTRY=2025XYZ123 [HUB=USER/REPO]
submission: .venv/ready
ifeq ($(COURSE),ail861)
	$(PYTHON) -m tasks.ail861.hand_in $(if $(ENTRY),--entry "$(ENTRY)") $(if $(HUB),--hub "$(HUB)") $(SUBMISSION_FLAGS)
else
	$(PYTHON) run_llama.py --option submission $(if $(ANDREWID),--andrewid "$(ANDREWID)") $(if $(COURSE),--course "$(COURSE)") $(SUBMISSION_FLAGS)
endif

results: .venv/ready
	$(PYTHON) -m tasks.results.report

test: .venv/ready-dev
	$(PYTHON) -m pytest

lint: .venv/ready-dev
	$(PYTHON) -m ruff check .
	$(PYTHON) -m basedpyright --project pyproject.toml --pythonpath $(PYTHON)

bench: .venv/ready-dev
	$(PYTHON) -m bench.generate

# make methods [METHODS_FLAGS="--quick"]
methods: .venv/ready
	$(PYTHON) -m tasks.methods.experiments $(METHODS_FLAGS)

ail861: .venv/ready
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements-ail861.txt
	$(PYTHON) -m tasks.ail861.run --corpus "$(CORPUS)" --valid "$(VALID)" $(AIL861_FLAGS)

.venv/ready: requirements.txt
	bash setup.sh

.venv/ready-dev: requirements.txt requirements-dev.txt
	bash setup.sh --dev

clean:
	rm -rf .venv .setup.lock .pytest_cache .ruff_cache .hypothesis __pycache__ tests/__pycache__ bench/__pycache__
