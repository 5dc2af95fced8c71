"""JupyterLab in Chromium: the tour, run and looked at.  Only with `-m browser`.

Screenshots are left in the folder that FASTGRAD_SHOTS names, to be looked at by a person.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastgrad.__main__ import main

pytestmark = pytest.mark.browser

TOUR = Path(__file__).parents[1] / "docs" / "tour.ipynb"
OVERFLOW = """
[...document.querySelectorAll('.jp-OutputArea-output')]
    .map(e => e.scrollWidth - e.clientWidth).filter(x => x > 1)
"""
IDLE = "jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
ERRORS = "document.querySelectorAll('[data-mime-type=\"application/vnd.jupyter.stderr\"]').length"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A server with the kernel and two notebooks: one to run, one with outputs of a stranger."""
    pytest.importorskip("jupyterlab")
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    folder = tmp_path_factory.mktemp("lab")
    root = folder / "root"
    root.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DATA_DIR", "CONFIG_DIR", "RUNTIME_DIR"):
            patch.setenv(f"JUPYTER_{name}", str(folder / name))
        patch.setenv("JUPYTER_PATH", str(folder / "share/jupyter"))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        assert main(["kernel", "install", "--prefix", str(folder)]) == 0
        shutil.copy(TOUR, root / "trusted.ipynb")
        notebook = nbformat.read(TOUR, 4)
        nbclient.NotebookClient(notebook, kernel_name="fastgrad", timeout=120).execute()
        nbformat.write(notebook, root / "untrusted.ipynb")
        config = folder / "config.py"
        config.write_text(
            "c.LabApp.expose_app_in_browser = True\n"
            "c.ServerApp.ip = '127.0.0.1'\n"
            f"c.ServerApp.port = {port}\n"
            f"c.ServerApp.root_dir = {str(root)!r}\n"
            f"c.IdentityProvider.token = {token!r}\n"
            f"c.ServerApp.allow_root = {os.geteuid() == 0}\n"
            "c.ServerApp.open_browser = False\n"
        )
        command = [sys.executable, "-m", "jupyterlab", f"--config={config}"]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield lambda name: f"http://127.0.0.1:{port}/lab/tree/{name}.ipynb?token={token}&reset"
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("width", [700, 1200])
@pytest.mark.parametrize("name", ["trusted", "untrusted"])
def test_the_tour_looks_right(lab, chromium, name, width):
    page = chromium.new_page(viewport={"width": width, "height": 4500})
    page.goto(lab(name))
    page.wait_for_function("window.jupyterapp !== undefined", timeout=60_000)
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=60_000)
    run = "jupyterapp.commands.execute"
    page.evaluate(f"{run}('application:set-mode', {{mode: 'single-document'}})")
    page.evaluate("jupyterapp.shell.collapseLeft()")
    page.wait_for_function(IDLE, timeout=60_000)
    if name == "trusted":
        # Not awaited: an answer that never comes has no timeout.
        page.evaluate(f"() => {{ {run}('notebook:run-all-cells'); }}")
    page.wait_for_function("document.body.innerText.includes('Kink(input=')", timeout=120_000)
    page.wait_for_timeout(1000)
    text = page.inner_text("body")
    for words in ("✘ FAIL", "✔ PASS", "vs NumPy", "of peak", "How this was measured"):
        assert words in text, words
    assert page.evaluate(ERRORS) == 0
    shots = Path(os.environ.get("FASTGRAD_SHOTS", "") or ".")
    for theme in ("JupyterLab Light", "JupyterLab Dark"):
        page.evaluate(f"{run}('apputils:change-theme', {{theme: '{theme}'}})")
        page.wait_for_timeout(1500)
        assert page.evaluate(OVERFLOW) == []
        if "FASTGRAD_SHOTS" in os.environ:
            page.screenshot(path=shots / f"{name}-{width}-{theme.split()[1].lower()}.png")
    page.close()
