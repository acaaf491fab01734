"""Memory that processes of a job share, and the pipes at which they wait for each other."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections import deque
from pathlib import Path

import pytest
import torch

from infodisent import ranks, shared_memory
from infodisent.nn import Rotation
from infodisent.ops import divided
from infodisent.shared_memory import Meeting, Workspace, workspace
from tests.ranks import torchrun

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="Linux has memory without a name"
)


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def check_everything():
    """What every process of two does."""
    ranks.start()
    me, like = ranks.rank(), torch.empty(3, 3)
    memory = shared_memory.shared_memory(2 * 8).view(torch.int64)
    assert memory.tolist() == [0, 0]
    open_before = descriptors()
    meet = Meeting()
    for number in range(200):
        memory[me] = number + me
        meet()
        assert memory.tolist() == [number, number + 1]
        meet()
    del meet
    assert descriptors() == open_before
    numbers(like)
    stacks(like)
    assert workspace(like) is workspace(torch.empty(3, 3))
    assert workspace(like) is not workspace(like.double())
    interrupted()
    watched()
    absent(like)
    Path(sys.argv[1], f"{me}").touch()
    death(like)


def numbers(like):
    """The leading process's, whatever the others think."""
    space = Workspace(like)
    for number in range(100):
        assert space.told(2, lambda n=number: (n, n + 0.5)) == [number, number + 0.5]
    assert space.told(1, lambda: [ranks.rank()]) == [0]


def stacks(like):
    """One that is owned is nobody else's; one whose owner has gone is the next one's."""

    class Owner:
        pass

    space, one, other = Workspace(like), Owner(), Owner()
    first = space.stack(2, one)
    second = space.stack(2, other)
    assert first.shape == (2, 3, 3)
    assert first.data_ptr() != second.data_ptr()
    if ranks.leads():
        first.fill_(7)
    space.meet()
    assert (first == 7).all()
    del one
    gc.collect()
    assert space.stack(2, other).data_ptr() == first.data_ptr()
    assert space.stack(2, other).data_ptr() not in (first.data_ptr(), second.data_ptr())
    assert space.matrix(1).data_ptr() == space.matrix(1).data_ptr()


def interrupted():
    """Where one process stops waiting, no later meeting lets anybody through."""
    meet, plain = Meeting(), os.read
    if ranks.leads():
        os.read = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            meet()
        os.read = plain
    else:
        with contextlib.suppress(ranks.RankError):  # it may see that already
            meet()
    ranks.barrier()  # there is something to read by now
    for _ in range(2):
        with pytest.raises(ranks.RankError):
            meet()


def watched():
    """Inference may ask first; what traces or transforms a rotation makes no shared memory."""
    divided.DIVIDED_FROM = 1
    rotation = Rotation(5)
    rotation.divided = True
    with torch.inference_mode():
        rotation()
    rotation().sum().backward()
    known = dict(shared_memory._jobs[0].spaces)
    rotation = Rotation(6)
    rotation.divided = True
    compiled = torch.compile(rotation, backend="eager", fullgraph=True)
    gradient = torch.func.grad(lambda a: torch.func.functional_call(rotation, {"A": a}, ())[0, 1])
    for result in (compiled().detach(), gradient(rotation.A.detach())):
        assert result.shape == (6, 6)
    assert shared_memory._jobs[0].spaces == known


def absent(like):
    """Where one process can't share, none does, nothing is left open, and U is the same."""
    divided.DIVIDED_FROM = 1
    a = torch.linspace(-1, 1, 49).view(7, 7)
    together = divided.divided_rotation(a)
    open_before, me = descriptors(), ranks.rank()
    for name, broken in (("_opened", lambda *_: None), ("_made", lambda *_: None)):
        plain = getattr(shared_memory, name)
        if me == (name == "_opened"):  # the leading process makes it
            setattr(shared_memory, name, broken)
        assert shared_memory.shared_memory(8) is None
        with pytest.raises(MemoryError, match="no memory that processes share"):
            Workspace(like)
        setattr(shared_memory, name, plain)
    plain = os.pipe
    if me:
        os.pipe = lambda: (_ for _ in ()).throw(OSError("too many"))
    with pytest.raises(MemoryError, match="each other's pipes"):
        Meeting()
    os.pipe = plain
    assert descriptors() == open_before
    shared_memory._jobs[0].spaces[a.shape, a.dtype] = None
    torch.testing.assert_close(divided.divided_rotation(a), together, rtol=0, atol=1e-6)


def death(like):
    """Who waits for a process that is killed is told, however long it takes to be."""
    space = Workspace(like)
    if ranks.rank():
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(ranks.RankError, match="rank 0: another process of this job has ended"):
        deque(iter(space.meet, "never"), maxlen=0)
    Path(sys.argv[1], "told").touch()


def test_two_processes(tmp_path):
    done = torchrun(2, __file__, str(tmp_path), check=False)  # it fails: one is killed
    seen = sorted(path.name for path in tmp_path.iterdir())
    assert seen == ["0", "1", "told"], done.stdout + done.stderr


if __name__ == "__main__":
    check_everything()
