# shellcheck shell=bash
# The registry port and the admin port as curl sees them.

http_needs() { echo curl jq sha256sum; }

# fetch PATH [CURL-OPTION...]: fills STATUS, and the files head and body of this check's own folder.
fetch() {
  local path=$1
  shift
  REPLY_DIR=${REPLY_DIR:-$(mktemp -d "$WORK/reply.XXXXXX")}
  : >"$REPLY_DIR/body"
  STATUS=$(curl -sS --max-time "$PATIENCE" -o "$REPLY_DIR/body" -D "$REPLY_DIR/head" -w '%{http_code}' "$@" "http://127.0.0.1:$FOREBAY_PORT$path")
  printf -- '--- %s %s -> %s\n' "$path" "$*" "$STATUS"
  cat "$REPLY_DIR/head"
}

header() { # header NAME: its value, nothing when absent
  tr -d '\r' <"$REPLY_DIR/head" | awk -v name="$1" 'BEGIN { name = tolower(name) ":" } tolower($1) == name { sub(/^[^:]*: */, ""); print; exit }'
}

body_sha256() { sha256sum <"$REPLY_DIR/body" | cut -d' ' -f1; }

expect_status() { equal 'status' "$1" "$STATUS"; }

expect_header() { # expect_header NAME REGEX
  [[ $(header "$1") =~ $2 ]] || fail "header $1: expected something like '$2', found '$(header "$1")'"
}

expect_error() { # expect_error STATUS CODE
  expect_status "$1"
  equal 'error code' "$2" "$(jq -r '.errors[0].code' "$REPLY_DIR/body")"
  [[ $(jq -r '.errors[0].message' "$REPLY_DIR/body") == *?* ]] || fail 'the error has no message'
}

MANIFEST_TYPES=(-H 'Accept: application/vnd.oci.image.index.v1+json' -H 'Accept: application/vnd.oci.image.manifest.v1+json'
  -H 'Accept: application/vnd.docker.distribution.manifest.list.v2+json' -H 'Accept: application/vnd.docker.distribution.manifest.v2+json')

http_ping() {
  fetch /v2/
  expect_status 200
  expect_header Docker-Distribution-Api-Version '^registry/2\.0$'
  expect_header Cache-Status '^forebay; fwd=bypass'
  expect_header X-Request-Id .
  fetch /v2/ -H 'X-Request-Id: told-by-the-client'
  expect_header X-Request-Id '^told-by-the-client$'
}

http_manifest() {
  local digest length
  fetch /v2/library/app1/manifests/latest "${MANIFEST_TYPES[@]}"
  expect_status 200
  digest=$(header Docker-Content-Digest)
  length=$(header Content-Length)
  equal 'digest of the body' "$digest" "sha256:$(body_sha256)"
  equal 'digest at the upstream' "$digest" "$(curl -fsSI "${MANIFEST_TYPES[@]}" "http://127.0.0.1:$UPSTREAM_PORT/v2/library/app1/manifests/latest" |
    tr -d '\r' | awk 'tolower($1) == "docker-content-digest:" { print $2 }')"
  expect_header Content-Type '^application/vnd\.oci\.image\.manifest\.v1\+json$'

  fetch "/v2/library/app1/manifests/$digest" "${MANIFEST_TYPES[@]}"
  expect_status 200
  expect_header Cache-Status '^forebay; hit'
  equal 'digest of the body' "$digest" "sha256:$(body_sha256)"

  fetch /v2/library/app1/manifests/latest "${MANIFEST_TYPES[@]}" --head
  expect_status 200
  equal 'Content-Length of HEAD' "$length" "$(header Content-Length)"
  equal 'digest of HEAD' "$digest" "$(header Docker-Content-Digest)"

  fetch "/v2/library/app1/manifests/$digest" "${MANIFEST_TYPES[@]}" -H "If-None-Match: \"$digest\""
  expect_status 304
  equal 'bytes of a 304' 0 "$(wc -c <"$REPLY_DIR/body")"
}

expect_hit() { # expect_hit PATH
  fetch "$1"
  expect_header Cache-Status '^forebay; hit'
}

layer_of() { # layer_of REPOSITORY INDEX: digest and size of a layer of its latest manifest
  fetch "/v2/$1/manifests/latest" "${MANIFEST_TYPES[@]}" >&2
  jq -r --argjson index "$2" '.layers[$index] | "\(.digest) \(.size)"' "$REPLY_DIR/body"
}

http_blob() {
  local digest size whole
  REPLY_DIR=$(mktemp -d "$WORK/reply.XXXXXX")
  read -r digest size < <(layer_of library/app1 0)
  fetch "/v2/library/app1/blobs/$digest"
  expect_status 200
  equal 'digest of the body' "$digest" "sha256:$(body_sha256)"
  expect_header Cache-Status '^forebay; fwd=miss; stored'
  whole=$WORK/base-layer
  cp "$REPLY_DIR/body" "$whole"

  # A client has the last byte a moment before the blob is in its place.
  eventually expect_hit "/v2/library/app1/blobs/$digest"
  fetch "/v2/library/app1/blobs/$digest"
  cmp "$whole" "$REPLY_DIR/body"

  fetch "/v2/library/app1/blobs/$digest" --head
  expect_status 200
  equal 'Content-Length of HEAD' "$size" "$(header Content-Length)"
  expect_header Accept-Ranges '^bytes$'

  fetch "/v2/library/app1/blobs/$digest" -H "If-None-Match: $(header ETag)"
  expect_status 304
}

