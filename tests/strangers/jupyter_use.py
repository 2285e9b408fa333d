"""A notebook: its kernel sets its own handler of Ctrl-C around each cell, and shows cells' output and errors
itself."""

from __future__ import annotations

import random
import re
import sys
import time

from jupyter_client.manager import KernelManager

CELL_TIMEOUT_S = 60.0
INTERRUPTS = 40

START = """
import ray
ray.init(address="local", num_cpus=2, object_store_memory=100_000_000)

@ray.remote
def echo(value):
    return value

@ray.remote
def say(what):
    print("said", what)

@ray.remote
class Counter:
    def count(self, by):
        return by

counter = Counter.remote()
"""
BUSY = """
for number in range(10**9):
    refs = [echo.remote(number), counter.count.remote(number), ray.put(b"x" * 300_000)]
    ray.wait(refs)
    ray.get(refs)
"""
WORKS = "ray.get([echo.remote(1), counter.count.remote(2), ray.put(3)], timeout=30)"


class Notebook:
    """A kernel of this interpreter."""

    def __init__(self) -> None:
        self._manager = KernelManager()
        self._manager.kernel_cmd = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        self._manager.start_kernel()
        self._client = self._manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=CELL_TIMEOUT_S)

    def run(self, cell: str, interrupt_after_s: float | None = None) -> str:
        """What the cell shows: its output, its value, its error."""
        began_s, shown = time.monotonic(), ""
        cell_id = self._client.execute(cell)
        while time.monotonic() < began_s + CELL_TIMEOUT_S:
            if interrupt_after_s is not None and time.monotonic() > began_s + interrupt_after_s:
                self._manager.interrupt_kernel()
                interrupt_after_s = None
            try:
                message = self._client.get_iopub_msg(timeout=0.02)
            except Exception:  # queue.Empty, or zmq's
                continue
            if message["parent_header"].get("msg_id") != cell_id:
                continue
            content = message["content"]
            shown += content.get("text", "") + content.get("data", {}).get("text/plain", "")
            shown += "\n".join(content.get("traceback", ()))
            if content.get("execution_state") == "idle":
                return re.sub(r"\x1b\[[0-9;]*m", "", shown)
        raise TimeoutError(f"a cell did not end within {CELL_TIMEOUT_S:g} s, and showed {shown!r}:\n{cell}")

    def close(self) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel()


def main() -> None:
    notebook = Notebook()
    try:
        notebook.run(START)
        assert notebook.run("await echo.remote(7)") == "7"
        shown = notebook.run("ray.get(say.remote('this')); import time; time.sleep(1)")
        assert re.fullmatch(r"\(say pid=\d+\) said this\n", shown), shown
        shown = notebook.run("def fail():\n    raise ValueError('no')\nray.get(ray.remote(fail).remote())")
        assert "RayTaskError(ValueError)" in shown and "raise ValueError('no')" in shown, shown
        draw = random.Random(0)
        for _ in range(INTERRUPTS):
            shown = notebook.run(BUSY, interrupt_after_s=draw.uniform(0.1, 0.4))
            assert "KeyboardInterrupt" in shown, shown
            assert notebook.run(WORKS) == "[1, 2, 3]"
        notebook.run("del refs")
        notebook.run("1 / 0")  # else the last traceback holds what the last cell had
        notebook.run("import gc; gc.collect()")
        shown = notebook.run("ray.available_resources()['object_store_memory']")
        assert shown == "100000000.0", shown
        notebook.run("ray.shutdown()")
    finally:
        notebook.close()


if __name__ == "__main__":
    main()
