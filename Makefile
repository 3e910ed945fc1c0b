# Every verb installs what it needs; none needs a step before it.
# Not from the environment, where some shells put the machine's name.
HOST      := 127.0.0.1
PORT      ?= 3000
WEIGHTS   ?= openai
PROFILE   ?= exact
TOWERS    ?= image,text
# One of OpenAI's (ViT-B/32, ViT-B/16, ViT-L/14, ViT-L/14@336px), or hf:organisation/name[@revision] on Hugging Face.
# Empty: what MODEL_DIR holds or, where it holds none, ViT-B/32.
MODEL     ?=
# Weights of one's own: a file, a folder, or hf:organisation/name. ACTIVATION=gelu|quick_gelu where they do not tell it.
CHECKPOINT ?=
ACTIVATION ?=
MODEL_DIR ?= model
TORCH     ?= cpu

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
EXPORTED_exact := $(MODEL_DIR)/model.json
EXPORTED_fast  := $(MODEL_DIR)/visual.int8.onnx
EXPORTED       := $(or $(EXPORTED_$(PROFILE)),$(error PROFILE is exact or fast, not '$(PROFILE)'))
EXPORTER := $(VENV)/.export-$(TORCH)
PIP    := $(BIN)/pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help run dev model test coverage mutants test-other cpus fuzz soak proof e2e smoke models image contents bench lint format check lock clean FORCE

help:  ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*  ## /\1 - /p' Makefile

run: $(EXPORTER) $(EXPORTED)  ## serve on PORT=3000, for this machine alone unless HOST=0.0.0.0 (WEIGHTS=openai|synthetic, PROFILE=exact|fast, MODEL=ViT-L/14|hf:NAME, MODEL_DIR=model)
	$(SETTINGS) $(BIN)/python -m handler.serve $(ADDRESS)

dev: $(EXPORTER) $(EXPORTED)  ## the same, and loaded again whenever a file of handler/ changes
	$(SETTINGS) $(BIN)/uvicorn handler.main:app --no-access-log --reload --reload-dir handler $(ADDRESS)

SETTINGS = CLIP_PROFILE=$(PROFILE) CLIP_MODEL_DIR=$(MODEL_DIR)
ADDRESS  = --host $(HOST) --port $(PORT)

model: $(EXPORTER)  ## export the model again, into MODEL_DIR (CHECKPOINT=FILE|FOLDER|hf:NAME for weights of your own, PROFILE=fast: int8 too, MODEL=ViT-B/32|hf:NAME; WEIGHTS_URL=: a mirror)
	$(BIN)/python -m export --out $(MODEL_DIR) $(filter-out --or-synthetic,$(EXPORT))

# What is there is not made again. A model without int8 is exported again when `fast` is asked for, and so is
# another one than the MODEL that is asked for.
HELD  := $(shell sed -n -e 's/^ *"model": "\([^"]*\)".*/\1/p' -e 's/^ *"asked": "\([^"]*\)".*/\1/p' $(MODEL_DIR)/model.json 2>/dev/null)
OTHER_MODEL := $(if $(MODEL),$(if $(filter $(MODEL),$(HELD)),,$(HELD)))
$(EXPORTED_exact) $(EXPORTED_fast): $(if $(OTHER_MODEL),FORCE) | $(EXPORTER)
	$(BIN)/python -m export --out $(MODEL_DIR) $(EXPORT)

EXPORT_openai    := --or-synthetic
EXPORT_synthetic := --synthetic
EXPORT_exact     :=
EXPORT_fast      := --precision int8
EXPORT            = $(if $(CHECKPOINT),--checkpoint $(CHECKPOINT),$(EXPORT_$(WEIGHTS))) $(EXPORT_$(PROFILE)) $(if $(MODEL),--model $(MODEL)) $(if $(ACTIVATION),--activation $(ACTIVATION))

# Two processes share the tests, file by file. Torch gets one thread in each: two would spend their
# time waiting for those of the other process.
SHARED := OMP_NUM_THREADS=1
SHARE  := -n 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.dev  ## every test that needs no container engine (ARGS="-n 0 tests/test_s3.py": those alone, in one process)
	$(SHARED) $(BIN)/python -m pytest $(SHARE) $(ARGS)

coverage: $(VENV)/.dev  ## the same, and how much of handler/ they reach: the lines that they do not, and a floor
	$(SHARED) $(BIN)/python -m pytest $(SHARE) --cov --cov-report=term-missing $(ARGS)

