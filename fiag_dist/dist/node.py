"""What launch/pretrain.sh asks of the machine it is on: `python -m fiag_dist.dist.node MASTER_ADDR` prints how many GPUs a run may use, and this machine's
address as the others see it."""

import socket
import sys

import torch

from fiag_dist.ending import guarded
from fiag_dist.errors import DistributedError


def address_towards(other: str) -> str:
    """The address of this machine from which it reaches `other`, a name or an address. Raises DistributedError where there is no way.

    Ranks meet at the machine that torchrun sorts first, whichever that is; by its host name, which torchrun would take, others may not find it.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(other, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as end:
            end.connect(place)  # nothing is sent
            return end.getsockname()[0]
    except OSError as error:
        raise DistributedError(
            f"MASTER_ADDR {other}: no way there from {socket.gethostname()} ({error.strerror}); give node 0's name or address as this node sees it"
        ) from error


def main(argv: list[str]) -> int:
    """Prints both, the address only where a first node is named."""
    print(torch.cuda.device_count(), *(address_towards(other) for other in argv))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
