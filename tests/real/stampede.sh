# shellcheck shell=bash
# Many clients ask for one cold blob at the same moment.

readonly STAMPEDE_CLIENTS=20

stampede_clients() { # stampede_clients: all at once; each prints the digest of what it received
  local client pids=()
  for ((client = 0; client < STAMPEDE_CLIENTS; client++)); do
    (
      set -o pipefail
      curl -fsS --max-time $((4 * PATIENCE)) "http://127.0.0.1:$FOREBAY_PORT/v2/library/raw/blobs/$STAMPEDE_BLOB" |
        sha256sum | cut -d' ' -f1 >"$WORK/stampede.$client"
    ) &
    pids+=($!)
  done
  for client in "${pids[@]}"; do wait "$client" || fail 'a client did not get the whole blob'; done
  for ((client = 0; client < STAMPEDE_CLIENTS; client++)); do
    equal "digest at client $client" "$STAMPEDE_BLOB" "sha256:$(cat "$WORK/stampede.$client")"
  done
}

stampede_at_the_upstream() {
  local gets bytes
  read -r gets bytes < <(upstream_blob_gets | awk -v digest="$STAMPEDE_BLOB" '$1 == digest { print $2, $3 }')
  echo "upstream: $gets GET, $bytes bytes for a blob of $STAMPEDE_BYTES bytes"
  equal 'GETs at the upstream' 1 "$gets"
  equal 'bytes from the upstream' "$STAMPEDE_BYTES" "$bytes"
}

stampede_checks() {
  check stampede "$STAMPEDE_CLIENTS clients, one cold blob of $((STAMPEDE_BYTES / 1000000)) MB: all bytes right" stampede_clients
  # The upstream writes its log when the client already has all.
  check stampede 'the upstream sent it once: 1 GET, 1.00x bytes' eventually stampede_at_the_upstream
}