# Each mutant is a copy of the code with one change; what survives is in tests/mutants.md.
mutants: $(VENV)/.dev $(MODEL_DIR)/model.json  ## change the code in a thousand small ways, and see which changes no test notices (ARGS='*[147]': three in ten)
	TEST_MODEL=$(abspath $(MODEL_DIR)) $(BIN)/mutmut run --max-children 4 $(ARGS)
	$(BIN)/mutmut results

# Lambda's Python need not be the one that torch is installed on: a virtual environment of its own, without
# torch, and a model made before. What needs torch is skipped there.
OTHER      ?= python3.13
OTHER_VENV := .cache/$(notdir $(OTHER))
test-other: $(OTHER_VENV)/.dev $(VENV)/.dev $(MODEL_DIR)/model.json  ## the tests that need no torch, on OTHER=python3.13
	TEST_MODEL=$(abspath $(MODEL_DIR)) RIE=$${RIE:-$(abspath $(BIN)/aws-lambda-rie)} $(OTHER_VENV)/bin/python -m pytest $(SHARE) $(ARGS)

cpus: override PROFILE := fast
cpus: $(VENV)/.dev $(EXPORTED_fast)  ## the function's vectors on an emulated arm64, and an x86 without AVX-512, beside those here (needs root and mmdebstrap; 20 minutes of CPU; ARGS="--images N": N of 42 images)
	CLIP_MODEL_DIR=$(MODEL_DIR) $(BIN)/python -m tests.cpus $(ARGS)

e2e: $(VENV)/.dev  ## the real container, with docker and sam (environment: DOCKER, SAM, BASE_IMAGE, EXPORT_IMAGE)
	$(BIN)/python -m pytest tests/e2e $(ARGS)

# The client and what it needs, in an environment of its own: who deploys needs no torch. The key is not on the
# command line, where others could read it.
SMOKE := .cache/smoke
smoke: export ENCODER_API_KEY := $(or $(KEY),$(ENCODER_API_KEY))
smoke: $(if $(URL),$(SMOKE)/.installed)  ## try a deployment as its first user would: URL=https://.../prod or lambda://name:live (KEY=the API's key, ARGS=--sigv4)
	@$(SMOKE)/bin/python -m clip_encoder health --deep --url '$(or $(URL),$(error say which: make smoke URL=https://...))' $(if $(wildcard $(EXPORTED)),--model $(MODEL_DIR)) $(ARGS)

models: $(VENV)/.dev  ## OpenAI's other image towers in full size, with synthetic weights: parity, size, time and memory (ARGS="ViT-L/14": that one; with it half an hour)
	$(BIN)/python -m tests.models $(ARGS)

fuzz: $(VENV)/.dev $(MODEL_DIR)/model.json  ## damaged files and events, 20,000 of them in three minutes (ARGS="--cases N --seconds S")
	CLIP_MODEL_DIR=$(MODEL_DIR) $(BIN)/python -m tests.fuzz $(ARGS)

soak: $(VENV)/.dev $(MODEL_DIR)/model.json  ## 5,000 good and bad requests through the emulator (ARGS="--requests N")
	CLIP_MODEL_DIR=$(MODEL_DIR) $(BIN)/python -m tests.soak $(ARGS)

proof: $(VENV)/.dev $(MODEL_DIR)/model.json  ## 10,000 good and bad objects through the batch engines, 20 minutes (ARGS="--objects N")
	CLIP_MODEL_DIR=$(MODEL_DIR) $(BIN)/python -m tests.proof $(ARGS)

# Lambda refuses an image index, which is what BuildKit's attestations would make of it. The classic builder, which
# `sam build` uses, knows no secrets, so that the Dockerfile names none: where there is a token, a line is changed.
DOCKER ?= docker
WITH_SECRET := sed 's/^RUN checkpoint=/RUN --mount=type=secret,id=hf_token checkpoint=/' Dockerfile |
SECRET := --secret id=hf_token,env=HF_TOKEN --file -
OF_THE_BUILD := WEIGHTS_URL ACTIVATION HF_ENDPOINT HF_HUB_OFFLINE
image:  ## the Lambda image, clip-image-encoder (WEIGHTS=openai|custom|synthetic, PROFILE=exact|fast, TOWERS=image,text|image|text, MODEL=ViT-B/32|hf:NAME)
	$(if $(HF_TOKEN),$(WITH_SECRET)) BUILDX_NO_DEFAULT_ATTESTATIONS=1 $(DOCKER) build $(if $(HF_TOKEN),$(SECRET)) \
		--build-arg WEIGHTS=$(if $(filter hf:%,$(MODEL)),custom,$(WEIGHTS)) --build-arg PROFILE=$(PROFILE) --build-arg TOWERS=$(TOWERS) \
		$(if $(MODEL),--build-arg MODEL=$(MODEL)) $(foreach name,$(OF_THE_BUILD),$(if $($(name)),--build-arg $(name)=$($(name)))) \
		--tag clip-image-encoder .

