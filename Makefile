# The one door. `make` alone lists what there is.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
VENV   := .venv
RUN    := PYTHONPATH=layers/core/python OPENBLAS_NUM_THREADS=1 $(VENV)/bin/python
PINS   := requirements.txt requirements-torch.txt
READY  := $(VENV)/.ready-$(shell cat $(PINS) | cksum | cut -d' ' -f1)

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: $(READY) ## the whole story on an embedded AWS (DATA=folder of images, WEIGHTS=model.pt)
	@$(RUN) -m local.demo $(if $(DATA),--data '$(DATA)') $(if $(WEIGHTS),--weights '$(WEIGHTS)')

local: $(READY) ## the embedded AWS with the stack on it, left running
	@$(RUN) -m local

test: $(READY) ## every test
	$(RUN) -m pytest $(PYTEST_ARGS)

check: $(READY) ## format, lint, types, template
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/cfn-lint template.yaml

bench: $(READY) ## the measured claims, as ratios against a peer
	@$(RUN) -m benchmarks

baseline: $(READY) ## capture files of a good time -> the baseline of the drift check (CAPTURES=folder)
	@$(RUN) monitor_container/baseline.py '$(CAPTURES)' --out baseline

train: $(READY) ## train a ResNet18 on drawn signs or a folder (ARGS="--help" tells more)
	@$(RUN) -m model_code.train $(ARGS)

twin: $(READY) ## the hooked twin of what an endpoint runs now (ENDPOINT=name BUCKET=the stack's)
	@$(RUN) model_code/twin.py --endpoint '$(ENDPOINT)' --bucket '$(BUCKET)'

format: $(READY) ## let ruff format and fix
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean: ## remove what was built (the environment stays)
	rm -rf .build out .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): $(PINS)
	@[ -n '$(PYTHON)' ] && $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo 'Python 3.11, 3.12 or 3.13 is needed (PYTHON=/path/to/python3.x chooses one)'; exit 1; }
	@[ -x $(VENV)/bin/pip ] || $(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo 'No virtual environment could be made: on Debian and Ubuntu, apt install python3-venv'; exit 1; }
	@echo 'Installing into $(VENV) (once; a few minutes)'
	@$(VENV)/bin/pip install -q $(TORCH_ARGS) -c requirements.txt -r requirements-torch.txt
	@$(VENV)/bin/pip install -q --no-deps -r requirements.txt
	@rm -f $(VENV)/.ready-* && touch $@

.PHONY: help demo local test check bench baseline train twin format clean
