"""Ray Serve with FastAPI as its ingress: a proxy process spreads requests over replicas, and each
replica is a process with its own engine.

The app is that of `fastapi_vllm` or `fastapi_threadpool`: a replica builds it when it starts.
"""

import os
import signal
import sys
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.schema import LoggingConfig
from uvicorn.importer import import_from_string

from servers.runtime.limits import MAX_IN_FLIGHT

# Two seconds of load start a replica. Ray Serve waits for 30 by default, as long as a whole case.
AUTOSCALING = {
    "min_replicas": 1,
    "max_replicas": 3,
    "target_ongoing_requests": 8,
    "upscale_delay_s": 2,
}


def build_app() -> FastAPI:
    """Build the app in the replica: it counts in its process, and loads the engine in its
    lifespan.
    """
    if not os.environ.get("RAY_ADDRESS"):
        listen_on_loopback()
    server = "fastapi_threadpool" if os.environ["SERVEOFF_ENGINE"] == "hf" else "fastapi_vllm"
    app: FastAPI = import_from_string(f"servers.{server}.app:app")
    return app


def listen_on_loopback() -> None:
    """Keep the port on which replicas call each other off the other interfaces: Ray has no setting
    for it. A replica opens it after it has built the app.
    """
    from ray.serve._private import replica

    add_port = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: add_port(
        server, address.replace("[::]", "127.0.0.1")
    )


@serve.ingress(build_app)
class Llm:
    pass


def main() -> None:
    host, port, replicas, folder = sys.argv[1:]
    stop = {signal.SIGTERM, signal.SIGINT}
    # all replicas share the engine's threads
    most = AUTOSCALING["max_replicas"] if replicas == "auto" else int(replicas)
    threads = int(os.environ["SERVEOFF_ENGINE_THREADS"])
    os.environ["SERVEOFF_ENGINE_THREADS"] = str(max(1, threads // most))
    if os.environ.get("RAY_ADDRESS"):  # the nodes of a cluster do not have our environment
        own = {name: text for name, text in os.environ.items() if name.startswith("SERVEOFF_")}
        ray.init(runtime_env={"working_dir": ".", "env_vars": own})
    else:
        ray.init(
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            logging_level="warning",
            _temp_dir=folder,
        )
    serve.start(http_options={"host": host, "port": int(port)})
    scale: dict[str, Any] = (
        {"autoscaling_config": AUTOSCALING}
        if replicas == "auto"
        else {"num_replicas": int(replicas)}
    )
    deployment = serve.deployment(
        Llm,
        # the app refuses what is too much (429); Ray Serve would queue it, beyond 5 by default
        max_ongoing_requests=MAX_IN_FLIGHT + 100,
        ray_actor_options={"num_cpus": 0},  # Ray counts no cores: replicas share ours
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
        **scale,
    )
    serve.run(deployment.bind(), name="llm", route_prefix="/")
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    signal.sigwait(stop)
    serve.delete("llm")  # waits for the responses in progress
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
