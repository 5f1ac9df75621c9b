"""A page in a headless Chromium: what it shows, and whom it asks. For tests only."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NEEDED = "NAS_JAX_NEED_BROWSER"  # 1: a test fails where there is no browser, and does not skip
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--window-size=1300,900",
    "--no-first-run",
    # The browser's own wishes. Some versions have more, so no name leads anywhere either.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--no-pings",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
# Listens from the first line on; once all is loaded, points at the end of each chart and notes what
# is there.
PROBE = """<head><script>
const blocked = [];
addEventListener('securitypolicyviolation', event => blocked.push(event.blockedURI));
addEventListener('load', () => {
  const all = (where, what) => [...where.querySelectorAll(what)], width = part => part.getBoundingClientRect().width;
  const charts = all(document, 'figure.chart').map(chart => {
    const svg = chart.querySelector('svg'), box = svg.getBoundingClientRect();
    svg.dispatchEvent(new PointerEvent('pointermove', {clientX: box.right - 5, clientY: box.top + 5}));
    return {
      title: chart.querySelector('figcaption').textContent,
      lines: all(chart, 'path.line').map(line => line.getTotalLength() * width(svg) / svg.viewBox.baseVal.width),
      tip: all(chart, '.tip > div').map(line => line.textContent),
    };
  });
  document.documentElement.dataset.seen = JSON.stringify({
    charts, blocked,
    pictures: [...document.images].map(image => [image.naturalWidth, image.naturalHeight, width(image)]),
    rows: Object.fromEntries(all(document, 'section').map(part => [part.id, all(part, 'tr').length])),
    requests: performance.getEntriesByType('resource').map(one => one.name).filter(name => !name.startsWith('data:')),
  });
});</script>"""


def find_browser() -> str:
    """Its path.

    Where there is none the test is skipped, or fails if the environment says that there must be
    one.
    """
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        give_up = pytest.fail if os.environ.get(NEEDED) == "1" else pytest.skip
        give_up(f"none of {', '.join(BROWSERS)} is installed")
    return found


def look(page: str, folder: Path) -> dict[str, Any]:
    """Opens an HTML page, by way of `folder`.

    Returns what PROBE saw, and `asked`: what it sought on the network.
    """
    path, log = folder / "page.html", folder / "network.json"
    path.write_text(page.replace("<head>", PROBE, 1))
    command = [
        find_browser(),
        *OPTIONS,
        f"--user-data-dir={folder}/profile",
        f"--log-net-log={log}",
        "--dump-dom",
    ]
    done = subprocess.run(
        [*command, path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"HOME": str(folder)},
    )
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1])) | {"asked": asked(json.loads(log.read_text()))}


def asked(log: dict[str, Any]) -> list[str]:
    """Addresses in Chromium's own log of the network, without those that no page wanted but the
    browser itself.
    """
    params = [event.get("params", {}) for event in log["events"]]
    own = {one["url"] for one in params if one.get("initiator") == "not an origin"}
    found = {
        one["url"] for one in params if re.match(r"(https?|wss?|ftp):", str(one.get("url", "")))
    }
    return sorted(found - own)
