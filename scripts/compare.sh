#!/bin/sh
# The same load through ringpost and other mail servers, in turns. `compare.sh --help` says how.
exec python3 "$(dirname "$0")/compare.py" "$@"
