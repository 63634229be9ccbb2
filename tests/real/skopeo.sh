# shellcheck shell=bash
# skopeo copies images to a folder whose files are named by their digests, so every byte can be checked without running it.

skopeo_needs() { echo skopeo sha256sum; }

skopeo_copy() { # skopeo_copy FOLDER PORT REFERENCE [OPTION...]: through a mirror entry, into FOLDER/image
  local folder=$1 port=$2 reference=$3
  shift 3
  rm -rf "$folder"
  mkdir -p "$folder"
  cat >"$folder/registries.conf" <<TOML
[[registry]]
prefix = "docker.io"
location = "docker.io"
[[registry.mirror]]
location = "127.0.0.1:$port"
insecure = true
[[registry]]
prefix = "registry.test"
location = "registry.test"
[[registry.mirror]]
location = "127.0.0.1:$port/registry.test"
insecure = true
TOML
  timeout --kill-after=5 "$PATIENCE" skopeo --insecure-policy --registries-conf "$folder/registries.conf" \
    copy --quiet "$@" "docker://$reference" "dir:$folder/image"
  skopeo_verify "$folder/image"
}

skopeo_verify() { # skopeo_verify FOLDER: every file named by 64 hex digits has that SHA-256
  local file found=0
  for file in "$1"/*; do
    [[ ${file##*/} =~ ^[0-9a-f]{64}(\.manifest\.json)?$ ]] || continue
    equal "sha256 of ${file##*/}" "$(basename "${file%.manifest.json}")" "$(sha256sum <"$file" | cut -d' ' -f1)"
    found=$((found + 1))
  done
  ((found >= 2)) || fail "only $found files came"
}

skopeo_checks() { # skopeo_checks PHASE PORT
  check skopeo "$1: copy app1" skopeo_copy "$WORK/skopeo-$1-app1" "$2" docker.io/library/app1:latest
  check skopeo "$1: copy all platforms of multi" skopeo_copy "$WORK/skopeo-$1-multi" "$2" docker.io/library/multi:latest --all
  if ((!DIRECT)); then
    check skopeo "$1: copy registry.test/library/hello by path prefix" skopeo_copy "$WORK/skopeo-$1-hello" "$2" registry.test/library/hello:latest
  fi
}
