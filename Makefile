.PHONY: check lint test slow format families docs build gpu bench

check: lint ## lint and tests, in this environment
	pytest -n 2

lint: ## format, lint, spelling, types, generated docs
	ruff format --check .
	ruff check .
	git ls-files -z | xargs -0 codespell
	mypy
	python docs/generate.py --check

test: ## tests alone; make test ARGS="-k verify"
	pytest $(ARGS)

slow: ## the tests that are off by default
	pytest -m slow

format: ## format the code and write the generated docs
	ruff format .
	ruff check --fix .
	python docs/generate.py

families: ## the generated tables of model families, from the installed transformers
	python -W ignore -m gqkva_convert.derivation
	ruff check --fix gqkva_convert/architectures/native_tables.py
	ruff format gqkva_convert/architectures/native_tables.py
	python docs/generate.py

docs: ## the documentation as a site in site/; needs '.[docs]'
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

build: ## the wheel and the source distribution in dist/
	python -m build

gpu: ## tests and benchmarks that need a CUDA device
	pytest -m gpu tests
	python benchmarks/attention.py --device cuda --json attention-cuda.json --markdown attention-cuda.md
	python benchmarks/decoding.py --device cuda --dtype bfloat16 --layers 4 --heads 32 --intermediate 11008 --gkv 8 \
		--context 4096 32768 --batch 1 16 --markdown decoding-cuda.md
	python benchmarks/decoding.py --device cuda --dtype bfloat16 --layers 32 --heads 32 --intermediate 11008 --gkv 8 \
		--context 4096 32768 --batch 1 --markdown decoding-7b-cuda.md

bench: ## conversion speed and memory; make bench FOLDER=/a/disk/with/40GB MERGEKIT=/venv/bin/python
	python benchmarks/conversion.py --folder $(FOLDER) $(if $(MERGEKIT),--mergekit $(MERGEKIT)) \
		--json $(FOLDER)/conversion.json --markdown $(FOLDER)/conversion.md
