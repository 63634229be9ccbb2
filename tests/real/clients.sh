# shellcheck shell=bash
# Clients that have to log in: skopeo, podman and containerd in front of a forebay with passwords, tokens and rules.
# shellcheck disable=SC2154  # `run` names the binary

clients_needs() { echo skopeo podman containerd ctr curl jq sha256sum; }

clients_listening() {
  jq -rR 'fromjson? | select(.message == "listening" and .listener == "registry") | .address | split(":")[-1]' \
    "$WORK/logs/clients.log" | tail -n 1 | grep .
}

clients_forebay() {
  # `htpasswd -nbB -C 5 ann correct-horse`, written out: not every machine has it.
  # shellcheck disable=SC2016
  printf '%s\n' 'ann:$2y$05$o4nJW3iIdHD8GkmqLjy2veyvTrbu6xjpMkOdBVfe8PbmAsmBivOEm' >"$CLIENTS/htpasswd"
  printf 'ci:%s\n' "$(printf t0ken | sha256sum | cut -d' ' -f1)" >"$CLIENTS/tokens"
  cat >"$CLIENTS/forebay.toml" <<TOML
[server]
listen = ["127.0.0.1:0"]
[admin]
listen = "127.0.0.1:0"
[storage]
path = "$CLIENTS/data"
[clients]
htpasswd = "$CLIENTS/htpasswd"
tokens = "$CLIENTS/tokens"
anonymous = $1
[[clients.rule]]
clients = ["ann"]
[[clients.rule]]
clients = ["ci", "anonymous"]
registries = ["docker.io"]
repositories = ["library/hello"]
[[registry]]
host = "docker.io"
endpoints = ["http://127.0.0.1:$CLIENTS_UPSTREAM"]
[[registry]]
host = "registry.test"
endpoints = ["http://127.0.0.1:$CLIENTS_UPSTREAM"]
TOML
  : >"$WORK/logs/clients.log"
  FOREBAY_LOG__FORMAT=json spawn clients "$binary" serve --config "$CLIENTS/forebay.toml"
  wait_for clients clients_listening
  CLIENTS_PORT=$(clients_listening)
}

clients_copy() { # clients_copy IMAGE OPTION...: by the proxy's own name
  local image=$1
  shift
  rm -rf "$CLIENTS/image"
  timeout --kill-after=5 "$PATIENCE" skopeo --insecure-policy copy --quiet --src-tls-verify=false "$@" \
    "docker://127.0.0.1:$CLIENTS_PORT/$image" "dir:$CLIENTS/image" && skopeo_verify "$CLIENTS/image"
}

clients_refused() { # clients_refused TEXT COMMAND...: it fails, and says so
  local expected=$1 output
  shift
  if output=$("$@" 2>&1); then fail "let in: $output"; fi
  grep -qi -- "$expected" <<<"$output" || fail "it says something else: $output"
}

clients_login() { # clients_login NAME PASSWORD: leaves an auth.json, as a user makes it
  podman login --authfile "$CLIENTS/auth.json" --tls-verify=false --username "$1" --password "$2" "127.0.0.1:$CLIENTS_PORT"
}

clients_mirror() { # clients_mirror IMAGE [OPTION...]: skopeo, by the mirror that `forebay client-config` writes
  local image=$1
  shift
  rm -rf "$CLIENTS/image"
  client_config podman "$CLIENTS/podman" "$CLIENTS_PORT"
  timeout --kill-after=5 "$PATIENCE" skopeo --insecure-policy \
    --registries-conf "$CLIENTS/podman/etc/containers/registries.conf.d/50-forebay.conf" copy --quiet "$@" \
    "docker://$image" "dir:$CLIENTS/image" && skopeo_verify "$CLIENTS/image"
}

clients_podman() { # the whole engine, with the same auth.json
  client_config podman "$CLIENTS/podman" "$CLIENTS_PORT"
  cp "$CLIENTS/podman/etc/containers/registries.conf.d/50-forebay.conf" "$CLIENTS/registries.conf"
  echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$CLIENTS/policy.json"
  REGISTRY_AUTH_FILE=$CLIENTS/auth.json podman_pull "$CLIENTS" docker.io/library/hello:latest
}

