# Sourced by demo.sh and test.sh from the repository's root: makes .venv with the locked versions and fetches the assets.
# Usage: source scripts/setup.sh EXTRA, where EXTRA is the pyproject extra to install (demo or dev).
extra=$1
stamp=.venv/.installed-$extra

if ! .venv/bin/python -c "import pip" 2>/dev/null; then
    echo "== Making .venv"
    "${PYTHON:-python3}" -m venv .venv
fi
if [ ! -e "$stamp" ] || [ requirements.lock -nt "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    echo "== Installing the locked versions (about 1 GB with PyTorch; a minute or two)"
    .venv/bin/python -m pip install --disable-pip-version-check \
        --constraint requirements.lock --editable ".[$extra]"
    touch "$stamp"
fi
echo "== Fetching the model and the texts"
.venv/bin/python scripts/fetch_assets.py
