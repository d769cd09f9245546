#!/bin/bash
# Mosaics -> store -> model -> catalogue: each job starts when the job before it has succeeded.
#   jobs/pipeline.sh SITE SURVEY MOSAICS FOLDER [CONFIG]
# makes FOLDER/store, FOLDER/run (with CONFIG; else the bundled model is used), FOLDER/catalogue.
# It may be run again at any time: finished work is skipped, and no stage runs twice at once.
# Optional environment variables: ARRAY (jobs of the extraction), NODES (of the training),
# SOURCES (a source list), DRY_RUN=1 (print, submit nothing).
set -euo pipefail
if [ $# -lt 4 ]; then
    sed -n '2,7s/^# //p' "$0" >&2
    exit 2
fi
site=$1 survey=$2 mosaics=$(realpath -m "$3") folder=$(realpath -m "$4") config=${5:+$(realpath -m "$5")}
name=$(basename "$folder")-$(printf %s "$folder" | cksum | cut -d ' ' -f 1)

submit() { # STAGE JOB_BEFORE OPTIONS... -- ARGUMENTS...
    local stage=$1 before=$2
    shift 2
    job=$(photozhpc submit "$stage" --site "$site" --only-one "$name" ${before:+--after "$before"} \
        ${DRY_RUN:+--dry-run} "$@")
    echo "$stage: $job"
    [ -z "${DRY_RUN:-}" ] || job=JOB_OF_${stage^^}
}

# With --only-one, the tasks of an array still run side by side, because they are one job.
[ -n "${DRY_RUN:-}" ] || mkdir -p "$folder"
submit extract "" --array "${ARRAY:-1}" -- --survey "$survey" --mosaics "$mosaics" \
    --store "$folder/store" ${SOURCES:+--sources "$SOURCES"}
if [ -n "$config" ]; then
    submit train "$job" ${NODES:+--nodes "$NODES"} -- --config "$config" --store "$folder/store" \
        --out "$folder/run"
fi
submit infer "$job" -- --survey "$survey" --store "$folder/store" --out "$folder/catalogue" \
    ${config:+--checkpoint "$folder/run/model.safetensors"}