clients_containerd() { # with the header that `forebay client-config` writes
  local folder=$CLIENTS/containerd
  mkdir -p "$folder"
  printf t0ken >"$CLIENTS/password"
  client_config containerd "$folder/written" "$CLIENTS_PORT" --username ci --password-file "$CLIENTS/password"
  cp -r "$folder/written/etc/containerd/certs.d" "$folder/certs.d"
  equal 'mode of hosts.toml' 600 "$(stat -c %a "$folder/certs.d/docker.io/hosts.toml")"
  containerd_config "$folder"
  spawn clients-containerd containerd --config "$folder/config.toml"
  wait_for clients-containerd timeout 30 ctr --address "$folder/containerd.sock" version
  containerd_pull "$folder" docker.io/library/hello:latest
  clients_refused 'forbidden\|authorization' containerd_pull "$folder" docker.io/library/app1:latest
  sed -i '/header/,$d' "$folder/certs.d/docker.io/hosts.toml"
  clients_refused unauthorized containerd_pull "$folder" docker.io/library/app2:latest
}

clients_no_secret() {
  ! grep -nF -e correct-horse -e "$(printf 'ann:correct-horse' | base64)" -e t0ken -e "$(printf 'ci:t0ken' | base64)" \
    "$WORK/logs/clients.log"
}

clients_names() { # each name is in the log
  local name
  for name in "$@"; do
    jq -enR --arg name "$name" '[inputs | fromjson? | select(.message == "request" and .client == $name)] | length > 0' \
      "$WORK/logs/clients.log" >/dev/null || fail "no request of $name in the log"
  done
}

clients_checks() {
  local tool
  # shellcheck disable=SC2046
  tool=$(missing_tool $(clients_needs))
  if [[ -n $tool ]]; then
    skip clients 'clients that log in' "$tool is not installed"
    return
  fi
  CLIENTS=$WORK/clients
  mkdir -p "$CLIENTS"
  # One of its own, so that the count of downloads of the other stays true.
  upstream_start clients-upstream
  CLIENTS_UPSTREAM=$REGISTRY_PORT
  clients_forebay false
  check clients 'skopeo --src-creds: a password' clients_copy docker.io/library/app1:latest --src-creds ann:correct-horse
  check clients 'skopeo --src-creds: a token as password' clients_copy docker.io/library/hello:latest --src-creds ci:t0ken
  check clients 'skopeo: no login' clients_refused unauthorized clients_copy docker.io/library/hello:latest
  check clients 'skopeo: a wrong password' clients_refused unauthorized clients_copy docker.io/library/hello:latest --src-creds ann:wrong
  check clients 'skopeo: no rule' clients_refused 'denied\|forbidden' clients_copy docker.io/library/app1:latest --src-creds ci:t0ken
  check clients 'podman login: a wrong password' clients_refused 'invalid username/password' clients_login ann wrong
  check clients 'podman login: a token' clients_login ci t0ken
  check clients 'skopeo: a mirror, by auth.json' clients_mirror docker.io/library/hello:latest --authfile "$CLIENTS/auth.json"
  check clients 'podman pull: a mirror, by auth.json' clients_podman
  check clients 'containerd: the header of its hosts.toml' clients_containerd
  stop clients-containerd
  check clients 'names are in the log' clients_names ann ci
  check clients 'no secret in the log' clients_no_secret
  stop clients
  clients_forebay true
  check clients 'skopeo: anonymous, where that is allowed' clients_copy docker.io/library/hello:latest
  check clients 'skopeo: anonymous, where it is not' clients_refused unauthorized clients_copy docker.io/library/app1:latest
  check clients 'skopeo: with a login, beside the anonymous' clients_copy docker.io/library/app1:latest --src-creds ann:correct-horse
  check clients 'names are in the log' clients_names ann anonymous
  stop clients
  stop clients-upstream
}
