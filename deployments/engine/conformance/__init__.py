"""Rehearse all operations with throwaway stacks, to test whether a Dokploy server behaves as the recipe expects.

The real engine does the work. Each scenario compares the result with what Dokploy reports. A difference is recorded,
and the next scenario starts. At the end, everything that was created is removed.
"""

from .rehearsal import run
from .session import Session, StackConfig

__all__ = ["Session", "StackConfig", "run"]
