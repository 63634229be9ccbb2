# shellcheck shell=bash
# The image of deploy/Containerfile, built and run without any network. The program is not compiled again in it: in place of a
# Rust image there is one with a `cargo` that hands out the binary under test, and its libraries, as it is not a static one.
# shellcheck disable=SC2154  # `run` names the binary

container_needs() { echo buildah podman runc ldd strip; }

b() { buildah --root "$CONTAINER/storage" --runroot "$CONTAINER/runroot" --storage-driver overlay "$@"; }

p() {
  timeout --kill-after=5 "$PATIENCE" podman --root "$CONTAINER/storage" --runroot "$CONTAINER/runroot" --tmpdir "$CONTAINER/tmp" \
    --storage-driver overlay --events-backend file --cgroup-manager cgroupfs --runtime "$(command -v runc)" "$@"
}

with_libraries() { # with_libraries ROOT PROGRAM: what the dynamic linker needs for it, below ROOT
  local library
  ldd "$2" | grep -o '/[^ ]*' | while read -r library; do
    install -D "$library" "$1$library"
  done
}

toolchain() { # an image that looks like a Rust toolchain to the Containerfile
  local root=$CONTAINER/rust tool container
  for tool in sh sed install cp mkdir; do
    install -D "$(command -v "$tool")" "$root/bin/$tool"
    with_libraries "$root" "$(command -v "$tool")"
  done
  mkdir -p "$root/prebuilt"
  strip -o "$root/prebuilt/forebay" "$binary"
  with_libraries "$root/prebuilt/libraries" "$binary"
  install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
  mkdir -p "$root/tmp"
  cat >"$root/bin/rustc" <<'SH'
#!/bin/sh
echo 'host: here'
SH
  cat >"$root/bin/cargo" <<'SH'
#!/bin/sh
set -e
[ "$*" = 'build --release --locked --target here' ]
[ "$RUSTFLAGS" = '-C target-feature=+crt-static' ]
# The build folder of the machine has no business in here.
[ ! -e target ] && [ -e Cargo.toml ]
mkdir -p target/here/release /out
cp -r /prebuilt/libraries/. /out/
cp /prebuilt/forebay target/here/release/forebay
SH
  chmod 755 "$root/bin/rustc" "$root/bin/cargo"
  container=$(b from --pull-never scratch)
  b copy --quiet "$container" "$root" / >/dev/null
  b config --env PATH=/bin "$container"
  b commit --quiet "$container" localhost/rust >/dev/null
}

image_is_built() {
  mkdir -p "$CONTAINER/context/target"
  cp -r Cargo.toml deploy "$CONTAINER/context/"
  echo 'too large' >"$CONTAINER/context/target/file"
  toolchain
  (cd "$CONTAINER/context" && b build --isolation chroot --pull-never --build-arg RUST_IMAGE=localhost/rust \
    -f deploy/Containerfile -t localhost/forebay .)
}

image_runs() { # as careful as compose and Kubernetes run it: no rights, nothing to write to but its volume
  local name=forebay-$$
  p run --detach --pull never --name "$name" --network none --read-only --cap-drop all --security-opt no-new-privileges \
    --ulimit nofile=1024:1024 --ulimit nproc=4096:4096 --volume forebay:/var/lib/forebay localhost/forebay
  eventually p exec "$name" /usr/local/bin/forebay ready
  equal 'user' 65532:65532 "$(p inspect --format '{{.Config.User}}' "$name")"
  # Other machines could reach the admin port; without a token its API is closed.
  p exec "$name" /usr/local/bin/forebay stats >"$CONTAINER/stats" 2>&1 && fail 'the admin API is open'
  grep -q 'admin.token' "$CONTAINER/stats"
  p exec "$name" /usr/local/bin/forebay verify --data /var/lib/forebay
  p stop --time "$PATIENCE" "$name"
  equal 'exit code' 0 "$(p inspect --format '{{.State.ExitCode}}' "$name")"
  p logs "$name" 2>&1 | grep -q '"message":"stopped"'
  p rm "$name"
}

container_checks() {
  local tool
  # shellcheck disable=SC2046
  tool=$(missing_tool $(container_needs))
  if [[ -n $tool ]]; then
    skip container 'the image of deploy/Containerfile' "$tool is not installed"
    return
  fi
  CONTAINER=$WORK/container
  mkdir -p "$CONTAINER"
  check container 'deploy/Containerfile: built' image_is_built
  if ((PASSED)); then check container 'deploy/Containerfile: runs without rights, and stops' image_runs; fi
}
