"""Who gets an answer from a Dask scheduler."""

import asyncio

from distributed.comm import connect
from distributed.comm.core import CommClosedError
from distributed.security import Security


async def answers(address: str, security: Security | None) -> bool:
    """Return whether a scheduler answers: with TLS as given, or spoken to in the open."""
    arguments: dict = {} if security is None else security.get_connection_args("client")
    where = address.replace("tls://", "tcp://") if security is None else address
    try:
        comm = await connect(where, timeout=3, **arguments)
        await comm.write({"op": "identity", "reply": True})
        answer = await asyncio.wait_for(comm.read(), 3)
        comm.abort()
    except (OSError, TimeoutError, CommClosedError):
        return False
    return answer["type"] == "Scheduler"
