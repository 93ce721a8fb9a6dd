"""How inner loops are compiled: without Python's lock, for this processor, once per version of these files.

Compiled functions take contiguous arrays and trust their caller: nobody notices an index out of
bounds. Numbers are unsigned, because for signed ones every access asks whether it counts from the end.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import extending, types

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
U = np.uint64
I32 = np.int32

_Function = TypeVar("_Function", bound=Callable[..., Any])


def array(kind: Any, dimensions: int, readonly: bool = False) -> Any:
    """The type of a contiguous array."""
    return types.Array(kind, dimensions, "C", readonly=readonly)


INT, F32 = types.int64, types.float32
VECTORS = array(F32, 2, readonly=True)
ROTATION = (array(F32, 1), array(F32, 2), array(F32, 2))
FOUND = (array(types.int64, 2), array(F32, 2))
# What a vector file may hold: the bits of float16, and float32.
STORED = (types.uint16, F32)


def _keep_by_content() -> None:
    """Let what is compiled be kept in a folder that is named by the content of these files.

    Numba makes a function anew only when its own file has changed, and not when one that it calls has.
    """
    folder = Path(__file__).parent
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))).hexdigest()[:16]
    # Its own setting comes first, and a folder that nobody may write to is no place.
    config: Any = numba.config
    given = config.CACHE_DIR or ("" if not os.access(folder, os.W_OK) else str(folder / "__pycache__"))
    if given:
        config.CACHE_DIR = str(Path(given) / digest)


_keep_by_content()


def compiled(function: _Function) -> _Function:
    """Compiled with whatever calls it."""
    return cast("_Function", numba.njit(nogil=True, error_model="numpy")(function))


def inlined(function: _Function) -> _Function:
    """As `compiled`, put into its callers: a call costs as much as a short distance."""
    return cast("_Function", numba.njit(nogil=True, error_model="numpy", inline="always")(function))


def compiled_loosely(function: _Function) -> _Function:
    """As `compiled`; sums of floats may be taken in any order, which lets them be taken 16 at a time."""
    return cast("_Function", numba.njit(nogil=True, error_model="numpy", fastmath=True)(function))


def compiled_for(*signatures: Any) -> Callable[[_Function], _Function]:
    """Compiled for this processor here and now, which takes seconds, and kept on the disk.

    With arguments of other types a call fails: it never compiles while a search waits.
    """

    def compiled(function: _Function) -> _Function:
        made = numba.njit([*signatures], nogil=True, error_model="numpy", cache=True)(function)
        return cast("_Function", made)

    return compiled


def _declare_prefetch(_context: Any, array: Any, index: Any) -> Any:

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        made = context.make_array(signature.args[0])(context, builder, arguments[0])
        byte = ir.IntType(8).as_pointer()
        word = ir.IntType(32)
        called = builder.module.globals.get("llvm.prefetch.p0")
        if called is None:
            kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
            called = ir.Function(builder.module, kind, "llvm.prefetch.p0")
        pointer = builder.bitcast(builder.gep(made.data, [arguments[1]]), byte)
        # To read, into every cache, and it holds data.
        builder.call(called, [pointer, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(array, index), generate


def _declare_as_float(_context: Any, value: Any) -> Any:

    def generate(_context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if signature.args[0] == types.uint16:
            return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())
        return arguments[0]

    return types.float32(value), generate


# ssize_t pread(int descriptor, void *buffer, size_t count, off_t offset) of POSIX.
pread: Any = types.ExternalFunction("pread", types.int64(types.int32, types.voidptr, types.uint64, types.int64))
# Ask for the line of the cache that holds array[index].
prefetch: Any = extending.intrinsic(_declare_prefetch)
# A component as float32: the 16 bits of a float16 are widened.
as_float: Any = extending.intrinsic(_declare_as_float)
