#!/usr/bin/env bash
# The S3 server of deploy/up.sh and deploy/compose.yaml: SeaweedFS in one process, with three identities.
#
# `admin` may do anything; `thinkdiff`, that of runs, may read, write and list the bucket and nothing else; `reader` may
# read and list it. In from the environment: S3_ADMIN_SECRET, S3_SECRET, S3_READER_SECRET (without it there is no
# reader), and where they differ from the defaults below S3_HOST, S3_PORT, S3_FOLDER, BUCKET, WEED. The inner ports
# listen on loopback; S3's and the one 10,000 above, where gRPC manages identities, on S3_HOST. There SeaweedFS refuses
# whoever has no token signed with a key, and only when it is given one: here a new one at each start, told to nobody.
set -euo pipefail
umask 077
host=${S3_HOST:-0.0.0.0}
port=${S3_PORT:-8333}
folder=${S3_FOLDER:-/data}
bucket=${BUCKET:-thinkdiff}

reader=
[ -z "${S3_READER_SECRET:-}" ] || reader=',
  {"name": "reader", "credentials": [{"accessKey": "reader", "secretKey": "'$S3_READER_SECRET'"}],
   "actions": ["Read:'$bucket'", "List:'$bucket'"]}'
cat >"$folder/identities.json" <<END
{"identities": [
  {"name": "admin", "credentials": [{"accessKey": "admin", "secretKey": "$S3_ADMIN_SECRET"}], "actions": ["Admin"]},
  {"name": "thinkdiff", "credentials": [{"accessKey": "thinkdiff", "secretKey": "$S3_SECRET"}],
   "actions": ["Read:$bucket", "Write:$bucket", "List:$bucket"]}$reader
]}
END
mkdir -p "$folder/data"
WEED_JWT_FILER_SIGNING_KEY=$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n')
export WEED_JWT_FILER_SIGNING_KEY
exec "${WEED:-weed}" -logtostderr=true server -dir="$folder/data" -ip=127.0.0.1 -ip.bind=127.0.0.1 \
    -master.port=$((port + 1000)) -volume.port=$((port + 1001)) -filer=true -filer.port=$((port + 1002)) \
    -s3=true -s3.ip.bind="$host" -s3.port="$port" -s3.port.iceberg=0 -s3.port.lance=0 \
    -s3.config="$folder/identities.json" -volume.max=0 -volume.minFreeSpace=1 -volume.preStopSeconds=1 \
    -master.volumeSizeLimitMB=1024 -master.volumePreallocate=false -master.telemetry=false
