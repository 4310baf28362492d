#!/bin/bash
# The page with a real browser: installs Debian's Chromium and runs the test of unit/metrics/main.rs that drives it. The pictures stay in target/page.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:$HOME/.cargo/bin"
name=test-page
. unit/guest/pack.sh

begin
need chromium chromium-driver fonts-dejavu-core
build dev metrics
mkdir -p "$target/page"
CHROMEDRIVER=$(command -v chromedriver) PICTURES=$target/page attend "$tests" page "$@"
say "pictures: $target/page"
