"""Starts the processes of a framework that has no launcher; each is told its rank and ports.

    python processes.py PROGRAM FOLDER NUM_RANKS

runs `PROGRAM FOLDER NUM_RANKS RANK PORT...` for each rank, with a port for each, and waits for all.
"""

import socket
import subprocess
import sys


def free_ports(num_ports: int) -> list[str]:
    sockets = [socket.socket() for _ in range(num_ports)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    found = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return found


def main(program: str, folder: str, num_ranks: str) -> int:
    ports = free_ports(int(num_ranks))
    command = [sys.executable, program, folder, num_ranks]
    ranks = [subprocess.Popen([*command, str(rank), *ports]) for rank in range(int(num_ranks))]
    try:
        return max(abs(rank.wait()) for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
