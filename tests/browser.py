"A real JupyterLab in a real chromium, for tests and for screenshots."
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

flags = ("--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync --disable-dev-shm-usage").split()
status = "window.jupyterapp?.shell?.currentWidget?.context?.sessionContext?.session?.kernel?.status"


def chromium():
    "The program, or nothing."
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def write_settings(folder, dark):
    "JupyterLab's settings: a kernel at once, no news, the theme."
    notebook, news, theme = (folder / "@jupyterlab" / p
                             for p in ("notebook-extension", "apputils-extension", "apputils-extension"))
    for path in (notebook, news):
        path.mkdir(parents=True, exist_ok=True)
    (notebook / "tracker.jupyterlab-settings").write_text('{"autoStartDefaultKernel": true}')
    (news / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    name = "JupyterLab Dark" if dark else "JupyterLab Light"
    (theme / "themes.jupyterlab-settings").write_text(json.dumps({"theme": name}))


@contextmanager
def jupyter(folder, dark=False, **env):
    "A JupyterLab on a folder of notebooks; (address, token)."
    own = Path(folder).parent / f"jupyter-{secrets.token_hex(4)}"
    write_settings(own / "settings", dark)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}",
               "--allow-root",
               f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True",
               f"--ServerApp.root_dir={folder}"]
    around = os.environ | {"JUPYTERLAB_SETTINGS_DIR": str(own / "settings"),
                           "JUPYTERLAB_WORKSPACES_DIR": str(own / "workspaces"),
                           "JUPYTER_CONFIG_DIR": str(own / "config"),
                           "JUPYTER_RUNTIME_DIR": str(own / "runtime"),
                           "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"} | env
    with open(own / "log.txt", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=around)
    at = f"http://127.0.0.1:{port}"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        for _ in range(600):
            try:
                direct.open(f"{at}/api?token={token}")
                break
            except OSError:
                assert server.poll() is None, (own / "log.txt").read_text()
                time.sleep(0.1)
        yield at, token
    finally:
        server.terminate()  # its kernels go with it
        server.wait(30)


@contextmanager
def browser(width=1400, height=1100):
    "A context of a browser; what fails in it says what its pages showed."
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        program = p.chromium.launch(executable_path=chromium(), args=flags)
        context = program.new_context(viewport={"width": width, "height": height})
        try:
            yield context
        except Exception as e:
            for page in context.pages:
                e.add_note(f"{page.url} showed:\n{page.locator('body').inner_text()[:4000]}")
            raise
        program.close()


def wait_idle(page):
    page.wait_for_function(f"() => {status} === 'idle'", timeout=60_000)


def open_notebook(context, server, name, run=True):
    "A page with the notebook; all cells are run."
    at, token = server
    page = context.new_page()
    # `reset` would load the page twice
    page.goto(f"{at}/lab/workspaces/{secrets.token_hex(4)}/tree/{name}?token={token}")
    page.wait_for_function("() => window.jupyterapp && window.jupyterapp.shell", timeout=60_000)
    wait_idle(page)
    if run:
        run_all(page)
    return page


def run_all(page):
    "Run all cells; before the notebook stands in front of a person, the command does nothing."
    page.wait_for_function("() => window.jupyterapp.commands.isEnabled('notebook:run-all-cells')")
    page.evaluate("()=>{window.jupyterapp.commands.execute('notebook:run-all-cells')}")


def restart(page):
    "Restart the kernel without the question, then run all cells."
    page.evaluate("async () => { await "
                  "jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.restart() }")
    wait_idle(page)
    run_all(page)
