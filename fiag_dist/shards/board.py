"""Where packing workers note how far they are. The file imports nothing: Ray gives an actor a process of its own, which starts with what its file imports."""


class Board:
    """The shares done of the clips at work, 0..1, by number: a Ray actor, to which workers on any node write."""

    def __init__(self) -> None:
        self._shares: dict[int, float] = {}

    def write(self, number: int, share: float) -> None:
        self._shares[number] = share

    def read(self) -> dict[int, float]:
        return self._shares