http_range() {
  local digest size
  REPLY_DIR=$(mktemp -d "$WORK/reply.XXXXXX")
  read -r digest size < <(layer_of library/app1 0)
  fetch "/v2/library/app1/blobs/$digest" -H 'Range: bytes=1000000-1999999'
  expect_status 206
  equal 'Content-Range' "bytes 1000000-1999999/$size" "$(header Content-Range)"
  cmp "$REPLY_DIR/body" <(tail -c +1000001 "$WORK/base-layer" | head -c 1000000 || true)

  fetch "/v2/library/app1/blobs/$digest" -H 'Range: bytes=-5000'
  expect_status 206
  equal 'Content-Range' "bytes $((size - 5000))-$((size - 1))/$size" "$(header Content-Range)"
  cmp "$REPLY_DIR/body" <(tail -c 5000 "$WORK/base-layer")

  fetch "/v2/library/app1/blobs/$digest" -H "Range: bytes=$((size - 7))-"
  expect_status 206
  cmp "$REPLY_DIR/body" <(tail -c 7 "$WORK/base-layer")

  fetch "/v2/library/app1/blobs/$digest" -H "Range: bytes=$size-"
  expect_error 416 RANGE_INVALID
  equal 'Content-Range' "bytes */$size" "$(header Content-Range)"
}

# The first request of engines that fetch a layer in pieces: 206 also when nothing is here yet, and one download.
http_cold_range() {
  fetch "/v2/library/raw/blobs/$COLD_RANGE_BLOB" -H 'Range: bytes=0-'
  expect_status 206
  equal 'Content-Range' "bytes 0-8388607/8388608" "$(header Content-Range)"
  equal 'digest of the body' "$COLD_RANGE_BLOB" "sha256:$(body_sha256)"
}

http_tags() {
  fetch /v2/library/multi/tags/list
  expect_status 200
  equal 'tags' 'docker latest' "$(jq -r '.tags | sort | join(" ")' "$REPLY_DIR/body")"
  fetch '/v2/library/multi/tags/list?n=1'
  expect_status 200
  equal 'tags of a page of one' 1 "$(jq '.tags | length' "$REPLY_DIR/body")"
  expect_header Link 'rel="?next"?'
}

http_refused() {
  local method
  for method in POST PUT PATCH DELETE; do
    fetch /v2/library/app1/manifests/latest -X "$method"
    expect_error 405 UNSUPPORTED
    expect_header Allow '^GET, HEAD$'
  done
  fetch /v2/library/app1/blobs/uploads/ -X POST
  expect_error 405 UNSUPPORTED
}

http_unknown() {
  local nothing=sha256:0000000000000000000000000000000000000000000000000000000000000000
  fetch /v2/library/app1/manifests/no-such-tag "${MANIFEST_TYPES[@]}"
  expect_error 404 MANIFEST_UNKNOWN
  fetch "/v2/library/app1/blobs/$nothing"
  expect_error 404 BLOB_UNKNOWN
  fetch /v2/library/app1/blobs/sha256:short
  expect_error 400 DIGEST_INVALID
  fetch '/v2/library/app1/manifests/latest?ns=nowhere.example'
  expect_error 404 NAME_UNKNOWN
  fetch /v2/_catalog
  expect_status 404
}

http_routing() {
  local path digest
  fetch /v2/library/hello/manifests/latest "${MANIFEST_TYPES[@]}"
  expect_status 200
  digest=$(header Docker-Content-Digest)
  for path in '/v2/hello/manifests/latest' '/v2/library/hello/manifests/latest?ns=docker.io' '/v2/docker.io/library/hello/manifests/latest' \
    '/v2/library/hello/manifests/latest?ns=registry.test' '/v2/registry.test/library/hello/manifests/latest' '/registry.test/v2/library/hello/manifests/latest'; do
    fetch "$path" "${MANIFEST_TYPES[@]}"
    expect_status 200
    equal "digest at $path" "$digest" "$(header Docker-Content-Digest)"
  done
}

http_admin() {
  local base=http://127.0.0.1:$ADMIN_PORT
  equal '/healthz' ok "$(curl -fsS --max-time "$PATIENCE" "$base/healthz" | tr -d '\n')"
  curl -fsS --max-time "$PATIENCE" "$base/readyz"
  curl -fsS --max-time "$PATIENCE" "$base/metrics" | tee "$WORK/metrics"
  grep -q '^forebay_requests_total{' "$WORK/metrics"
}

http_checks() {
  check http 'ping, version header, request id' http_ping
  check http 'manifest by tag and digest, HEAD, 304' http_manifest
  check http 'blob cold and warm, HEAD, 304' http_blob
  check http 'ranges of a blob: 206, suffix, open end, 416' http_range
  check http 'open range of a cold blob: 206 and the whole content' http_cold_range
  check http 'tags/list, and a page of it' http_tags
  check http 'push methods are refused with 405' http_refused
  check http 'unknown tag, blob, registry, catalog; malformed digest' http_unknown
  check http 'routing by ns, by path and by default' http_routing
  check http 'admin: health, readiness, metrics' http_admin
}
