# Everything that people run. `make help` lists it.
PYTHON ?= python3
VENV ?= .venv
EXPERIMENT ?=
SET ?=
PORT ?= 8000
WORKERS ?= 1
REPORTS_PORT ?= 8001
READY = $(VENV)/.ready
# What `make experiments` leaves out (all metrics and file hashes), and which metrics it keeps.
DETAILS = ^(ensemble|rules|xgboost|isolation_forest|one_class_svm|lstm_autoencoder|filings)\..*|.*/.*
HEADLINES = ensemble\.(average_precision|alert_reduction_at_rules_recall|card_precision_at_100|recall_at_alert_share_0\.005)\.estimate
# The pipeline's commands say `python`: put the environment's own first.
RUN = PATH="$(abspath $(VENV))/bin:$$PATH" PYTHONHASHSEED=0
PY = $(RUN) python

.DEFAULT_GOAL := help
.PHONY: help repro params test test-fast lint experiments lab mlflow psql serve reports clean lock

help: ## say what each target does
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): requirements.lock pyproject.toml
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --requirement requirements.lock
	$(VENV)/bin/python -m pip install --quiet --no-deps --editable .
	@touch $@

repro: $(READY) ## run the pipeline; EXPERIMENT=<conf/experiment name>, SET='key=value ...' for overrides
	@$(PY) -m reperform params $(if $(EXPERIMENT),--experiment $(EXPERIMENT)) $(SET)
	@$(RUN) dvc repro
	@$(PY) -m reperform summary

params: $(READY) ## compose params.yaml from conf/ (EXPERIMENT and SET as above)
	@$(PY) -m reperform params $(if $(EXPERIMENT),--experiment $(EXPERIMENT)) $(SET)

test: $(READY) ## run every test
	$(PY) -m pytest -n 2 --dist worksteal

test-fast: $(READY) ## run the tests that take seconds
	$(PY) -m pytest -n 2 --dist worksteal -m "not slow"

lint: $(READY) ## check style, types and notebooks
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) nbstripout --verify --keep-id notebooks/*.ipynb

experiments: $(READY) ## compare experiments: headline metrics and changed parameters
	@$(RUN) dvc exp show --md --only-changed --drop '$(DETAILS)' --keep '$(HEADLINES)'

lab: $(READY) ## open JupyterLab on the notebooks
	$(RUN) jupyter lab notebooks

mlflow: $(READY) ## open MLflow's pages on runs and models at http://localhost:5000
	$(RUN) MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=1 mlflow ui --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port 5000

psql: $(READY) ## open the exported results in psql
	@$(PY) -m reperform psql

serve: $(READY) ## score transactions over HTTP at http://localhost:8000/docs; PORT, WORKERS
	$(PY) -m reperform serve --port $(PORT) --workers $(WORKERS)

reports: $(READY) ## show the reports at http://localhost:8001
	$(PY) -m http.server $(REPORTS_PORT) --bind 127.0.0.1 --directory reports/site

lock: ## pin the versions that are installed now
	@$(VENV)/bin/python -m pip freeze --exclude-editable | sed -E "s/\+cpu$$//" > requirements.lock

clean: ## remove outputs (the environment, DVC's cache, the run log and feedback stay)
	find data -mindepth 1 -maxdepth 1 -type d ! -name audit ! -name feedback -exec rm -rf {} +
	rm -rf data/audit/manifest.json reports/site reports/build reports/notebooks
