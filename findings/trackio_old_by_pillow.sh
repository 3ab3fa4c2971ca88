#!/bin/sh
# trackio beside Pillow 13: pip says nothing and installs a release of the year before.
#
# trackio 0.43 requires pillow<13. Expected of `pip install trackio pillow==13.0.0`: a conflict, since the current trackio cannot
# live with it. Seen: pip steps back through all releases to trackio 0.0.6, whose metadata has no such bound, and exits 0.
#
# Exits 0 while that is so, and 1 when it changes. Downloads nothing but metadata (--dry-run) into a temporary folder.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip --version
alone=$("$place/venv/bin/pip" install --dry-run -q --report - "trackio==0.43.0" | "$place/venv/bin/python" -c '
import json, sys
print({i["metadata"]["name"]: i["metadata"]["version"] for i in json.load(sys.stdin)["install"]}["pillow"])')
beside=$("$place/venv/bin/pip" install --dry-run -q --report - trackio "pillow==13.0.0" | "$place/venv/bin/python" -c '
import json, sys
print({i["metadata"]["name"]: i["metadata"]["version"] for i in json.load(sys.stdin)["install"]}["trackio"])')
echo "trackio 0.43.0 alone brings pillow $alone"
echo "expected with pillow 13.0.0: a conflict; seen: trackio $beside"
[ "${alone%%.*}" -lt 13 ] && [ "$beside" = 0.0.6 ]
