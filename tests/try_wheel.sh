#!/bin/sh
# Installs a wheel into an empty environment and uses it from an empty folder. Usage: try_wheel.sh WHEEL CONSTRAINTS
set -eu
wheel=$(realpath "$1")
constraints=$(realpath "$2")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --constraint "$constraints" "$wheel"
mkdir "$folder/empty"
cd "$folder/empty"
"$folder/venv/bin/python" -m arnn_lightning --help > /dev/null
"$folder/venv/bin/arnn" data.generate.events=20000 trainer.max_epochs=1
