"""Kernels that start with their libraries loaded: forks of one process that has imported what nearly every study needs.

Loading torch, matplotlib, seaborn and pandas takes seconds, for every kernel again. Python's own fork server
(`multiprocessing`) loads them once, in a process that runs nothing else, and each study's kernel is a fork of it, so
that no study sees what another has done. Where there is no fork server that one can trust (Windows; macOS, whose
libraries do not survive forks), or the environment has changed since it began, kernels start as they always do.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import psutil
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

LIBRARIES = (
    "studybook.preload", "ipykernel.kernelapp", "ipykernel.ipkernel", "matplotlib.pyplot", "myst_nb", "numpy", "pandas",
    "torch", "studybook.plots", "studybook.sweep", "studybook.ensemble", "studybook.ledger",
)  # fmt: skip
_NAME = "studybook-preload"
_OF_A_KERNEL = ("STUDYBOOK_", "IPYTHON", "JPY_", "MPLBACKEND", "PYTEST_")  # read when used, not when loaded
_started: dict[str, str] | None = None  # the environment in which libraries are loaded
_servers: set[int] = set()


def start() -> None:
    """Begins to load the libraries, in a process that ends with this one, and has kernels from now on be its forks.

    Returns at once; the first kernel waits until all is loaded. A second call does nothing.
    """
    global _started
    factory = KernelProvisionerFactory.instance()
    if sys.platform != "linux" or _started is not None:
        return
    _started = _lasting(os.environ)
    earlier = os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # matplotlib asks for it once, when it loads
    try:
        multiprocessing.get_context("forkserver").set_forkserver_preload(list(LIBRARIES))
        forkserver.ensure_running()
    finally:
        if earlier is None:
            os.environ.pop("MPLBACKEND")
        else:
            os.environ["MPLBACKEND"] = earlier
    factory.provisioners[_NAME] = EntryPoint(_NAME, "studybook.preload:Provisioner", factory.GROUP_NAME)
    factory.default_provisioner_name = _NAME


def servers() -> set[int]:
    """Processes that hold loaded libraries and run no study: their memory is also counted in their forks'."""
    return set(_servers)


class Provisioner(LocalProvisioner):
    """Starts IPython's kernel as a fork of the process with the libraries, and any other as `LocalProvisioner` does."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict[str, Any]:
        """Like `LocalProvisioner.launch_kernel`: gives the connection's ports and key."""
        environment = kwargs.get("env") or dict(os.environ)
        if "ipykernel_launcher" not in cmd or _lasting(environment) != _started:
            return await super().launch_kernel(cmd, **kwargs)
        words = cmd[cmd.index("ipykernel_launcher") + 1 :]
        where = Path(kwargs.get("cwd") or Path.cwd())
        context = multiprocessing.get_context("forkserver")
        process = context.Process(target=_kernel, args=(words, environment, str(where)), name="kernel")
        process.start()
        _servers.add(psutil.Process(process.pid).ppid())
        self.process = _Fork(process)
        self.pid = self.pgid = process.pid
        self.cwd = where
        return self.connection_info


class _Fork:
    """What `LocalProvisioner` asks of a `subprocess.Popen`, of a process of multiprocessing."""

    stdin = stdout = stderr = None

    def __init__(self, process: multiprocessing.process.BaseProcess):
        self.process, self.pid = process, process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _kernel(words: list[str], environment: dict[str, str], where: str) -> None:
    """What a fork does: becomes the leader of its group, as a kernel is, and then the kernel."""
    from ipykernel.kernelapp import launch_new_instance

    os.setsid()
    server = forkserver._forkserver
    os.close(server._forkserver_alive_fd)  # which would keep it alive after a command that was killed
    server._forkserver_alive_fd = None
    os.environ.clear()
    os.environ.update(environment, JPY_PARENT_PID=str(os.getppid()))
    os.chdir(where)
    sys.argv = ["ipykernel_launcher", *words]
    parent = f"--IPKernelApp.parent_handle={os.getppid()}"  # its default was read when the libraries were loaded
    launch_new_instance(argv=[*words, parent])


def _lasting(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that libraries may read when they load."""
    return {name: value for name, value in environment.items() if not name.startswith(_OF_A_KERNEL)}
