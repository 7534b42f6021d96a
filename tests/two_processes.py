"""Starts a script in two processes that connect to each other on this machine."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
PATIENCE = 300  # seconds


def free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def start(words, logs, variables=None, second=()):
    """Starts two processes of a script and returns them.

    They print to `logs/process-0.txt` and `logs/process-1.txt`. The second process has the further
    words `second`.
    """
    port = free_port()
    place = ["--coordinator", f"localhost:{port}", "--num-processes", "2"]
    started = []
    for k in range(2):
        own = [*place, "--process-id", str(k)] if variables is None else []
        command = [sys.executable, str(EXPERIMENTS / words[0]), *words[1:], "--distributed", *own]
        command += second if k else ()
        environment = dict(os.environ)
        if variables is not None:
            environment |= variables(k, port)
        with (logs / f"process-{k}.txt").open("w") as log:
            started.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )
    return started


def wait(processes, logs):
    """Returns the exit codes and the printed texts of the processes."""
    try:
        codes = [process.wait(PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return codes, [(logs / f"process-{k}.txt").read_text() for k in range(2)]


def wait_for(path, processes):
    """Waits until a path exists. Fails if a process ends before."""
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.02)