contents:  ## what the Lambda image holds: every package and its version
	@$(DOCKER) run --rm --entrypoint python clip-image-encoder -m pip list --path . --format freeze

bench: $(VENV)/.bench  ## measure beside the old way and other engines, 17 minutes (ARGS=--quick: three)
	-@$(MAKE) --no-print-directory $(RIVALS)/.installed
	$(BIN)/python -m benchmarks $(ARGS)

lint: $(VENV)/.dev  ## style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/.dev  ## make lint pass
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

check: lint  ## lint and types
	$(BIN)/mypy

COMPILE := $(BIN)/uv pip compile --quiet --universal --no-strip-extras --python-version 3.11 --generate-hashes
LOCK    := $(COMPILE) pyproject.toml
lock: $(VENV)/.dev  ## pin the newest versions of everything, with hashes
	$(LOCK) --upgrade -o requirements.txt
	$(LOCK) --upgrade --extra server --extra torch --extra export -c requirements.txt -o requirements-export.txt
	$(LOCK) --upgrade --extra server --extra torch --extra export --extra dev -c requirements-export.txt \
		-o requirements-dev.txt
	$(LOCK) --upgrade --extra torch --extra export --extra bench -c requirements-dev.txt -o requirements-bench.txt
	$(COMPILE) --upgrade --group rivals -o requirements-rivals.txt

# --- installation: each stamp is newer than the list it was installed from -----------------------
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.export-$(TORCH): requirements-export.txt requirements-torch.txt | $(BIN)/python
	$(PIP) install -r requirements-export.txt
	$(PIP) install --retries 2 $(TORCH_$(TORCH))
	@touch $@

TORCH_cpu  := --no-deps -r requirements-torch.txt
# CUDA's own libraries are separate packages there, so with what it depends on.
TORCH_cuda := torch==2.13.0 torchvision==0.28.0

# A lock file is complete but for torch and torchvision, which OpenCLIP asks for and pip would fetch for CUDA.
$(VENV)/.dev: requirements-dev.txt $(EXPORTER)
	$(PIP) install --no-deps -r requirements-dev.txt
	-@$(MAKE) --no-print-directory $(BIN)/aws-lambda-rie
	@touch $@

# torch itself is in none of the lists but requirements-torch.txt.
$(OTHER_VENV)/.dev: requirements-dev.txt
	$(OTHER) -m venv $(OTHER_VENV)
	$(OTHER_VENV)/bin/pip --disable-pip-version-check --quiet install --require-hashes --no-deps -r requirements-dev.txt
	@touch $@

$(VENV)/.bench: requirements-bench.txt $(EXPORTER)
	$(PIP) install -r requirements-bench.txt
	@touch $@

$(SMOKE)/.installed: client/pyproject.toml
	$(PYTHON) -m venv $(SMOKE)
	$(SMOKE)/bin/pip --disable-pip-version-check --quiet install --editable './client[aws]'
	@touch $@

# Competitors that need an environment of their own. Without them the benchmark says so and goes on.
RIVALS := .cache/rivals
RIVALS_PIP := $(RIVALS)/bin/pip --disable-pip-version-check --quiet
$(RIVALS)/.installed: requirements-rivals.txt requirements-torch.txt
	$(PYTHON) -m venv $(RIVALS)
	$(RIVALS_PIP) install -r requirements-rivals.txt
	$(RIVALS_PIP) install --retries 2 --no-deps -r requirements-torch.txt
	@touch $@

# AWS's Runtime Interface Emulator, out of the SAM CLI's wheel: the tests run the real runtime in it.
SAM_CLI := 1.170.0
$(BIN)/aws-lambda-rie: | $(BIN)/python
	$(PIP) download --no-deps --dest $(VENV)/sam aws-sam-cli==$(SAM_CLI)
	$(BIN)/python -m zipfile -e $(VENV)/sam/*.whl $(VENV)/sam
	mv $(VENV)/sam/samcli/local/rapid/aws-lambda-rie-$(if $(filter aarch64 arm64,$(shell uname -m)),arm64,x86_64) $@
	chmod +x $@
	rm -r $(VENV)/sam

clean:  ## remove what make made, except downloads
	rm -rf $(VENV) $(OTHER_VENV) $(RIVALS) $(SMOKE) $(MODEL_DIR) .pytest_cache .mypy_cache .ruff_cache .coverage* mutants
