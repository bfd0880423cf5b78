"""
Which instruction sets this CPU runs.
"""
from __future__ import annotations
__all__: list[str] = ['supported']
def supported() -> list[str]:
    """
    Instruction sets that this CPU runs, best first; the last one is 'baseline'.
    """
