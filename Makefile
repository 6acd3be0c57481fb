# All commands of the project. `make` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
VENV   := .venv
# The core and the endpoint's files are imported as they are in Lambda's layer and in model.tar.gz.
SOURCES := layers/core/python:model_code
RUN    := PYTHONPATH=$(SOURCES) OPENBLAS_NUM_THREADS=1 $(VENV)/bin/python
PINS   := requirements.txt requirements-torch.txt
READY  := $(VENV)/.ready-$(shell cat $(PINS) | cksum | cut -d' ' -f1)
# Each test process starts its own embedded AWS, which uses a whole core.
WORKERS ?= 2

# The SAM CLI builds with the Python of the functions' runtime if it is installed (pyenv keeps it off the PATH), and in a
# container otherwise.
ARCHITECTURE ?= x86_64
PYTHON313 := $(shell for p in python3.13 $(HOME)/.pyenv/versions/3.13.*/bin/python3.13; do \
               $$p -c 'import sys; print(sys.executable)' 2>/dev/null && break; done)
SAM   := SAM_CLI_TELEMETRY=0 PATH="$(if $(PYTHON313),$(dir $(PYTHON313)):)$$PATH" .venv-sam/bin/sam
BUILT := .aws-sam/build
FUNCTIONS := $(notdir $(wildcard functions/*))

help: ## list the commands
	@grep -hE '^[a-z_%-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

# ------------------------------------------------------------------ without AWS
demo: $(READY) $(if $(filter foreign,$(ENDPOINT)),.venv-torchserve/.ready) ## run the whole loop on an embedded AWS (DATA=folder of images, WEIGHTS=model.pt, TARGET=class, ENDPOINT=foreign)
	@$(RUN) -m demo $(if $(filter foreign,$(ENDPOINT)),--foreign) $(if $(DATA),--data '$(DATA)') $(if $(WEIGHTS),--weights '$(WEIGHTS)') $(if $(TARGET),--target '$(TARGET)')

local: $(READY) ## start an embedded AWS with the stack deployed, until Ctrl-C (PORT=4566, WEIGHTS=model.pt)
	@$(RUN) -m local $(if $(PORT),--port $(PORT)) $(if $(WEIGHTS),--weights '$(WEIGHTS)')

test: $(READY) .venv-torchserve/.ready ## run the test suite, about 11 minutes (WORKERS=2 processes)
	$(RUN) -m pytest -n $(WORKERS) --dist loadscope $(PYTEST_ARGS)

test-all: export GLASSBOX_LONG = 1
test-all: test ## run the test suite and the long tests (CONTRIBUTING.md)

coverage: $(READY) ## measure branch coverage of the core by unit and integration tests; fail below 95 %
	$(RUN) -m pytest -n $(WORKERS) --dist loadscope --cov -q tests/unit tests/integration $(PYTEST_ARGS)

check: $(READY) ## check format, lint, types and templates
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy --config-file tests/mypy.ini
	$(VENV)/bin/cfn-lint template.yaml model-monitor.yaml docs/pager.yaml

simulate: $(READY) ## run random schedules of incidents (SEEDS=200000, at most MINUTES=40)
	@PYTHONPATH=$(SOURCES):tests OPENBLAS_NUM_THREADS=1 $(VENV)/bin/python -m simulation \
	  $(if $(SEEDS),--seeds $(SEEDS)) $(if $(MINUTES),--minutes $(MINUTES))

fuzz: $(READY) ## give every reader random input (INPUTS=1000000, SEED, READER)
	@PYTHONPATH=$(SOURCES):tests OPENBLAS_NUM_THREADS=1 $(VENV)/bin/python -m fuzz \
	  $(if $(INPUTS),--inputs $(INPUTS)) $(if $(SEED),--seed $(SEED)) $(if $(READER),--reader '$(READER)')

bench: $(READY) .venv-torchserve/.ready ## compare speed and size with reference implementations (MODULE=completeness, ARGS)
	@PYTHONPATH=$(SOURCES):tests OPENBLAS_NUM_THREADS=1 $(VENV)/bin/python -m benchmarks$(if $(MODULE),.$(MODULE)) $(ARGS)

bench-causes: $(READY) ## measure how often the diagnosis names the right cause (ARGS="--windows 5")
	@PYTHONPATH=$(SOURCES) OPENBLAS_NUM_THREADS=1 $(VENV)/bin/python -m benchmarks.causes $(ARGS)

baseline: $(READY) ## compute the drift check's baseline and the diagnosis's reference from capture files (CAPTURES=folder REPLAY_KEY=public.pem MODEL IMAGES)
	$(call need,CAPTURES)
	@$(RUN) monitor_container/baseline.py '$(CAPTURES)' --out baseline $(if $(REPLAY_KEY),--replay-key '$(REPLAY_KEY)') \
	  $(if $(MODEL),--model '$(MODEL)') $(if $(IMAGES),--images '$(IMAGES)')

train: $(READY) ## train a ResNet18 on drawn signs or a folder (ARGS="--help" lists the options)
	@$(RUN) -m train $(ARGS)

check-model: $(READY) ## check a model offline: modules, completeness, latency, bytes (MODEL=model.tar.gz IMAGE=x.png HEATMAP=out.png)
	$(call need,MODEL)
	@$(RUN) model_code/check.py '$(MODEL)' $(if $(IMAGE),--image '$(IMAGE)') $(if $(HEATMAP),--heatmap '$(HEATMAP)')

# How the owner's code is run.
OWNER = $(if $(filter-out file,$(origin PYTHON)),--python '$(PYTHON)') \
        $(if $(CONTENT_TYPE),--content-type '$(CONTENT_TYPE)') $(if $(SECONDS),--seconds $(SECONDS))

check-endpoint: $(READY) ## try the hook offline on an unchanged endpoint's archive (ARCHIVE=model.tar.gz IMAGE=x.png PYTHON=…)
	$(call need,ARCHIVE)
	$(call need,IMAGE)
	@$(RUN) model_code/check_endpoint.py '$(ARCHIVE)' $(IMAGE) $(OWNER) \
	  $(if $(CLASSPATH),--class-path '$(CLASSPATH)') \
	  $(if $(HEATMAPS),--heatmaps '$(HEATMAPS)') $(if $(DETAILS),--details)

repack: $(READY) ## write an owner's archive that loads the hook by itself (ARCHIVE=model.tar.gz OUT=hooked.tar.gz)
	$(call need,ARCHIVE)
	@$(RUN) model_code/repack.py '$(ARCHIVE)' $(if $(OUT),--out '$(OUT)')

# ------------------------------------------------------------------ without AWS, with Docker
build: .venv-sam/.ready ## run sam build and compile the layers (ARCHITECTURE=arm64 for Graviton)
	@mkdir -p .build && $(SAM) build $(if $(PYTHON313),,--use-container) --parameter-overrides Architecture=$(ARCHITECTURE) \
	  >.build/sam-build.log 2>&1 || { cat .build/sam-build.log; exit 1; }
	@find $(BUILT)/*Layer -type d -name tests -prune -exec rm -r {} +
	@# Lambda cannot write byte code (/opt is read-only) and would compile every module at each cold start
	@$(if $(PYTHON313),for layer in $(BUILT)/*Layer; do $(PYTHON313) -m compileall -q --invalidation-mode unchecked-hash \
	    -s $$layer -p /opt $$layer; done,echo 'Python 3.13 not found: the layers have no byte code, and the functions start slower')
	@echo $(ARCHITECTURE) >$(BUILT)/architecture
	@echo 'Built in $(BUILT), for $(ARCHITECTURE)'

sam: build .venv-checkov/.ready ## run sam validate --lint, sam build and checkov
	$(SAM) validate --lint
	.venv-checkov/bin/checkov --config-file .checkov.yaml

$(addprefix invoke-,$(filter-out $(FUNCTIONS),$(patsubst invoke-%,%,$(filter invoke-%,$(MAKECMDGOALS))))):
	@echo '$@: expected one of $(FUNCTIONS:%=invoke-%)'; exit 1

invoke-%: build $(READY) ## run a function by sam local invoke on the embedded AWS (EVENT=file; invoke-swap_endpoint, …)
	@$(RUN) -m local.invoke $* $(if $(EVENT),--event '$(EVENT)')

sam-test: build $(READY) ## test every function by sam local invoke, with its effects in S3, DynamoDB and SNS
	GLASSBOX_SAM=.venv-sam/bin/sam $(RUN) -m pytest tests/sam $(PYTEST_ARGS)

# PyTorch's index of CPU builds, unless pip is configured with a folder that has the wheel (find-links).
TORCH_CPU      := --index-url https://download.pytorch.org/whl/cpu
TORCH_DOWNLOAD := $(VENV)/bin/pip download -q --no-deps -d .build/wheels -r requirements-torch.txt \
                  --only-binary=:all: --python-version 3.11 --platform manylinux_2_28_x86_64

images: $(READY) ## build the serving and the monitor image (TORCH_ARGS: pip options for torch, default its CPU index)
	@rm -rf .build/wheels && mkdir -p .build/wheels
	@$(if $(TORCH_ARGS),,$(TORCH_DOWNLOAD) --no-index 2>/dev/null || )$(TORCH_DOWNLOAD) $(or $(TORCH_ARGS),$(TORCH_CPU))
	@$(RUN) -m deploy.images

images-test: images ## test both images in Docker, with the mounts of SageMaker
	GLASSBOX_IMAGES=1 $(RUN) -m pytest tests/images $(PYTEST_ARGS)

# ------------------------------------------------------------------ on AWS (docs/deploy.md)
# ENDPOINT is an existing endpoint; without it the stack creates one from MODEL (a state dict or a model.tar.gz).
DEPLOY := PYTHONPATH=$(SOURCES) .venv-deploy/bin/python -m deploy
STACK  ?= glassbox
WANTED  = --stack '$(STACK)' --threshold '$(THRESHOLD)' --email '$(EMAIL)' --endpoint '$(ENDPOINT)' --image '$(IMAGE)' \
          --model-data '$(MODEL_DATA)' $(if $(MODEL),--model '$(MODEL)') $(if $(STAGE),--stage $(STAGE)) \
          --set $(if $(filter-out file,$(origin ARCHITECTURE)),Architecture=$(ARCHITECTURE)) $(SET)

plan: build .venv-deploy/.ready ## print what deploy would create and change (ENDPOINT, THRESHOLD, EMAIL, SET="MaxFlaggedReplays=20 …"; CHECK=1)
	@$(DEPLOY) plan $(WANTED) $(if $(CHECK),--check $(if $(CHECK_IMAGE),--check-image '$(CHECK_IMAGE)') $(OWNER))

deploy: build .venv-deploy/.ready ## deploy the stack and the hooked twin (arguments as for plan; YES=1 does not ask)
	@$(DEPLOY) deploy $(WANTED) $(if $(YES),--yes)

twin: .venv-deploy/.ready ## rebuild the hooked twin after you deploy a new model (STACK; TRY=1 tries it, or TRY=sign.png)
	@$(DEPLOY) twin --stack '$(STACK)' --image '$(IMAGE)' --model-data '$(MODEL_DATA)' --trial '$(TRY)'

explain: .venv-deploy/.ready ## explain one image on the endpoint now (IMAGE=sign.png, STACK; YES=1 does not ask)
	@$(DEPLOY) explain --stack '$(STACK)' --endpoint '$(ENDPOINT)' --image '$(IMAGE)' $(if $(YES),--yes)

status: .venv-deploy/.ready ## print what the endpoint serves, its incident and its traffic (STACK)
	@$(DEPLOY) status --stack '$(STACK)'

report: .venv-deploy/.ready ## save the report of the open or the last incident (STACK)
	@$(DEPLOY) report --stack '$(STACK)'

console: .venv-deploy/.ready ## show the stack on a page of this machine, read-only (STACK, PORT=8765)
	@$(DEPLOY) console --stack '$(STACK)' $(if $(PORT),--port '$(PORT)')

open: .venv-deploy/.ready ## open an incident for the last hour, regardless of the cooldown (STACK, REASON)
	@$(DEPLOY) open --stack '$(STACK)' $(if $(REASON),--reason '$(REASON)')

extend: .venv-deploy/.ready ## keep the hooked model for MINUTES=30 from now (STACK)
	@$(DEPLOY) extend --stack '$(STACK)' $(if $(MINUTES),--minutes '$(MINUTES)')

abort: .venv-deploy/.ready ## restore the endpoint now and end the incident (STACK)
	@$(DEPLOY) abort --stack '$(STACK)'

pause: .venv-deploy/.ready ## open no incident for MINUTES=30 from now, for load tests and deployments (STACK)
	@$(DEPLOY) pause --stack '$(STACK)' $(if $(MINUTES),--minutes '$(MINUTES)')

resume: .venv-deploy/.ready ## end a pause (STACK)
	@$(DEPLOY) resume --stack '$(STACK)'

drill: .venv-deploy/.ready ## send one message, marked as a drill, to all who get the notifications (STACK)
	@$(DEPLOY) drill --stack '$(STACK)'

remove: .venv-deploy/.ready ## delete the stack and the twin; restore the endpoint first if an incident is open (STACK; YES=1 does not ask)
	@$(DEPLOY) remove --stack '$(STACK)' $(if $(YES),--yes)

push: .venv-deploy/.ready ## push the images of `make images` to ECR
	@$(DEPLOY) push

smoke: build .venv-deploy/.ready ## check the assumptions about AWS on a temporary stack (IMAGE, SET)
	@PYTHONPATH=$(SOURCES) .venv-deploy/bin/python -m deploy.smoke --image '$(IMAGE)' $(if $(SET),--set $(SET))

deploy-test: build $(READY) .venv-deploy/.ready ## test the deploy tool on the embedded AWS, with the real sam deploy
	GLASSBOX_DEPLOY=.venv-deploy/bin/python $(RUN) -m pytest tests/deploy $(PYTEST_ARGS)

lock: $(READY) ## write the lock files requirements*.txt from pyproject.toml (UPGRADE=1 takes the newest versions)
	UPGRADE=$(UPGRADE) TORCH_ARGS='$(TORCH_ARGS)' $(VENV)/bin/python .ci/lock.py

docs: $(READY) ## write docs/configuration.md and docs/imports.md
	@$(RUN) docs/write_configuration.py
	@$(RUN) docs/write_costs.py
	@$(RUN) docs/write_imports.py

# ------------------------------------------------------------------ maintenance
format: $(READY) ## format and fix with ruff
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean: ## delete build outputs (keeps the environments)
	rm -rf .build .aws-sam out .pytest_cache .mypy_cache .ruff_cache .hypothesis

# $(call need,VARIABLE): fail if the variable is empty.
need = @[ -n '$($1)' ] || { echo 'make $@: $1 is empty. Set $1=…'; exit 1; }

define need_python
@[ -n '$(PYTHON)' ] && $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
  || { echo 'Python: expected 3.11, 3.12 or 3.13. Set PYTHON=/path/to/python3.x'; exit 1; }
@[ -x $1/bin/pip ] || $(PYTHON) -m venv $1 \
  || { rm -rf $1; echo '$1: cannot create the virtual environment. On Debian and Ubuntu: apt install python3-venv'; exit 1; }
@echo 'Installing into $1 (once; a few minutes)'
endef

$(READY): $(PINS)
	$(call need_python,$(VENV))
	@$(VENV)/bin/pip install -q $(TORCH_ARGS) -c requirements.txt -r requirements-torch.txt
	@$(VENV)/bin/pip install -q --no-deps -r requirements.txt
	@rm -f $(VENV)/.ready-* && touch $@

# Tools that require other versions of the same packages, each in its own environment.
.venv-%/.ready: requirements-%.txt
	$(call need_python,.venv-$*)
	@.venv-$*/bin/pip install -q -r $<
	@touch $@

# TorchServe beside the torch and the toolkits of .venv, as in AWS's PyTorch image.
.venv-torchserve/.ready: requirements-torchserve.txt $(READY)
	$(call need_python,.venv-torchserve)
	@.venv-torchserve/bin/pip install -q -r $<
	@site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	  $(VENV)/bin/python -c "$$site" >"$$(.venv-torchserve/bin/python -c "$$site")/venv.pth"
	@touch $@

.PRECIOUS: .venv-%/.ready
.PHONY: help demo local test test-all coverage check docs lock simulate fuzz bench bench-causes baseline train check-model check-endpoint repack build sam sam-test images images-test \
        plan deploy twin explain status report console open extend abort pause resume drill remove push smoke deploy-test format clean
