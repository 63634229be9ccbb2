# shellcheck shell=bash
# podman: a mirror of docker.io in registries.conf; other registries by a path prefix, since it never sends `ns`.

podman_needs() { echo podman runc; }

podman_start() { # podman_start FOLDER PORT
  if asks_forebay "$2"; then
    client_config podman "$1/written" "$2"
    cp "$1/written/etc/containers/registries.conf.d/50-forebay.conf" "$1/registries.conf"
  else
    podman_registries "$1" "$2"
  fi
  # A bare scratch file system carries no policy of its own.
  echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$1/policy.json"
}

podman_registries() { # podman_registries FOLDER PORT
  cat >"$1/registries.conf" <<TOML
unqualified-search-registries = []
[[registry]]
prefix = "docker.io"
location = "docker.io"
[[registry.mirror]]
location = "127.0.0.1:$2"
insecure = true
[[registry]]
prefix = "registry.test"
location = "registry.test"
[[registry.mirror]]
location = "127.0.0.1:$2/registry.test"
insecure = true
TOML
}

podman_do() { # podman_do FOLDER ARGUMENT...
  local folder=$1
  shift
  CONTAINERS_REGISTRIES_CONF=$folder/registries.conf timeout --kill-after=5 "$PATIENCE" podman \
    --root "$folder/root" --runroot "$folder/run" --tmpdir "$folder/tmp" --storage-driver overlay \
    --events-backend file --cgroup-manager cgroupfs --runtime "$(command -v runc)" "$@"
}

podman_pull() { podman_do "$1" pull --quiet --signature-policy "$1/policy.json" "$2"; }

podman_run() {
  # The limits are named because podman's own defaults can lie above what the machine allows.
  podman_do "$1" run --rm --pull never --network none --ulimit nofile=1024:1024 --ulimit nproc=4096:4096 "$2"
}

podman_stop() { :; }
