# shellcheck shell=bash
# Shared by the files of this folder: checks and their table, processes, ports, the upstream's access log.
# Everything lives under $WORK, a fresh folder; its unique name is also how leftovers are told from other people's processes.

# What every image prints.
# shellcheck disable=SC2034
readonly LINE='hello from the image'
# Seconds that any single wait may take. Only a run that fails waits that long, so it is far more than a busy machine needs.
readonly PATIENCE=240

# ---- checks -------------------------------------------------------------------------------------------------------

seconds_since() { # seconds_since START_MICROSECONDS
  local spent_us=$((${EPOCHREALTIME/[.,]/} - $1))
  printf '%d.%d' $((spent_us / 1000000)) $((spent_us / 100000 % 10))
}

report() { # report RESULT AREA TEXT [SECONDS]
  printf '%-8s %-11s %-66s %6s\n' "$1" "$2" "$3" "${4:-}"
  printf '%s\t%s\t%s\n' "$1" "$2" "$3" >>"$WORK/results"
}

count_of() { awk -v result="$1" -F '\t' '$1 == result { n++ } END { print n + 0 }' "$WORK/results"; }

# attempt LOG COMMAND...: in a subshell, output in LOG; PASSED becomes 1 or 0. Returns 0 always, and neither it nor its
# callers may stand in a condition (`if`, `||`, `!`): there bash ignores `set -e`, in functions and subshells too, and a
# command that failed in the middle would go unnoticed.
attempt() {
  local log=$1
  shift
  (
    set -euo pipefail
    "$@"
  ) >"$log" 2>&1 </dev/null &
  PASSED=1
  wait $! || PASSED=0
}

# check AREA TEXT COMMAND...: one row of the table. Leaves PASSED as above.
check() {
  local area=$1 text=$2 start=${EPOCHREALTIME/[.,]/} log
  shift 2
  log="$WORK/logs/check-$(printf '%s' "$area $text" | tr -c 'A-Za-z0-9' '-').log"
  attempt "$log" "$@"
  if ((PASSED)); then
    report passed "$area" "$text" "$(seconds_since "$start")"
  else
    report failed "$area" "$text" "$(seconds_since "$start")"
    show_end "$log"
  fi
}

show_end() { # show_end LOG
  tail -n 15 "$1" | sed 's/^/         | /'
}

skip() { # skip AREA TEXT REASON: a tool is missing; a failure where all have to be there
  if ((REQUIRE_TOOLS)); then report failed "$1" "$2: $3"; else report skipped "$1" "$2: $3"; fi
}

cannot() { # cannot AREA TEXT REASON: the machine does not let a tool work; a failure only where that was asked for
  if ((REQUIRE_ALL)); then report failed "$1" "$2: $3"; else report skipped "$1" "$2: $3"; fi
}

fail() {
  printf 'failed: %s\n' "$*" >&2
  exit 1
}

equal() { # equal WHAT EXPECTED FOUND
  [[ $2 == "$3" ]] || fail "$1: expected '$2', found '$3'"
}

# missing_tool TOOL...: prints the first tool that is not there.
missing_tool() {
  local tool
  for tool; do
    command -v "$tool" >/dev/null || {
      printf '%s' "$tool"
      return 0
    }
  done
}

# ---- processes ----------------------------------------------------------------------------------------------------

# The kernel's start time of a process tells it from a later one with the same id. Nothing is printed for the dead.
birth_of() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
  # After the name in parentheses: field 1 is the state, field 20 the start time.
  read -ra fields <<<"${stat##*) }"
  [[ ${fields[0]} == Z ]] || printf '%s' "${fields[19]}"
}

spawn() { # spawn NAME COMMAND...: in the background, output in logs/NAME.log, id and start time in pids/NAME
  local name=$1
  shift
  "$@" >>"$WORK/logs/$name.log" 2>&1 </dev/null &
  printf '%s %s\n' "$!" "$(birth_of $!)" >"$WORK/pids/$name"
}

alive() { # alive NAME
  local pid birth
  [[ -f $WORK/pids/$1 ]] || return 1
  read -r pid birth <"$WORK/pids/$1"
  [[ -n $birth && $(birth_of "$pid") == "$birth" ]]
}

stop() { # stop NAME [SECONDS]: SIGTERM, then SIGKILL after SECONDS
  local pid _ tries=$((${2:-60} * 10))
  while alive "$1"; do
    read -r pid _ <"$WORK/pids/$1"
    if ((tries == ${2:-60} * 10)); then kill -TERM "$pid" 2>/dev/null || true; fi
    if ((tries-- == 0)); then kill -KILL "$pid" 2>/dev/null || true; fi
    ((tries > -300)) || return 1
    sleep 0.1
  done
  rm -f "$WORK/pids/$1"
}

# wait_for NAME COMMAND...: until the command succeeds; gives up when the process NAME is gone, or after PATIENCE.
wait_for() {
  local until=$((SECONDS + PATIENCE)) name=$1
  shift
  until "$@" >/dev/null 2>&1; do
    alive "$name" || fail "$name ended: $(tail -n 5 "$WORK/logs/$name.log")"
    ((SECONDS < until)) || fail "$name is not ready: $(tail -n 5 "$WORK/logs/$name.log")"
    sleep 0.1
  done
}

# eventually COMMAND...: again until it succeeds; after PATIENCE once more, and that counts. For what is true a moment later.
# Runs the command in a subshell: its variables stay there.
eventually() {
  local until=$((SECONDS + PATIENCE))
  while ((SECONDS < until)); do
    attempt /dev/null "$@"
    if ((PASSED)); then return 0; fi
    sleep 0.2
  done
  "$@"
}

