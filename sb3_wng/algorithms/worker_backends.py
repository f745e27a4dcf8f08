"""Where worker processes come from: this machine, through loky, or a Ray cluster.

The evaluator needs little: single processes that run one function at a time, whose loss is an exception in a future, and
that can be killed. So each worker is an executor of one process, or one Ray actor, and losing or killing one leaves the
others alone. joblib's ``parallel_config(backend="ray")`` would give the same call on both, but a call fails as a whole when
one process dies, and which process runs an episode that hangs is not known. Ray's tasks with ``max_retries`` re-run after a
loss by themselves, but forever the same chunk, without saying when it began, and without a process to keep policy and
environment in. With actors, lost workers and time-outs are the evaluator's on both, and a backend is twenty lines.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, ClassVar, Protocol

from loky import cpu_count
from loky.process_executor import BrokenProcessPool, ProcessPoolExecutor

# A worker computes in one thread: results do not depend on the number of threads, and workers do not fight for cores
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
MISSING_RAY = 'backend="ray" needs Ray: pip install "sb3-wng[ray]"'


class Worker(Protocol):
    """One process."""

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run a function there."""

    def kill(self) -> None:
        """End the process, whatever it does."""


class Backend(Protocol):
    """A source of workers."""

    name: str
    n_jobs: int  # known once it is open

    def open(self) -> None:
        """Called before the first worker is started, again after :meth:`close`."""

    def start(self) -> Worker:
        """A new worker. Returns at once; the worker may begin later."""

    def share(self, value: Any) -> Any:
        """What to pass to ``submit`` in place of a value that many workers get."""

    def is_loss(self, error: BaseException) -> bool:
        """Whether a future's exception says that the worker is gone, rather than that the function failed."""

    def close(self) -> None:
        """Called after the last worker was killed."""


class LocalWorker:
    """An executor of one process; loky's need no ``if __name__ == "__main__"`` and run what is defined in a script."""

    def __init__(self) -> None:
        self._executor = ProcessPoolExecutor(max_workers=1, timeout=None, env=ONE_THREAD)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        try:
            return self._executor.submit(function, *arguments)
        except BrokenProcessPool as error:  # it died while it had nothing to do
            future: Future[Any] = Future()
            future.set_exception(error)
            return future

    def kill(self) -> None:
        self._executor.shutdown(wait=True, kill_workers=True)


class LocalBackend:
    """Processes on this machine.

    :param n_jobs: number of them; -1: one for each core that this process may use
    """

    name = "loky"

    def __init__(self, n_jobs: int) -> None:
        self.n_jobs = cpu_count() if n_jobs == -1 else n_jobs

    def open(self) -> None:
        """There is nothing to connect to."""

    def start(self) -> LocalWorker:
        return LocalWorker()

    def share(self, value: Any) -> Any:
        return value

    def is_loss(self, error: BaseException) -> bool:
        return isinstance(error, BrokenProcessPool)

    def close(self) -> None:
        """Each worker's executor has ended with it."""


class RayWorker:
    """An actor that takes one core."""

    def __init__(self) -> None:
        import ray

        self._actor: Any = ray.remote(num_cpus=1, max_restarts=0)(Caller).remote()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self._actor.call.remote(function, *arguments).future()

    def kill(self) -> None:
        import ray

        if ray.is_initialized():  # else ray.kill would start a cluster
            with suppress(ray.exceptions.RayError, ValueError):  # an actor of another connection has ended with it
                ray.kill(self._actor)


class Caller:
    """What runs in a Ray actor."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


class RayBackend:
    """Processes on a Ray cluster: the one that this process is connected to, else the one at an address, else a local one.

    A worker that finds no free core waits for one, so nodes may join and leave while the others go on.

    :param n_jobs: number of workers; -1: as many as the cluster has cores when it is connected to
    :param address: ``"auto"``, ``"host:port"`` or ``"ray://host:port"``; ``None`` starts Ray here, with ``n_jobs`` cores
    :raises ImportError: without Ray
    """

    name = "ray"
    _users: ClassVar[set[int]] = set()  # of the cluster that was started here, which ends with the last of them

    def __init__(self, n_jobs: int, address: str | None = None) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ImportError(MISSING_RAY)
        self._asked, self._address = n_jobs, address
        self.n_jobs = n_jobs

    def open(self) -> None:
        import ray

        if not ray.is_initialized():
            # address=None would also find a cluster by an environment variable; a local one needs no dashboard
            local: dict[str, Any] = {"include_dashboard": False, "num_cpus": None if self._asked == -1 else self._asked}
            ray.init(self._address or "local", log_to_driver=False, **({} if self._address else local))
            self._users.add(id(self))
        elif self._users:
            self._users.add(id(self))
        self.n_jobs = max(1, int(ray.cluster_resources().get("CPU", 1))) if self._asked == -1 else self._asked

    def start(self) -> RayWorker:
        return RayWorker()

    def share(self, value: Any) -> Any:
        import ray

        return ray.put(value)  # travels once to each node

    def is_loss(self, error: BaseException) -> bool:
        from ray.exceptions import RayError, RayTaskError

        return isinstance(error, RayError) and not isinstance(error, RayTaskError)

    def close(self) -> None:
        import ray

        if id(self) in self._users:
            self._users.remove(id(self))
            if not self._users:
                ray.shutdown()
