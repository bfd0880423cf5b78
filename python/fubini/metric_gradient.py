"""stub"""

from typing import Any


def with_gradient(result: Any, *rest: Any) -> Any:
    return result
