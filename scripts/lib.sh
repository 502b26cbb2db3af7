# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Sourced by the scripts here: where things are, and how to say what goes on.

set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin
TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
BUILD=$TOP/build
LOGS=$BUILD/log
CACHE=${KVM_TDX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kvm-tdx-rust}
JOBS=${JOBS:-$(nproc)}

mkdir -p "$LOGS" "$CACHE"
CACHE=$(cd "$CACHE" && pwd -P)

# now: seconds since the epoch, for durations.
now()
{
	date +%s
}

# say TEXT…: one line on the terminal, with the time of day.
say()
{
	printf '%s  %s\n' "$(date +%H:%M:%S)" "$*" >&2
}

# die TEXT…: what went wrong and what to do next; every argument is a line.
die()
{
	local line first=1

	for line in "$@"; do
		if [ $first = 1 ]; then
			printf 'error: %s\n' "$line" >&2
			first=0
		else
			printf '       %s\n' "$line" >&2
		fi
	done
	exit 1
}

# need_root WHAT: for what only root can do.
need_root()
{
	[ "$(id -u)" = 0 ] || die "$1 needs root" "run make as root (a container or a virtual machine is a good place)"
}

# logged NAME TITLE CMD…: run CMD with its output in build/log/NAME.log, count
# its output lines on a terminal while it runs, then say how long it took.
logged()
{
	local title=$2 log=$LOGS/$1.log start pid status=0

	shift 2
	start=$(now)
	say "$title …"
	"$@" >"$log" 2>&1 </dev/null &
	pid=$!
	# shellcheck disable=SC2064
	trap "kill $pid 2>/dev/null || true" INT TERM
	if [ -t 2 ]; then
		while kill -0 $pid 2>/dev/null; do
			sleep 0.5
			printf '\r          %4d s  %6d lines  %-.50s\033[K' "$(($(now) - start))" \
				"$(wc -l <"$log")" "$(tail -n 1 "$log" | tr -d '\r' | tr '\t' ' ')" >&2
		done
		printf '\r\033[K' >&2
	fi
	wait $pid || status=$?
	trap - INT TERM
	if [ $status != 0 ]; then
		grep -nE 'error|Error|warning:|\*\*\*' "$log" | head -n 40 >&2 || true
		printf -- '--- last lines of %s\n' "$log" >&2
		tail -n 15 "$log" >&2
		die "$title failed after $(($(now) - start)) s (status $status)" "the whole output: $log"
	fi
	say "$title: $(($(now) - start)) s ($log)"
}

# stamp_write FILE TEXT: like echo >FILE, but only if that changes FILE.
stamp_write()
{
	if [ ! -e "$1" ] || [ "$(cat "$1")" != "$2" ]; then
		mkdir -p "$(dirname "$1")"
		printf '%s\n' "$2" >"$1.new"
		mv "$1.new" "$1"
	fi
}
