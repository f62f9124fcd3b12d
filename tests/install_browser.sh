#!/bin/sh
# Makes sure that there is a Chromium for the browser journeys.
set -eu
for name in chromium chromium-browser google-chrome google-chrome-stable; do
    if command -v "$name" >/dev/null 2>&1; then exit 0; fi
done
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    echo "Installing Chromium for the browser tests (apt-get install chromium)"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null
    exit 0
fi
echo "No Chromium found: the browser journeys will be SKIPPED. Install it to run them"
echo "(Debian, Ubuntu: sudo apt-get install chromium; macOS: brew install --cask chromium; Fedora: sudo dnf install chromium)."
if [ "${CI:-}" = true ]; then exit 1; fi
