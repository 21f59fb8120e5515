"""Programs for converters to other formats: without a choice by platform or size, in operations that all of them know.

The context is one of JAX's own, part of the keys of its caches: what is traced within is not found again without.
"""

from contextlib import AbstractContextManager

import jax

_portable = jax.make_user_context(False)


def is_portable() -> bool:
    """Whether what is being traced is for a converter."""
    return _portable.value


def portable_programs() -> AbstractContextManager[None]:
    """A context within which what is traced is for a converter."""
    return _portable(True)
