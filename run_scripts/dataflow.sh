#!/usr/bin/env bash
# The job on Google Cloud Dataflow, with the arguments of `tayyar run` and Beam's own.
#
#   run_scripts/dataflow.sh --project PROJECT --region REGION --temp_location gs://BUCKET/tmp \
#       --input 'gs://BUCKET/wiki/*.ndjson' --output gs://BUCKET/embedded \
#       --endpoint http://10.0.0.5:8080 --token gsm:projects/PROJECT/secrets/NAME/versions/latest
#
#   run_scripts/dataflow.sh check …     the same options: ten documents through all of it, before the job. It takes some
#                                       minutes, most of them for starting a worker.
#
# You need: `gcloud auth application-default login`, the Dataflow API enabled in the project, and this machine must
# reach the endpoint as well. The workers' account (--service_account_email; otherwise the project's default account of
# Compute Engine) needs roles/dataflow.worker, roles/storage.objectUser on the buckets, and
# roles/secretmanager.secretAccessor on the token's secret.
#
# Always:
#   --project PROJECT            its id
#   --region REGION              where the workers are; best the endpoint's
#   --temp_location gs://…       for what Dataflow keeps while the job runs
#   --input, --output, --endpoint, --token, …   as of `tayyar run`; files are gs://. For s3:// workers need boto3 and
#                                keys of AWS: only with an image that has both (--sdk_container_image)
# Added here unless they are given:
#   --setup_file                 this folder's setup.py: how the workers get Tayyar; not with --sdk_container_image
#   --max_num_workers 4          machines at most. Each starts a process for each processor, and each process begins
#                                with its share of the endpoint's permits. The GPU, not they, is what limits the job.
#   --machine_type e2-standard-2 two processors, 8 GB: a process takes 400 MB with the usual --shard_bytes
# Where they are needed:
#   --num_workers N              machines at the start (Dataflow chooses)
#   --no_use_public_ips          workers without public addresses. The subnetwork must have Private Google Access, and
#                                a way to PyPI (Cloud NAT) for what setup.py asks for; or --sdk_container_image IMAGE
#                                with Tayyar and what it needs in it
#   --subnetwork URL             https://www.googleapis.com/compute/v1/projects/P/regions/R/subnetworks/S: the one from
#                                which a private endpoint is reached; --network NAME for one that is divided by itself
#   --worker_zone ZONE           all workers in one zone, as beside the endpoint's GPU
#   --service_account_email A    whose rights the workers have
#   --labels key=value           on the job, for the bill; repeatable
#   --job_name NAME              what the console shows
#   --staging_location gs://…    for the packages (otherwise below --temp_location)
#
# The token: name a secret (gsm:…). Workers do not have your environment, so env:NAME works only with an image that
# sets it. The job is a batch job: nothing of Dataflow's Streaming Engine applies.
#
# Ctrl-C cancels the job; the same command continues from what is done. How far it is, from anywhere:
#   tayyar status --output gs://BUCKET/embedded --watch
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
. "$(dirname -- "${BASH_SOURCE[0]}")/arguments.sh"

help_if_asked "$@"
take_command "$@"
missing=''
for name in project region temp_location output endpoint; do
    value_of "$name" >/dev/null || missing+=" --$name"
done
if [ -n "$missing" ]; then
    fail "not given:$missing. See run_scripts/dataflow.sh --help"
fi
default runner DataflowRunner
value_of sdk_container_image >/dev/null || default setup_file "$root/setup.py" # an image has Tayyar in it
default max_num_workers 4
value_of worker_machine_type >/dev/null || default machine_type e2-standard-2

use_environment gcp
exec "$venv/bin/tayyar" "$command" "${arguments[@]}"
