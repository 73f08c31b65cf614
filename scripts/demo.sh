#!/usr/bin/env bash
# From a fresh clone to a tuned prompt: environment, model and texts, training, evaluation, nearest tokens.
# Run it again and it reuses what is there.
set -euo pipefail
cd "$(dirname "$0")/.."
config=configs/movie_reviews.yaml
prompt=runs/movie-reviews/prompt

source scripts/setup.sh "demo"

printf '\n== Training 20 virtual tokens in front of a frozen model (%s)\n' "$config"
.venv/bin/ptuning train --config "$config" --resume

printf '\n== What the virtual tokens decode to\n'
.venv/bin/ptuning inspect "$prompt" --top-k 3

printf '\n== Using it\n'
.venv/bin/ptuning predict "$prompt" --input "a gripping film that never lets go"
cat <<END
From Python:

    import ptuning
    lm = ptuning.PromptedLM.from_pretrained("assets/smollm2-135m-instruct", {"sentiment": "$prompt"})
    print(lm.classify([{"text": "a gripping film that never lets go"}], prompt="sentiment"))
END
printf '\nThe whole took %d min %d s.\n' $((SECONDS / 60)) $((SECONDS % 60))
