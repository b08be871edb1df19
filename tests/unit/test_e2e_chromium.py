"""The browser of the end-to-end tests, on a page whose form is made like that of Kubeflow Pipelines' pages."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from e2e.access import chromium
from e2e.scenario import Deadline, Failed, Late
from e2e.scenarios import pages

FORM = """<!doctype html><title>form</title><body>
<input id="workspace" value="s3://bucket/before">
<div id="dataset" role="combobox" tabindex="0" style="width: 200px; height: 30px">demo</div>
<ul id="list" hidden><li data-value="demo">demo</li><li data-value="folder">folder</li></ul>
<button id="startNewRunBtn" disabled>Start</button><p id="said"></p>
<script>
  const get = id => document.getElementById(id);
  get("dataset").addEventListener("mousedown", () => { get("list").hidden = false });
  for (const item of document.querySelectorAll("li"))
    item.addEventListener("click", () => {
      get("dataset").innerText = item.dataset.value;
      get("list").remove();
      get("startNewRunBtn").disabled = false;
    });
  get("startNewRunBtn").addEventListener("click", () => {
    get("said").innerText = location.hash + " started " + get("workspace").value + " " + get("dataset").innerText;
  });
</script>"""

pytestmark = pytest.mark.skipif(not chromium.find_chromium(), reason="no Chromium here")


@pytest.fixture
def address() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(FORM.encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_form_is_filled_and_sent(address: str, tmp_path: Path) -> None:
    with chromium.opened(chromium.find_chromium(), Deadline(120)) as page:
        page.open(f"{address}/#/runs/new")
        page.fill("#workspace", "s3://bucket/after")
        pages._choose(page, "#dataset", "folder")
        page.click("#startNewRunBtn")
        expected = "#/runs/new started s3://bucket/after folder"
        page.wait_for(f"document.getElementById('said').innerText === '{expected}'", "the form's answer")
        page.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
        with pytest.raises(Failed, match="the page fails at nonsense"):
            page.evaluate("nonsense(")


def test_timeout_is_reported_with_the_text_of_the_page(address: str) -> None:
    with chromium.opened(chromium.find_chromium(), Deadline(120)) as page:
        page.open(address)
        page.wait_for("document.readyState === 'complete' && document.title === 'form'", "the page")
        page._deadline = Deadline(0.5)
        with pytest.raises(Late, match="#absent in the page, which says: demo"):
            page.click("#absent")


def test_browser_that_does_not_start_is_reported() -> None:
    with pytest.raises(Failed, match="Chromium does not start"), chromium.opened("/bin/false", Deadline(60)):
        pass
