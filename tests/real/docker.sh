# shellcheck shell=bash
# dockerd with the docker client: `registry-mirrors` for docker.io, which sends no `ns`; other registries by path.

docker_needs() { echo dockerd docker containerd runc; }

docker_start() { # docker_start FOLDER PORT
  local file=$1/written/etc/docker/daemon.json
  mkdir -p "${file%/*}"
  cat >"$file" <<JSON
{
  "data-root": "$1/data",
  "exec-root": "$1/exec",
  "pidfile": "$1/docker.pid",
  "hosts": ["unix://$1/docker.sock"],
  "storage-driver": "overlay2",
  "bridge": "none",
  "iptables": false,
  "ip6tables": false
}
JSON
  if asks_forebay "$2"; then
    client_config docker "$1/written" "$2"
    cp "$file" "$1/daemon.json"
  else
    jq --arg mirror "http://127.0.0.1:$2" '.["registry-mirrors"] = [$mirror]' "$file" >"$1/daemon.json"
  fi
  mkdir -p "$1/client"
  spawn "${1##*/}" dockerd --config-file "$1/daemon.json"
  wait_for "${1##*/}" docker_do "$1" 30 version
}

docker_do() { # docker_do FOLDER SECONDS ARGUMENT...
  local folder=$1 seconds=$2
  shift 2
  DOCKER_CONFIG=$folder/client timeout --kill-after=5 "$seconds" docker --host "unix://$folder/docker.sock" "$@"
}

docker_pull() { docker_do "$1" "$PATIENCE" pull --quiet "$2"; }

docker_run() { docker_do "$1" "$PATIENCE" run --rm --pull never --network none "$2"; }

docker_stop() { stop "${1##*/}"; }
