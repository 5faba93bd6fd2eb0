"""What the flowchart costs.

    python bench/flowchart.py          # all three
    python bench/flowchart.py quick    # plan to quick test of t5_tiny from a cold process
    python bench/flowchart.py poll     # one refresh of a running training, and memory over 3,600 of them
    python bench/flowchart.py click    # from a click in a real browser to the card, while a training runs
"""
import gc
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

home = Path(__file__).parents[1]
sys.path.insert(0, str(home / "tests"))
size = "train.max_steps=3000 valid.every=null train.checkpoint_every=1000 train.log_every=1"


def quick():
    "Seconds from the start of a process, kernel and worker cold, to the card of the quick test."
    code = "from workbench.lab.flowchart.headless import walk; walk('t5_tiny')"
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    print(f"| plan → quick test of t5_tiny, cold | {time.monotonic() - began:.1f} s | 25 s |", flush=True)


def started():
    "A run that trains for minutes; its folder."
    from workbench.lab.run import launch

    run = launch.start("t5_tiny", size)
    while run.status.get("step", 0) < 20:
        time.sleep(0.2)
    return run


def resident():
    "Megabytes of this process."
    import psutil

    gc.collect()
    return psutil.Process().memory_info().rss / 1e6


def poll():
    "Processor time of a look, twice a second; memory over 3,600 looks as fast as they go."
    from workbench.lab.run import launch
    from workbench.lab.flowchart.app import Flowchart

    run = started()
    app = Flowchart("t5_tiny", size, str(run.folder))
    app.diagram.chosen = "training"
    for _ in range(20):
        app.tick()
        time.sleep(0.5)
    began, n = time.process_time(), 40
    for _ in range(n):
        app.tick()
        time.sleep(0.5)
    used = time.process_time() - began
    print(f"| a look at a running training, every 0.5 s | {used / n * 1e3:.1f} ms, {used / n / 0.5:.1%} of a "
          "core | 2 % |")
    launch.stop(run.folder)
    launch.wait(run)
    for _ in range(200):
        app.tick()
    before = resident()
    for _ in range(3600):
        app.tick()
    print(f"| memory over 3,600 looks | {resident() - before:+.1f} MB on {before:.0f} MB | 0 |", flush=True)
    app.worker.close()


def click():
    "Milliseconds from a click to the changed card, in the browser, while a training runs."
    import shutil
    import statistics

    import browser

    notebooks = Path(os.environ["WORKBENCH_RUNS"]).parent / "nbs"
    notebooks.mkdir()
    shutil.copy(home / "nbs/flowchart.ipynb", notebooks)
    timed = """async name => {
      const began = performance.now(), wait = () => new Promise(r => setTimeout(r, 2));
      const at = document.querySelector(`g[data-station="${name}"]`);
      at.dispatchEvent(new MouseEvent("click", {bubbles: true}));
      while (document.querySelector(".wb-head h3")?.textContent !== name) await wait();
      return performance.now() - began; }"""
    run = started()
    with browser.jupyter(notebooks, PYTHONPATH=str(home)) as server, browser.browser() as context:
        page = browser.open_notebook(context, server, "flowchart.ipynb")
        page.wait_for_selector(".wb-flow .box", timeout=90_000)
        time.sleep(15)  # the worker has started
        found = []
        for _ in range(10):
            for name in ("plan", "training", "data", "quick test"):
                found.append(page.evaluate(timed, name))
                time.sleep(0.3)
        found.sort()
        print(f"| a click, while a training runs | median {statistics.median(found):.0f} ms, 95 % "
              f"{found[int(0.95 * len(found))]:.0f} ms | 200 ms |", flush=True)
    from workbench.lab.run import launch

    launch.stop(run.folder)
    launch.wait(run)


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join([str(home), os.environ.get("PYTHONPATH", "")])
    print("| question | result | wanted |\n|---|---|---|", flush=True)
    for name in sys.argv[1:] or ["quick", "poll", "click"]:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["WORKBENCH_RUNS"] = str(Path(folder) / "runs")
            {"quick": quick, "poll": poll, "click": click}[name]()
