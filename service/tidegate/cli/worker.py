"""``python -m tidegate.cli.worker FD``: a worker's process. The supervisor starts it; FD is an end of a socket pair."""

from __future__ import annotations

from collections.abc import Callable, Coroutine

from tidegate.cluster.worker import Serve, main


def _run(start: Callable[[Serve], Coroutine[None, None, bool]]) -> bool:
    from tidegate.server import run_in_loop, serve

    return run_in_loop(lambda: start(serve))


if __name__ == "__main__":
    main(_run)
