#!/bin/sh
# Attacks on a server of our own on loopback, and good mail beside them. `abuse.sh --help` says how.
exec python3 "$(dirname "$0")/abuse.py" "$@"
