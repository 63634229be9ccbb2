# shellcheck shell=bash
# Shared by tests/run and .ci/run: what comes over a network, or waits for others, gets more than one chance.

# Another process may hold apt's locks, a mirror may fail once, and an installation before this one may have been cut off.
apt_get() { # apt_get ARGUMENT...
  local try
  for try in 1 2 3 4 5; do
    if DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" >/dev/null; then
      return 0
    fi
    sleep $((try * 5))
    dpkg --configure -a >/dev/null 2>&1 || true
  done
  return 1
}

# What is missing for this machine only; if it does not come, the build says what it lacks.
fetch_crates() {
  again cargo fetch --locked --target "$(rustc -vV | sed -n 's/^host: //p')" || echo 'not all crates could be fetched'
}

again() { # again COMMAND...: three times at most
  local try
  for try in 1 2 3; do
    if "$@"; then return 0; fi
    sleep $((try * 5))
  done
  return 1
}