# Processes whose command line names the unique work folder: engines' helpers that outlived their daemon.
stragglers() {
  local entry pid
  for entry in /proc/[0-9]*; do
    pid=${entry#/proc/}
    [[ $pid != "$$" && $pid != "$BASHPID" ]] || continue
    if tr '\0' ' ' 2>/dev/null <"$entry/cmdline" | grep -qF "$WORK/"; then printf '%s\n' "$pid"; fi
  done
}

clean_up() {
  local name pid target tries
  for name in "$WORK"/pids/*; do
    if [[ -e $name ]]; then stop "${name##*/}" 10 || true; fi
  done
  for tries in 1 2 3; do
    for pid in $(stragglers); do kill -KILL "$pid" 2>/dev/null || true; done
    awk -v work="$WORK/" 'index($5, work) == 1 { print $5 }' /proc/self/mountinfo | sort -r | while read -r target; do
      umount "$target" 2>/dev/null || umount -l "$target" 2>/dev/null || true
    done
    grep -qF " $WORK/" /proc/self/mountinfo || break
    sleep 0.$((tries * 3))
  done
  if ((KEEP)); then
    echo "kept: $WORK"
  elif grep -qF " $WORK/" /proc/self/mountinfo; then
    echo "not removed, something is still mounted there: $WORK" >&2
  else
    rm -rf --one-file-system "$WORK" 2>/dev/null || true
  fi
}

port_is_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# A port nobody listens on, below the range the kernel hands out to clients. Somebody else may be quicker to take it.
free_port() {
  local port tries
  for tries in {1..200}; do
    port=$((20000 + (SRANDOM + tries) % 10000))
    port_is_open "$port" || {
      printf '%s' "$port"
      return 0
    }
  done
  fail 'no free port found'
}

# ---- client configuration -----------------------------------------------------------------------------------------

# Engines in front of forebay use what forebay writes for them; in front of anything else, what is written here by hand.
asks_forebay() { [[ ${FOREBAY_PORT:-none} == "$1" ]]; } # asks_forebay PORT

client_config() { # client_config ENGINE ROOT PORT [OPTION...]: writes below ROOT
  # The registries' own addresses are the proxy too, so a broken mirror can never be hidden by a real registry.
  printf '[[registry]]\nhost = "%s"\nendpoints = ["http://127.0.0.1:%s"]\n' docker.io "$3" registry.test "$3" >"$2.toml"
  # shellcheck disable=SC2154 # set by `run`
  "$binary" client-config "$1" --write --root "$2" --proxy "http://127.0.0.1:$3" --config "$2.toml" \
    --registry docker.io --registry registry.test "${@:4}"
}

# ---- the upstream -------------------------------------------------------------------------------------------------

# upstream_start NAME: Debian's registry on the shared folder; its access log is logs/NAME.log. Leaves its REGISTRY_PORT.
upstream_start() {
  local _
  for _ in 1 2 3 4 5; do
    REGISTRY_PORT=$(free_port)
    cat >"$WORK/$1.yml" <<YAML
version: 0.1
log: {level: warn, accesslog: {disabled: false}}
storage: {filesystem: {rootdirectory: $WORK/upstream}, delete: {enabled: true}}
http: {addr: "127.0.0.1:$REGISTRY_PORT", secret: only-for-this-run}
YAML
    spawn "$1" docker-registry serve "$WORK/$1.yml"
    attempt "$WORK/logs/start-$1.log" wait_for "$1" answers_as_registry "$1" "$REGISTRY_PORT"
    if ((PASSED)); then return 0; fi
    stop "$1"
  done
  fail "$1 does not start: $(cat "$WORK/logs/start-$1.log")"
}

# Whoever took the port in the meantime is not it: it has to be alive after it answered.
answers_as_registry() { # answers_as_registry NAME PORT
  curl -fsS --max-time 10 "http://127.0.0.1:$2/v2/" && alive "$1"
}

# From the access log, for every blob sent since the pushes ended: "DIGEST GETS BYTES".
# Lines look like: 127.0.0.1 - - [time] "GET /v2/library/app1/blobs/sha256:… HTTP/1.1" 200 123 "" "agent"
upstream_blob_gets() {
  tail -c +"$(($(cat "$WORK/upstream.mark") + 1))" "$WORK/logs/upstream.log" | awk '
    match($0, /"GET \/v2\/[^ ]*\/blobs\/sha256:[0-9a-f]+/) {
      split(substr($0, RSTART, RLENGTH), path, "/blobs/")
      split(substr($0, RSTART + RLENGTH), rest, " ")
      gets[path[2]]++
      bytes[path[2]] += rest[3]
    }
    END { for (digest in gets) printf "%s %d %.0f\n", digest, gets[digest], bytes[digest] }'
}

upload_blob() { # upload_blob HOST:PORT REPOSITORY FILE: prints its digest
  local digest location
  digest=sha256:$(sha256sum <"$3" | cut -d' ' -f1)
  location=$(curl -fsS -o /dev/null -D - -X POST "http://$1/v2/$2/blobs/uploads/" | tr -d '\r' | awk 'tolower($1) == "location:" { print $2 }')
  curl -fsS -o /dev/null -X PUT -H 'Content-Type: application/octet-stream' -T "$3" "$location&digest=$digest"
  printf '%s' "$digest"
}
