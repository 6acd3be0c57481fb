# The one door. `make` alone lists what there is.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
VENV   := .venv
# The core and the endpoint's files are imported as they are in Lambda's layer and in model.tar.gz.
SOURCES := layers/core/python:model_code
RUN    := PYTHONPATH=$(SOURCES) OPENBLAS_NUM_THREADS=1 $(VENV)/bin/python
PINS   := requirements.txt requirements-torch.txt
READY  := $(VENV)/.ready-$(shell cat $(PINS) | cksum | cut -d' ' -f1)
# each process of the tests starts an embedded AWS of its own, which takes a core
WORKERS ?= 2

# The SAM CLI builds for the runtime of the functions with that Python, if there is one (pyenv keeps it off the PATH),
# and in a container otherwise.
ARCHITECTURE ?= x86_64
PYTHON313 := $(shell for p in python3.13 $(HOME)/.pyenv/versions/3.13.*/bin/python3.13; do \
               $$p -c 'import sys; print(sys.executable)' 2>/dev/null && break; done)
SAM   := SAM_CLI_TELEMETRY=0 PATH="$(if $(PYTHON313),$(dir $(PYTHON313)):)$$PATH" .venv-sam/bin/sam
BUILT := .aws-sam/build
FUNCTIONS := $(notdir $(wildcard functions/*))

help: ## what there is
	@grep -hE '^[a-z_%-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

# ------------------------------------------------------------------ on this machine
demo: $(READY) ## the whole story on an embedded AWS (DATA=folder of images, WEIGHTS=model.pt, TARGET=class)
	@$(RUN) -m demo $(if $(DATA),--data '$(DATA)') $(if $(WEIGHTS),--weights '$(WEIGHTS)') $(if $(TARGET),--target '$(TARGET)')

local: $(READY) ## the embedded AWS with the stack on it, left running (PORT=4566, WEIGHTS=model.pt)
	@$(RUN) -m local $(if $(PORT),--port $(PORT)) $(if $(WEIGHTS),--weights '$(WEIGHTS)')

test: $(READY) ## every test that needs neither Docker nor another environment (WORKERS=2 processes)
	$(RUN) -m pytest -n $(WORKERS) --dist loadscope $(PYTEST_ARGS)

coverage: $(READY) ## branch coverage of the core by the unit and integration tests; fails below 95 %
	$(RUN) -m pytest -n $(WORKERS) --dist loadscope --cov -q tests/unit tests/integration $(PYTEST_ARGS)

check: $(READY) ## format, lint, types, template
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy --config-file tests/mypy.ini
	$(VENV)/bin/cfn-lint template.yaml model-monitor.yaml

bench: $(READY) ## the measured claims, as ratios against a peer
	@PYTHONPATH=$(SOURCES):tests OPENBLAS_NUM_THREADS=1 $(VENV)/bin/python -m benchmarks

baseline: $(READY) ## capture files of a good time -> the baseline of the drift check (CAPTURES=folder REPLAY_KEY=public.pem)
	$(call need,CAPTURES)
	@$(RUN) monitor_container/baseline.py '$(CAPTURES)' --out baseline $(if $(REPLAY_KEY),--replay-key '$(REPLAY_KEY)')

train: $(READY) ## train a ResNet18 on drawn signs or a folder (ARGS="--help" tells more)
	@$(RUN) -m train $(ARGS)

check-model: $(READY) ## try a model offline: modules, completeness, latency, bytes (MODEL=model.tar.gz IMAGE=x.png)
	$(call need,MODEL)
	@$(RUN) model_code/check.py '$(MODEL)' $(if $(IMAGE),--image '$(IMAGE)') $(if $(PICTURE),--picture '$(PICTURE)')

# ------------------------------------------------------------------ as on AWS, with Docker
build: .venv-sam/.ready ## sam build, with byte code in the layers (ARCHITECTURE=arm64 for Graviton)
	@mkdir -p .build && $(SAM) build $(if $(PYTHON313),,--use-container) --parameter-overrides Architecture=$(ARCHITECTURE) \
	  >.build/sam-build.log 2>&1 || { cat .build/sam-build.log; exit 1; }
	@find $(BUILT)/*Layer -type d -name tests -prune -exec rm -r {} +
	@# Lambda can write no byte code (/opt is read-only): it would compile every module at each cold start
	@$(if $(PYTHON313),for layer in $(BUILT)/*Layer; do $(PYTHON313) -m compileall -q --invalidation-mode unchecked-hash \
	    -s $$layer -p /opt $$layer; done,echo 'No Python 3.13 here: the layers go without byte code, and functions start slower')
	@echo $(ARCHITECTURE) >$(BUILT)/architecture
	@echo 'Built in $(BUILT), for $(ARCHITECTURE)'

sam: build .venv-checkov/.ready ## sam validate --lint, sam build, checkov
	$(SAM) validate --lint
	.venv-checkov/bin/checkov --config-file .checkov.yaml

$(addprefix invoke-,$(filter-out $(FUNCTIONS),$(patsubst invoke-%,%,$(filter invoke-%,$(MAKECMDGOALS))))):
	@echo '$@: the functions are $(FUNCTIONS)'; exit 1

invoke-%: build $(READY) ## sam local invoke a function on the embedded AWS (EVENT=file; invoke-swap_endpoint, …)
	@$(RUN) -m local.invoke $* $(if $(EVENT),--event '$(EVENT)')

sam-test: build $(READY) ## sam local invoke of every function, and what it did in S3, DynamoDB and SNS
	GLASSBOX_SAM=.venv-sam/bin/sam $(RUN) -m pytest tests/sam $(PYTEST_ARGS)

# PyTorch's index of CPU builds, for a machine whose pip knows no folder with the wheel (find-links).
TORCH_CPU      := --index-url https://download.pytorch.org/whl/cpu
TORCH_DOWNLOAD := $(VENV)/bin/pip download -q --no-deps -d .build/wheels -r requirements-torch.txt \
                  --only-binary=:all: --python-version 3.11 --platform manylinux_2_28_x86_64

images: $(READY) ## the serving and the monitor image, in Docker (TORCH_ARGS: pip options for torch, default its CPU index)
	@rm -rf .build/wheels && mkdir -p .build/wheels
	@$(if $(TORCH_ARGS),,$(TORCH_DOWNLOAD) --no-index 2>/dev/null || )$(TORCH_DOWNLOAD) $(or $(TORCH_ARGS),$(TORCH_CPU))
	@$(RUN) -m deploy.images

images-test: images ## both images in Docker, with what SageMaker mounts
	GLASSBOX_IMAGES=1 $(RUN) -m pytest tests/images $(PYTEST_ARGS)

# ------------------------------------------------------------------ on AWS (docs/deploy.md)
# ENDPOINT is one that is there; without it the stack makes one of its own, of MODEL (a state dict or a model.tar.gz).
DEPLOY := PYTHONPATH=$(SOURCES) .venv-deploy/bin/python -m deploy
STACK  ?= glassbox
WANTED  = --stack '$(STACK)' --threshold '$(THRESHOLD)' --email '$(EMAIL)' --endpoint '$(ENDPOINT)' --image '$(IMAGE)' \
          --model-data '$(MODEL_DATA)' $(if $(MODEL),--model '$(MODEL)') $(if $(STAGE),--stage $(STAGE)) \
          --set $(if $(filter-out file,$(origin ARCHITECTURE)),Architecture=$(ARCHITECTURE)) $(SET)

plan: build .venv-deploy/.ready ## in words: what deploy would make and change (ENDPOINT, THRESHOLD, EMAIL, SET="MaxFlaggedReplays=20 …")
	@$(DEPLOY) plan $(WANTED)

deploy: build .venv-deploy/.ready ## the stack, and the hooked twin of the endpoint (as plan; YES=1 does not ask)
	@$(DEPLOY) deploy $(WANTED) $(if $(YES),--yes)

twin: .venv-deploy/.ready ## the hooked twin of what the endpoint runs now, after its owner deployed (STACK)
	@$(DEPLOY) twin --stack '$(STACK)' --image '$(IMAGE)' --model-data '$(MODEL_DATA)'

explain: .venv-deploy/.ready ## one image explained now, on the endpoint (IMAGE=sign.png, STACK; YES=1 does not ask)
	@$(DEPLOY) explain --stack '$(STACK)' --endpoint '$(ENDPOINT)' --image '$(IMAGE)' $(if $(YES),--yes)

remove: .venv-deploy/.ready ## the stack goes, a watched endpoint serves on as it was (STACK; YES=1 does not ask)
	@$(DEPLOY) remove --stack '$(STACK)' $(if $(YES),--yes)

push: .venv-deploy/.ready ## what `make images` built, to the account's registry
	@$(DEPLOY) push

smoke: build .venv-deploy/.ready ## rehearse on a throw-away stack what is assumed of AWS, then remove it (IMAGE, SET)
	@PYTHONPATH=$(SOURCES) .venv-deploy/bin/python -m deploy.smoke --image '$(IMAGE)' $(if $(SET),--set $(SET))

deploy-test: build $(READY) .venv-deploy/.ready ## plan, deploy, twin, remove on the embedded AWS, with the real sam deploy
	GLASSBOX_DEPLOY=.venv-deploy/bin/python $(RUN) -m pytest tests/deploy $(PYTEST_ARGS)

lock: $(READY) ## write the lock files requirements*.txt from pyproject.toml (UPGRADE=1 takes the newest versions)
	UPGRADE=$(UPGRADE) TORCH_ARGS='$(TORCH_ARGS)' $(VENV)/bin/python .ci/lock.py

docs: $(READY) ## write docs/configuration.md from the template
	@$(RUN) docs/write_configuration.py

# ------------------------------------------------------------------ the workshop
format: $(READY) ## let ruff format and fix
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean: ## remove what was built (the environments stay)
	rm -rf .build .aws-sam out .pytest_cache .mypy_cache .ruff_cache .hypothesis

# $(call need,VARIABLE): stops where it is not given.
need = @[ -n '$($1)' ] || { echo 'make $@ needs $1=…'; exit 1; }

define need_python
@[ -n '$(PYTHON)' ] && $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
  || { echo 'Python 3.11, 3.12 or 3.13 is needed (PYTHON=/path/to/python3.x chooses one)'; exit 1; }
@[ -x $1/bin/pip ] || $(PYTHON) -m venv $1 \
  || { rm -rf $1; echo 'No virtual environment could be made: on Debian and Ubuntu, apt install python3-venv'; exit 1; }
@echo 'Installing into $1 (once; a few minutes)'
endef

$(READY): $(PINS)
	$(call need_python,$(VENV))
	@$(VENV)/bin/pip install -q $(TORCH_ARGS) -c requirements.txt -r requirements-torch.txt
	@$(VENV)/bin/pip install -q --no-deps -r requirements.txt
	@rm -f $(VENV)/.ready-* && touch $@

# Tools that want other versions of the same packages, each in an environment of its own.
.venv-%/.ready: requirements-%.txt
	$(call need_python,.venv-$*)
	@.venv-$*/bin/pip install -q -r $<
	@touch $@

.PRECIOUS: .venv-%/.ready
.PHONY: help demo local test coverage check docs lock bench baseline train check-model build sam sam-test images images-test \
        plan deploy twin explain remove push smoke deploy-test format clean
