"""A client of sessions: Kubernetes' Python library, which speaks WebSockets alone.

    sessions.py exec URL          a command: standard streams are its own, and its exit code
    sessions.py forward URL PORT  one connection to a port of a pod, on the standard streams

The URL is what the CRI's Exec, Attach and PortForward answer with.
"""

import sys
import threading

from kubernetes.client import Configuration
from kubernetes.stream import ws_client

PIECE = 32 * 1024


def execute(url):
    client = ws_client.websocket_call(
        Configuration(), "GET", url, _preload_content=False, capture_all=False, binary=True
    )
    if client.subprotocol != ws_client.V5_CHANNEL_PROTOCOL:
        sys.exit(f"the server chose {client.subprotocol}")

    def type_in():
        while piece := sys.stdin.buffer.read1(PIECE):
            client.write_stdin(piece)
        client.close_channel(ws_client.STDIN_CHANNEL)

    typing = threading.Thread(target=type_in, daemon=True)
    typing.start()
    outputs = {ws_client.STDOUT_CHANNEL: sys.stdout, ws_client.STDERR_CHANNEL: sys.stderr}

    def show():
        for channel, output in outputs.items():
            output.buffer.write(client.read_channel(channel))
            output.buffer.flush()

    while client.is_open():
        client.update(timeout=1)
        show()
    # Reading one channel may have brought the last of another, and the end.
    show()
    sys.exit(client.returncode)


def forward(url, port):
    connection = ws_client.portforward_call(
        Configuration(), "GET", url, query_params=[("ports", str(port))]
    )
    stream = connection.socket(port)
    stream.setblocking(True)

    def send():
        while piece := sys.stdin.buffer.read1(PIECE):
            stream.sendall(piece)

    threading.Thread(target=send, daemon=True).start()
    while piece := stream.recv(PIECE):
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    if connection.error(port):
        sys.exit(connection.error(port))


if __name__ == "__main__":
    what, url, *rest = sys.argv[1:]
    if what == "exec":
        execute(url)
    else:
        forward(url, int(rest[0]))
