"""LANES float32 numbers as one value of numba code, which stays in a vector register: `+ - * /` and comparisons work on all of them at once.

Those of a picture are a block of BLOCK_X x BLOCK_Y pixels, row by row.

numba leaves it to LLVM to find loops that fit a vector register, and LLVM keeps sums of such loops in memory. Here they are written as what they are.
"""

import operator
from typing import Any, ClassVar

import llvmlite.binding
import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

WIDE = bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))
LANES = 16 if WIDE else 8
BLOCK_X = 4
BLOCK_Y = LANES // BLOCK_X

_float = ir.FloatType()
_int = ir.VectorType(ir.IntType(32), LANES)
_bits = ir.VectorType(ir.IntType(1), LANES)
_vector = ir.VectorType(_float, LANES)
FLAT, PLACE = types.Array(types.float32, 1, "C"), types.intp
"""numba's types of a flat array, and of where in it something begins."""


_builtin: Any = intrinsic  # numba gives these functions their first argument, which type checkers miss
_infer: Any = infer_global


class Vector(types.Type):
    """numba's type of LANES numbers."""

    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


class Mask(types.Type):
    """numba's type of LANES truths."""

    def __init__(self) -> None:
        super().__init__(name=f"boolx{LANES}")


vector, mask = Vector(), Mask()


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _vector)


@register_model(Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _bits)


def _define(operation: Any, of: types.Type, result: types.Type, emit: Any) -> None:
    """Teaches numba a binary operation on two vectors, or on two masks."""

    class Template(ConcreteTemplate):
        cases: ClassVar = [signature(result, of, of)]

    _infer(operation)(Template)

    @lower_builtin(operation, of, of)
    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return emit(builder, *arguments)


_MULTIPLY_ADD_IS_ONE = ("contract",)
"""A product and a sum may become one instruction, rounded once."""
for _name, _operations in {
    "fadd": (operator.add, operator.iadd),
    "fsub": (operator.sub, operator.isub),
    "fmul": (operator.mul, operator.imul),
    "fdiv": (operator.truediv, operator.itruediv),
}.items():
    for _operation in _operations:
        _define(
            _operation,
            vector,
            vector,
            lambda builder, a, b, name=_name: getattr(builder, name)(a, b, flags=_MULTIPLY_ADD_IS_ONE),
        )
for _operation, _sign in {operator.gt: ">", operator.ge: ">=", operator.lt: "<", operator.le: "<="}.items():
    _define(_operation, vector, mask, lambda builder, a, b, sign=_sign: builder.fcmp_ordered(sign, a, b))
_define(operator.and_, mask, mask, lambda builder, a, b: builder.and_(a, b))


def _constant(number: float) -> ir.Constant:
    return ir.Constant(_vector, [number] * LANES)


def _pointer(context: Any, builder: Any, array: Any, place: Any) -> Any:
    data = context.make_array(FLAT)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [place], source_etype=_float), _vector.as_pointer())


@_builtin
def load(typingctx, array, place):
    """The numbers of a flat array from `place` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_pointer(context, builder, *arguments), align=4)

    return vector(FLAT, PLACE), generate


@_builtin
def store(typingctx, array, place, value):
    """Writes the numbers to a flat array from `place` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _pointer(context, builder, *arguments[:2]), align=4)
        return context.get_dummy_value()

    return types.void(FLAT, PLACE, vector), generate


@_builtin
def everywhere(typingctx, number):
    """One number in all lanes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        one = builder.insert_element(ir.Constant(_vector, ir.Undefined), arguments[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(one, one, ir.Constant(_int, [0] * LANES))

    return vector(types.float32), generate


@_builtin
def columns(typingctx):
    """0, 1 ... BLOCK_X - 1, and again: where in its block's row each lane is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(_vector, [float(k % BLOCK_X) for k in range(LANES)])

    return vector(), generate


@_builtin
def rows(typingctx):
    """0 for the first BLOCK_X lanes, 1 for the next: in which of its block's rows each lane is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(_vector, [float(k // BLOCK_X) for k in range(LANES)])

    return vector(), generate


@_builtin
def choose(typingctx, truths, where_true, where_false):
    """Lane by lane one of the two."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(*arguments)

    return vector(mask, vector, vector), generate


@_builtin
def absolute(typingctx, value):
    """Without the sign."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_vector, [_vector])
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fabs.v{LANES}f32")
        return builder.call(function, arguments)

    return vector(vector), generate


@_builtin
def anywhere(typingctx, truths):
    """Whether any lane is true."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(LANES), 0))

    return types.boolean(mask), generate


@_builtin
def total(typingctx, value):
    """The sum over lanes, always in the same order."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_float, [_float, _vector])
        reduce = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
        return builder.call(reduce, [ir.Constant(_float, 0.0), arguments[0]], fastmath=("reassoc",))

    return types.float32(vector), generate


_EXP2 = (1.535336188319500e-4, 1.339887440266574e-3, 9.618437357674640e-3, 5.550332471162809e-2, 2.402264791363012e-1)
_EXP2 += (6.931472028550421e-1, 1.0)
"""2^x for |x| <= 0.5, highest power first: relative error 2e-7."""


@_builtin
def exp2_of_negative(typingctx, value):
    """2^x for -126 <= x <= 0, to a relative 3e-7; of any other number something that means nothing."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (power,) = arguments
        # So large a number has no room for a fraction: adding it rounds, and leaves the whole part in the lowest bits.
        large = _constant(1.5 * 2**23)
        rounded = builder.fadd(power, large)
        rest = builder.fsub(power, builder.fsub(rounded, large))
        found = _constant(_EXP2[0])
        for coefficient in _EXP2[1:]:
            product = builder.fmul(found, rest, flags=_MULTIPLY_ADD_IS_ONE)
            found = builder.fadd(product, _constant(coefficient), flags=_MULTIPLY_ADD_IS_ONE)
        doubled = builder.shl(builder.bitcast(rounded, _int), ir.Constant(_int, [23] * LANES))
        return builder.bitcast(builder.add(builder.bitcast(found, _int), doubled), _vector)

    return vector(vector), generate
