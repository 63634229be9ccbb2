#!/usr/bin/env bash
# Builds the images of the real-engine tests without any network and pushes them to a plain-HTTP registry.
#
#   images.sh DIR HOST:PORT ENGINE...
#
#   library/hello             one layer: a static program that prints one line; tag `docker` is in Docker's own format
#   library/app1, app2        a shared base layer of 20 MB, and the program
#   library/multi             an index for amd64, arm64 and arm/v7; the command names the platform; tag `docker` as above
#   library/fresh-ENGINE      the program and a layer nobody else pulls, so each engine has one cold pull
set -euo pipefail

dir=$(realpath -m "${1:?a folder}")
registry=${2:?HOST:PORT of a registry}
shift 2

b() { buildah --root "$dir/storage" --runroot "$dir/runroot" --storage-driver overlay "$@"; }

random_file() { # random_file NAME BYTES
  head -c "$2" /dev/urandom >"$dir/files/$1"
}

program() {
  # rustc is there on every machine that built the proxy, and needs no source of packages.
  cat >"$dir/files/hello.rs" <<'RUST'
fn main() {
    let platform = std::env::args().nth(1).map(|name| format!(", {name}")).unwrap_or_default();
    println!("hello from the image{platform}");
}
RUST
  rustc -O -C target-feature=+crt-static -C strip=symbols -C panic=abort -o "$dir/files/hello" "$dir/files/hello.rs"
}

layer() { # layer IMAGE PARENT FILE [BUILDAH-CONFIG-OPTION...]: one more layer with FILE in the root folder
  local image=$1 parent=$2 file=$3 container
  shift 3
  container=$(b from --pull-never "$parent")
  b add --quiet "$container" "$dir/files/$file" "/$file" >/dev/null
  b config --entrypoint '["/hello"]' --cmd '' "$@" "$container"
  b commit --quiet --format oci "$container" "$image" >/dev/null
  b rm "$container" >/dev/null
}

publish() { # publish IMAGE FORMAT TAG
  b push --quiet --tls-verify=false --format "$2" "$1" "docker://$registry/library/$1:$3"
}

hello() {
  layer hello scratch hello
  publish hello oci latest
  publish hello v2s2 docker
}

apps() {
  local app
  random_file base 20000000
  layer base scratch base
  for app in app1 app2; do
    random_file "only-$app" 300000
    layer "$app-data" base "only-$app"
    layer "$app" "$app-data" hello
    publish "$app" oci latest
  done
}

multi() {
  local platform arch variant
  b manifest create multi >/dev/null
  for platform in amd64 arm64 arm/v7; do
    arch=${platform%/*}
    variant=${platform#"$arch"}
    variant=${variant#/}
    layer "multi-$arch" scratch hello --arch "$arch" ${variant:+--variant "$variant"} --cmd "$platform"
    b manifest add --os linux --arch "$arch" ${variant:+--variant "$variant"} multi "localhost/multi-$arch" >/dev/null
  done
  b manifest push --quiet --all --tls-verify=false --format oci multi "docker://$registry/library/multi:latest"
  b manifest push --quiet --all --tls-verify=false --format v2s2 multi "docker://$registry/library/multi:docker"
}

fresh() { # fresh ENGINE
  random_file "only-$1" 3000000
  layer "fresh-$1" hello "only-$1"
  publish "fresh-$1" oci latest
}

mkdir -p "$dir/files"
program
hello
apps
multi
for engine; do fresh "$engine"; done
