# shellcheck shell=bash
# containerd with ctr: certs.d sends every registry to the mirror; each request names its registry in `ns`.

containerd_needs() { echo containerd ctr runc; }

containerd_start() { # containerd_start FOLDER PORT
  if asks_forebay "$2"; then
    client_config containerd "$1/written" "$2"
    cp -r "$1/written/etc/containerd/certs.d" "$1/certs.d"
  else
    containerd_hosts "$1" "$2"
  fi
  containerd_config "$1"
  spawn "${1##*/}" containerd --config "$1/config.toml"
  wait_for "${1##*/}" timeout 30 ctr --address "$1/containerd.sock" version
}

containerd_hosts() { # containerd_hosts FOLDER PORT
  local host
  for host in docker.io _default; do
    mkdir -p "$1/certs.d/$host"
    # `server` is the mirror as well, so a broken mirror can never be hidden by a real registry.
    cat >"$1/certs.d/$host/hosts.toml" <<TOML
server = "http://127.0.0.1:$2"
[host."http://127.0.0.1:$2"]
  capabilities = ["pull", "resolve"]
TOML
  done
}

containerd_config() { # containerd_config FOLDER
  cat >"$1/config.toml" <<TOML
version = 2
root = "$1/root"
state = "$1/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$1/containerd.sock"
[ttrpc]
  address = "$1/containerd.sock.ttrpc"
TOML
}

containerd_pull() {
  timeout --kill-after=5 "$PATIENCE" ctr --address "$1/containerd.sock" images pull --hosts-dir "$1/certs.d" "$2"
}

containerd_run() {
  timeout --kill-after=5 "$PATIENCE" ctr --address "$1/containerd.sock" run --rm "$2" "run-$BASHPID-$RANDOM"
}

containerd_stop() { stop "${1##*/}"; }
