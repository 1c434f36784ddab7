"""What the processes of `test_errors` do: the last one fails in a way that no other can read; each says what it got."""

import threading

from tutelage.world import World, joined, leave


class Odd(Exception):
    """It cannot be made from its words alone."""

    def __init__(self, problem: str, status: int) -> None:
        super().__init__(f"{problem} ({status})")


class Locked(Exception):
    """It holds what is of one process only."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.lock = threading.Lock()


def said(everyone: World, error: Exception) -> str:
    """What a process is told of an error in the last one."""

    def fail() -> None:
        if everyone.rank == everyone.size - 1:
            raise error

    try:
        everyone.agreed(fail)
    except Exception as found:
        return f"{type(found).__name__}: {found}{' with its cause' * (found.__cause__ is error)}"
    return "nothing"


if __name__ == "__main__":
    with joined() as world:
        told = [said(world, error) for error in (ValueError("plain"), Odd("rate limit", 429), Locked("no key"))]
        everything = world.gather([f"{world.rank} {line}" for line in told])
        if world.is_main:
            print("\n".join(line for lines in everything for line in lines), flush=True)
    leave(0)
