#!/usr/bin/env bash
# Checks ptuning on one GPU, in at most 9 minutes, without a network: tests, then the benchmark against PEFT.
#
# Usage: [VARIABLE=value …] bash scripts/gpu_check.sh [WHEELS [ASSETS]]      from anywhere in a copy of the repository
#
#   WHEELS  a folder of wheels (default ./wheels), installed with --no-deps into a temporary folder: those of
#             transformers 5.23 or newer, peft, datasets, jsonargparse, typeshed_client, docstring_parser, pydantic, dill,
#             multiprocess, and accelerate, einops, safetensors, tokenizers, pyyaml, tqdm, pyarrow, pandas, xxhash,
#             pytest, where the machine's Python has not got them (gguf only to make the assets, hypothesis only for
#             other tests than these). One version of each; no wheel of ptuning is needed: the copy itself is run.
#   ASSETS  a folder as scripts/fetch_assets.py makes it (default ./assets). Needed of it: the tokenizer,
#             smollm2-135m-instruct/tokenizer*.json and config.json, and movie_reviews/train.csv. Without the weights,
#             smollm2-135m-instruct/model.safetensors, a random model of their shape stands for them.
#
# The machine has Python 3.11 or newer with torch 2.11 or newer, bash, and GNU timeout.
#
#   OUT     where everything is written: gpu_check.log, test_cuda.xml, PART.json (default: a new temporary folder)
#   PYTHON  the Python to use (default python3)
#   PARTS   what to run (default "tests smollm2 1b 1b-p100 1b-long 8b-long")
#   DEVICE  cuda or cpu (default cuda)
#   QUICK   1: tiny models, few rows, one round; shows that the script runs, and the bars are not judged
#   WHOLE   seconds that everything may take (default 530)
#
# The status is 1 if a part fails, runs out of time or misses a bar; a part that fails does not stop the next.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' scripts/gpu_check.sh
    exit 0
fi
wheels=${1:-./wheels} assets=${2:-./assets}
python=${PYTHON:-python3} device=${DEVICE:-cuda} quick=${QUICK:-0} whole=${WHOLE:-530}
parts=${PARTS:-tests smollm2 1b 1b-p100 1b-long 8b-long}
out=${OUT:-$(mktemp -d)}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
base=$assets/smollm2-135m-instruct data=$assets/movie_reviews/train.csv
failed=()
mkdir -p "$out"
export PYTHONPATH=$PWD:$site HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

install() { # the wheels, and ptuning's name and version for those who ask for them
    if compgen -G "$wheels/*.whl" >/dev/null; then
        timeout 60 "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-index --no-compile \
            --find-links "$wheels" --target "$site" "$wheels"/*.whl || return 1
    else
        echo "== No wheels in $wheels: going on with what $python has"
    fi
    local version
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
    if ! "$python" -c 'from importlib.metadata import version; version("ptuning")' 2>/dev/null; then
        mkdir -p "$site/ptuning-$version.dist-info"
        printf 'Metadata-Version: 2.1\nName: ptuning\nVersion: %s\n' "$version" >"$site/ptuning-$version.dist-info/METADATA"
    fi
    "$python" - <<'PYTHON'
import importlib.metadata as metadata, sys
names = ("torch transformers peft datasets jsonargparse typeshed_client docstring_parser pydantic dill multiprocess accelerate "
         "einops safetensors tokenizers pyyaml tqdm pyarrow pandas xxhash pytest ptuning").split()
found = {each.metadata["Name"].lower().replace("-", "_"): each.version for each in reversed(list(metadata.distributions()))}
print("== Python", sys.version.split()[0], {each: found.get(each) for each in names})
missing = [each for each in names if each not in found]
if missing:
    sys.exit(f"== Not installed: {', '.join(missing)}; expected all of them; add their wheels")
PYTHON
}

part() { # NAME LIMIT COMMAND…: if it is asked for, runs it for at most LIMIT seconds and what is left of the whole
    local name=$1 limit=$2 left=$((whole - SECONDS)) status=0
    shift 2
    [[ " $parts " == *" $name "* ]] || return 0
    if ((left < limit)); then limit=$left; fi
    echo "== $name: at most $limit s"
    if ((limit < 5)); then
        status=124
    else
        timeout -k 5 "$limit" "$@" || status=$?
    fi
    if ((status)); then
        failed+=("$name")
        echo "== $name failed with status $status (124: out of time)"
    fi
    echo "== $name ended after $SECONDS s"
}

bench() { # NAME LIMIT ROWS VIRTUAL [OPTION…]
    local name=$1 limit=$2 rows=$3 virtual=$4
    shift 4
    part "$name" "$limit" "$python" scripts/bench.py --base "$base" --data "$data" --device "$device" \
        --dtype bfloat16 --batch "$rows" --virtual "$virtual" --json "$out/$name.json" "$@"
}

model() { # SHAPE: the option for a random model
    if ((quick)); then echo "--shape 22x64"; else echo "--shape $1"; fi
}

check() {
    if ! install; then
        echo "== Nothing was run"
        return 1
    fi
    part tests 150 "$python" -m pytest -q -p no:cacheprovider tests/test_cuda.py --junitxml="$out/test_cuda.xml"

    local few=32 some=16 long=256 rounds="--rounds 2" smollm2=""
    if ((quick)); then few=8 some=8 long=40 rounds="--rounds 1 --steps 1"; fi
    if ((quick)) || [[ ! -e $base/model.safetensors ]]; then smollm2=$(model 135m); fi
    if [[ ! -e $base/tokenizer.json || ! -e $data ]]; then
        echo "== $base/tokenizer.json or $data is missing: even random models need a tokenizer and texts; no benchmark"
        failed+=(benchmark)
    else # a review has 25 tokens on average, 31 with the words around it; 256 are 262 with them
        bench smollm2 75 $few 20 $rounds $smollm2
        bench 1b 95 $few 20 $rounds $(model 1b) --profile
        bench 1b-p100 80 $few 100 $rounds $(model 1b)
        bench 1b-long 85 $few 20 $rounds $(model 1b) --text $long
        bench 8b-long 140 $some 20 $rounds $(model 8b) --text $long --apart
    fi

    local measured=${parts//tests/} show=""
    if ((quick)); then show=--show-only; fi
    echo
    # shellcheck disable=SC2086
    "$python" scripts/benchmark/bars.py "$out" --parts $measured $show || failed+=(bars)
    echo "== $SECONDS s; everything is in $out; failed: ${failed[*]:-nothing}"
    ((${#failed[@]} == 0))
}

check 2>&1 | tee "$out/gpu_check.log"
exit "${PIPESTATUS[0]}"
