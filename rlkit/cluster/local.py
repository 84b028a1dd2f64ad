"""A Ray of our own on this machine: closed to everybody else, and gone when the driver is.

It listens on the loopback address only. Ray's token authentication is on, with a token of this session alone, in a file that only this
user can read. Everything that it writes lies in one private folder, which :mod:`rlkit.cluster.reaper` removes.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlkit.cluster import reaper

SETTINGS = {
    # Ray keeps the history of up to 100,000 calls for its dashboard, which is off: 6.5 MB for every 100 steps.
    "task_events_report_interval_ms": 0,
    "enable_metrics_collection": False,
    # One process for each CPU, started in advance; our workers have environments of their own and use none of them.
    "prestart_worker_first_driver": False,
}
PLACE = 16  # letters of the folder for temporary files beyond which the names of Ray's sockets would be longer than Unix allows


class LocalRay:
    """Starts Ray; :meth:`stop` ends it, and so does the end of this process, whatever its cause."""

    def __init__(self, **options: Any) -> None:
        import ray

        # Ray lets everybody into the folder that it is given; this one, around it, is ours alone.
        place = tempfile.gettempdir()
        self.folder = tempfile.mkdtemp(prefix="rlkit-ray-", dir=place if len(place) <= PLACE else "/tmp")
        self._reaper = subprocess.Popen(
            [sys.executable, "-I", "-S", reaper.__file__, self.folder, str(os.getpid())],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self._processes: dict[str, list[Any]] = {"raylet": [], "gcs_server": []}
        token = Path(self.folder) / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        settings = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_AUTH_TOKEN": None,
        }
        self._before = {name: os.environ.get(name) for name in settings}
        # Ray would end the whole process, without a word of ours, a minute after its control process has died: also when another Ray has
        # taken its place by then, so this one stays set.
        os.environ["RAY_gcs_rpc_server_reconnect_timeout_s"] = "86400"  # noqa: SIM112
        _set(settings)
        atexit.register(self.stop)
        try:
            with _alone(logs=bool(options.get("log_to_driver"))):
                ray.init(address="local", _temp_dir=f"{self.folder}/ray", _system_config=SETTINGS, **options)
        except BaseException:
            self.stop()
            raise
        node: Any = ray._private.worker._global_node
        self._processes = {kind: [x.process for x in found] for kind, found in node.all_processes.items()}

    def environment(self) -> dict[str, str]:
        """What keeps the libraries of workers to the loopback address, too."""
        import psutil  # installed by the extra that installs Ray

        addresses = psutil.net_if_addrs().items()
        loopback = next(name for name, found in addresses if any(a.address == "127.0.0.1" for a in found))
        return {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback, "VLLM_HOST_IP": "127.0.0.1"}

    def rendezvous(self) -> str:
        """A file where learners meet, because torch's own server for that listens on all addresses."""
        return f"{self.folder}/rendezvous-{secrets.token_hex(8)}"

    def ended(self) -> str | None:
        """Which of the two processes that Ray cannot do without has ended."""
        gone = [k for k in ("raylet", "gcs_server") if any(p.poll() is not None for p in self._processes[k])]
        return gone[0] if gone else None

    def stop(self) -> None:
        import ray

        atexit.unregister(self.stop)
        if self._reaper.poll() is not None:
            return
        if self.ended():  # what is left of it would keep us waiting for what is not
            self._reaper.communicate()
        with contextlib.suppress(Exception):  # of a Ray that is broken already
            ray.shutdown()
        self._reaper.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)  # where a late shutdown has written into it once more
        _set(self._before)


@contextlib.contextmanager
def _alone(logs: bool) -> Iterator[None]:
    """Inside, Ray starts what one machine needs: its control process and its node, on the loopback address.

    A cluster has three programs of Python beside them: the dashboard's, which starts to serve nothing where there is none, the
    autoscaler's, and (but for ``logs``) the reader of what workers print. They take 2 s of CPU and 280 MB, and a start and an end wait
    for them. Every node's agent listens on one port, for which those of a second Ray would wait in vain for 3.4 s.
    """
    from ray._private import node, ray_constants

    usual, several = node.Node, ray_constants.ENABLE_RAY_CLUSTER

    class Alone(node.Node):
        def __init__(self, ray_params: Any, *args: Any, **options: Any) -> None:
            ray_params.no_monitor, ray_params.include_log_monitor = True, logs
            ray_params.dashboard_agent_listen_port = 0  # any that is free
            super().__init__(ray_params, *args, **options)

        def start_api_server(self, **options: Any) -> None:
            self._webui_url = None

    node.Node = Alone  # type: ignore[misc]
    ray_constants.ENABLE_RAY_CLUSTER = False  # Ray's word for the loopback address
    try:
        yield
    finally:
        node.Node = usual  # type: ignore[misc]
        ray_constants.ENABLE_RAY_CLUSTER = several


def _set(variables: Mapping[str, str | None]) -> None:
    """Sets or removes environment variables of Ray, which has read them when it was imported and is told to read them again."""
    import ray

    for name, value in variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    raylet: Any = ray._raylet
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def is_open(address: str) -> bool:
    """Whether the cluster at ``host:port`` answers somebody without a token."""
    import grpc

    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary("/ray.rpc.JobInfoGcsService/GetAllJobInfo")
        try:
            ask(b"", timeout=10)  # an empty message is a request without filters
        except grpc.RpcError as error:
            return bool(error.code() != grpc.StatusCode.UNAUTHENTICATED)
    return True
