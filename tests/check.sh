#!/usr/bin/env bash
# Everything that must hold, cheapest first: the package is what the notebooks say, its names are defined,
# the notebooks pass, the tests pass. Run by `make test`, with the environment's programs on the path.
# WORKBENCH_TESTS=all (`make test-all`): whole matrices where otherwise each of their values is tried once.
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=PASSIVE PYTHONPATH="$PWD"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # two workers on two cores: one thread each

before=$(mktemp -d)
trap 'rm -rf "$before"' EXIT
cp -r nbs workbench "$before"
nbdev_export
nbdev_clean
for folder in nbs workbench; do
    diff -r -x __pycache__ -x .ipynb_checkpoints "$before/$folder" "$folder" || {
        echo "$folder differs after nbdev_export and nbdev_clean (see above): commit what they wrote." >&2
        exit 1
    }
done

python -m pyflakes workbench tests
nbdev_test --n_workers 2  # every folder but those with a .notest: their notebooks are run by tests
# notebooks of the library that stand beside those that users run
for book in nbs/[0-9]*.ipynb; do nbdev_test --path "$book" --ignore_fname none; done
# a file stays with its worker, so its trained runs serve all of its tests; long files begin (conftest.py)
python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder tests
