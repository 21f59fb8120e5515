"""Real processes, as on several machines, over the loopback of this one: they train as one process does."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import worker

pytestmark = [pytest.mark.once, pytest.mark.long]

WORKER = pathlib.Path(worker.__file__)


def start(processes, out, dies=""):
    """All processes. A device each, which is all that differs from the flags of this suite."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(WORKER)]
    return [
        subprocess.Popen(
            [*command, str(i), str(processes), str(port), str(out), dies],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]


def finish(running, timeout=150):
    """What each wrote to stderr. A process that hangs is an error."""
    try:
        return [process.communicate(timeout=timeout)[1] for process in running]
    finally:
        for process in running:
            process.kill()


def test_processes_train_as_one_does(tmp_path):
    processes = 4
    running = start(processes, tmp_path)
    errors = finish(running)
    assert [process.returncode for process in running] == [0] * processes, "\n".join(errors)
    want = worker.train(jax.jit(worker.update), lambda i, v: v)
    for how in ("jit", "shard_map"):
        for process in range(processes):
            found = np.load(tmp_path / f"{how}{process}.npz")
            for path, value in jax.tree_util.tree_leaves_with_path(want):
                name = jax.tree_util.keystr(path)
                np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=1e-5, err_msg=f"{how}{name}")


def test_others_fail_when_a_process_dies(tmp_path):
    """With an error, within the time that jax.distributed gives a heartbeat, and do not hang."""
    running = start(2, tmp_path, "dies")
    survivor, _ = finish(running)
    assert running[0].returncode != 0
    assert "rror" in survivor
    assert not list(tmp_path.iterdir())
