# shellcheck shell=bash
# What the launch scripts share. Sourced, not run.

# Exit codes of main.py (nas_jax/utils/errors.py) after which another start would end the same way.
# 2 config, 3 data, 4 checkpoint, 5 diverged. 6 is a missing host: it may come.
hopeless() {
  case $1 in 2 | 3 | 4 | 5) return 0 ;; *) return 1 ;; esac
}

# 130 and 143: stopped by Ctrl-C or SIGTERM, after saving.
told_to_stop() {
  case $1 in 130 | 143) return 0 ;; *) return 1 ;; esac
}

# The words as a line that could be typed.
quoted() {
  local word line=
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word=${word@Q}
    line+="$word "
  done
  printf '%s\n' "${line% }"
}

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}
