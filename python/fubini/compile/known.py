"""What a quantum function may call and still be compiled: a closed list.

Everything here gives the same result for the same arguments, changes nothing but its arguments, and reads nothing but
them. A name that is missing makes functions slower, never wrong.
"""

import contextlib
import functools
import logging
import operator
import sys
import types
from typing import Any

import numpy as np
import pennylane as qml
import torch

from fubini.circuit.torch_names import words

# Modules whose code is not followed: who calls into them must call something from the lists below.
LIBRARIES = frozenset({"pennylane", "torch", "numpy", "scipy", "autoray", "autograd", "fubini"})
_OURS_BUT_USERS = ("fubini.demo",)  # written as a user writes

# Python functions by module (and what is in it); "*" is all of them.
_ALL: tuple[str, ...] = ("*",)


# Methods of a logger, with their levels; None: an argument. What is logged at higher levels is meant to be seen.
LOG_LEVELS: dict[str, int | None] = {"debug": logging.DEBUG, "isEnabledFor": None}

_PYTHON: dict[str, tuple[str, ...]] = dict.fromkeys(
    words(
        """
        fubini.compile fubini.nn.recorder pennylane.ops pennylane.operation pennylane.wires
        pennylane.queuing pennylane.math pennylane.pauli pennylane.fermi pennylane.control_flow
        pennylane.capture.capture_meta pennylane.measurements pennylane.templates
        pennylane.registers pennylane.tape.qscript pennylane.tape.tape pennylane.qaoa
        pennylane.pytrees pennylane.numpy.tensor pennylane.numpy.wrapper numpy autoray torch._tensor
        torch.functional torch._jit_internal torch._VF torch.overrides torch.special torch.linalg
        torch.autograd.grad_mode torch.utils._contextlib torch.nn.modules math cmath operator
        itertools collections _collections_abc abc typing enum types numbers fractions contextlib
        """
    ),
    _ALL,
) | {
    "pennylane.compiler.compiler": ("active_compiler",),
    "autograd.tracer": ("primitive.<locals>.f_wrapped",),
    "pennylane.devices.device_api": ("Device.wires", "Device.name", "Device.shots"),
    "pennylane.devices._legacy_device": ("Device.wires", "Device.num_wires", "Device.short_name"),
    "torch.nn.functional": (words(
        """
        adaptive_avg_pool1d avg_pool1d avg_pool2d binary_cross_entropy bilinear celu conv1d conv2d
        cosine_similarity cross_entropy elu embedding gelu glu hardshrink hardsigmoid hardswish hardtanh
        interpolate layer_norm leaky_relu linear log_softmax logsigmoid max_pool1d max_pool2d _max_pool1d
        _max_pool2d mish mse_loss normalize one_hot pad pairwise_distance prelu relu relu6 rms_norm selu
        sigmoid silu smooth_l1_loss softmax softmin softplus softshrink softsign tanh tanhshrink threshold
        unfold upsample boolean_dispatch.<locals>.fn
        """
    )),
    "torch": ("is_tensor", "typename", "is_complex", "sym_int", "sym_float", "sym_max", "sym_min"),
    "functools": (
        "wraps", "update_wrapper", "reduce", "partial.__new__", "cached_property.__get__", "partialmethod.__get__",
        "partialmethod.__get__.<locals>._method", "partialmethod._make_unbound_method.<locals>._method",
    ),
    "dataclasses": ("fields", "replace", "is_dataclass"),
    "copy": ("copy", "deepcopy"),  # of what copyable() says
    "logging": tuple(f"Logger.{name}" for name in LOG_LEVELS),  # where nothing is logged
    "argparse": ("Namespace.__contains__", "Namespace.__eq__"),
    "importlib._bootstrap": ("_handle_fromlist",),
    "frozen_importlib": ("_handle_fromlist",),
}  # fmt: skip
_OF_DEVICES = frozenset(words("wires num_wires name shots short_name"))
_OF_MODES = frozenset(words("__torch_function__ __torch_dispatch__"))
# Draw numbers, or keep what they are given, in modules that are otherwise on the list.
_NOT = frozenset(
    words(
        """
        ClassicalShadowMP ShadowExpvalMP classical_shadow shadow_expval random seed rand set_seed ParametrizedEvolution
        select_random SumOfSlatersPrep compute_sos_encoding select_sos_rows RReLU FractionalMaxPool2d FractionalMaxPool3d
        RNNBase RNN LSTM GRU MultiheadAttention backward register_hook register_post_accumulate_grad_hook share_memory_
        """
    )
)
# Draw numbers unless they are given a seed.
SEEDED = frozenset({"RandomLayers", "QDrift"})
_NOT_MODULES = ("numpy.random", "pennylane.numpy.random", "numpy.lib._npyio_impl", "numpy.lib.npyio", "pennylane.compiler.qjit_api",
                "torch.nn.modules.dropout", "pennylane.math.is_independent", "numpy.ma", "numpy.ctypeslib", "numpy.f2py", "numpy.testing", "numpy.distutils")  # fmt: skip

_NUMPY_KINDS = frozenset(
    words("vectorize poly1d nd_grid AxisConcatenator IndexExpression finfo iinfo errstate")
)

# C functions, by the module that they say they belong to.
_C: dict[str, frozenset[str]] = {
    "builtins": frozenset(words(
        """
        abs all any ascii bin callable chr divmod format getattr hasattr hash isinstance issubclass iter len
        max min next oct ord hex pow repr round sorted sum setattr delattr __build_class__
        """
    )),
    "torch": frozenset(words(
        """
        abs absolute acos acosh add addbmm addcdiv addcmul addmm addmv addr adjoint all allclose amax amin
        aminmax angle any arange arccos arccosh arcsin arcsinh arctan arctan2 arctanh argmax argmin argsort
        argwhere as_tensor asarray asin asinh atan atan2 atanh atleast_1d atleast_2d atleast_3d baddbmm
        bincount block_diag bmm broadcast_tensors broadcast_to bucketize cartesian_prod cat cdist ceil celu
        chain_matmul chunk clamp clamp_max clamp_min clip clone column_stack combinations complex concat
        concatenate conj conj_physical constant_pad_nd conv1d conv2d copysign corrcoef cos cosh
        cosine_similarity count_nonzero cov cross cummax cummin cumprod cumsum deg2rad det detach diag
        diag_embed diagflat diagonal diff digamma dist div divide dot dsplit dstack einsum embedding eq
        equal erf erfc erfinv exp exp2 expm1 eye fix flatten flip fliplr flipud float_power floor
        floor_divide fmax fmin fmod frac frexp from_numpy full full_like gather gcd ge greater greater_equal
        gt hardshrink heaviside histc hsplit hstack hypot i0 igamma imag index_add index_copy index_fill
        index_put index_select inner inverse is_complex is_conj is_floating_point is_nonzero is_same_size
        is_signed is_tensor isclose isfinite isin isinf isnan isneginf isposinf isreal kron kthvalue
        layer_norm lcm ldexp le lerp less less_equal lgamma linspace log log10 log1p log2 log_softmax
        logaddexp logaddexp2 logcumsumexp logdet logical_and logical_not logical_or logical_xor logit
        logspace logsumexp lt masked_fill masked_scatter masked_select matmul matrix_exp matrix_power max
        maximum mean median meshgrid min minimum mm mode moveaxis movedim mul multiply mv nan_to_num nanmean
        nanmedian nansum narrow ne neg negative nextafter nonzero norm not_equal numel ones ones_like outer
        pairwise_distance permute pinverse polar polygamma positive pow prelu prod promote_types qr quantile
        rad2deg range ravel real reciprocal relu remainder renorm repeat_interleave reshape resolve_conj
        resolve_neg result_type roll rot90 round row_stack rsqrt rsub scalar_tensor scatter scatter_add
        searchsorted select selu sgn sigmoid sign signbit sin sinc sinh slogdet softmax sort split sqrt
        square squeeze stack std std_mean sub subtract sum svd swapaxes swapdims t take take_along_dim tan
        tanh tensor tensor_split tensordot threshold tile topk trace transpose trapezoid trapz tril
        tril_indices triu triu_indices true_divide trunc unbind unflatten unsqueeze vander var var_mean vdot
        view_as_complex view_as_real vsplit vstack where xlogy zeros zeros_like
        """
    )),
    "numpy": frozenset(words(
        """
        abs all allclose amax amin angle any append arange argmax argmin argsort argwhere around array
        array_equal array_split asanyarray asarray ascontiguousarray atleast_1d atleast_2d atleast_3d
        average bincount binary_repr block broadcast_arrays broadcast_shapes broadcast_to can_cast choose
        clip column_stack compress concat concatenate convolve copy correlate count_nonzero cross cumprod
        cumsum delete diag diag_indices diagflat diagonal diff digitize dot dsplit dstack ediff1d einsum
        empty_like expand_dims eye fix flatnonzero flip fliplr flipud full full_like geomspace gradient
        heaviside histogram hsplit hstack identity imag in1d indices inner insert interp intersect1d isclose
        iscomplex iscomplexobj isin isneginf isposinf isreal isrealobj isscalar issubdtype ix_ kron lexsort
        linspace logspace max mean median meshgrid min moveaxis nan_to_num nanmax nanmean nanmin nansum ndim
        nonzero ones ones_like outer packbits pad permute_dims poly polyfit polyval prod promote_types ptp
        quantile ravel ravel_multi_index real repeat reshape resize result_type roll rollaxis roots rot90
        round searchsorted select shape sinc size sort split squeeze stack std sum swapaxes take
        take_along_axis tensordot tile trace transpose trapezoid tri tril tril_indices triu triu_indices
        unique unpackbits unravel_index unwrap vander var vdot vsplit vstack where zeros zeros_like
        """
    )),
}  # fmt: skip
_C_ALL = frozenset(
    {"math", "cmath", "_operator", "itertools", "_functools", "_collections", "torch._C._nn", "torch._C._special",
     "torch._C._linalg", "torch._C._fft", "numpy.linalg"}
)  # fmt: skip
_C_NOT = frozenset(
    {"rrelu", "rrelu_with_noise", "rrelu_with_noise_", "rrelu_", "attrgetter", "methodcaller"}
)
_TENSOR_METHODS = _C["torch"] | frozenset(words(
        """
        H T as_subclass bfloat16 bool byte contiguous cpu data_ptr dim double element_size expand expand_as
        float half int is_contiguous item long ndimension nelement new_empty new_full new_ones new_tensor
        new_zeros numpy repeat requires_grad_ reshape_as short size storage_offset stride to tolist type
        type_as unfold view view_as abs_ add_ clamp_ copy_ cos_ div_ exp_ fill_ floor_ log_ masked_fill_
        mul_ neg_ pow_ round_ sigmoid_ sin_ sqrt_ sub_ tanh_ zero_ unsqueeze_ squeeze_ t_ transpose_ detach_
        get_device values mean_ is_inference is_set_to data grad ndim dtype device shape
        """
    ))  # fmt: skip
_ARRAY_METHODS = frozenset(words(
        """
        all any argmax argmin argsort astype clip compress conj conjugate copy cumprod cumsum diagonal dot
        fill flatten item max mean min nonzero prod ptp put ravel repeat reshape resize round searchsorted
        sort squeeze std sum swapaxes take tobytes tolist trace transpose var view __array__ is_integer
        as_integer_ratio
        """
    ))  # fmt: skip
_PLAIN_KINDS: tuple[type, ...] = (
    int, float, complex, bool, str, bytes, bytearray, list, dict, tuple, set, frozenset, range, slice, type(None),
    type({}.keys()), type({}.values()), type({}.items()), types.MappingProxyType, types.GeneratorType, BaseException,
)  # fmt: skip
_NUMBERS = frozenset({int, float, str, bool, complex})
_LIBRARY_KINDS = frozenset({"collections", "_collections"})

_ARRAY_FUNCTIONS = (
    _C["torch"] | _C["numpy"] | _TENSOR_METHODS | _ARRAY_METHODS
    | frozenset(words("sqrtm expm eigh eigvalsh eigvals svd qr inv solve norm det cast to_numpy shape size toarray scatter_element_add"))
)  # fmt: skip

# Types, which Python calls without telling.
_TYPES: frozenset[type] = frozenset(
    {int, float, complex, bool, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, slice, enumerate, zip,
     map, filter, reversed, type, object, property, staticmethod, classmethod, super, type(None), type(...),
     types.SimpleNamespace, functools.partial, operator.itemgetter, contextlib.suppress, contextlib.nullcontext,
     contextlib.ExitStack, torch.Tensor, torch.Size, torch.device, torch.dtype, torch.finfo,
     torch.iinfo, torch.no_grad, torch.enable_grad, torch.inference_mode, np.ndarray, np.dtype,
     np.ufunc, np.finfo, np.iinfo, np.ndindex, np.ndenumerate, np.errstate, torch.nn.Module}
)  # fmt: skip
_TYPE_HOMES = ("collections", "_collections_abc", "itertools", "abc", "typing", "enum", "fractions", "decimal", "numbers", "types",
               "dataclasses", "functools", "_collections")  # fmt: skip
_TYPES_NOT = frozenset({"singledispatchmethod"})


def home(scope: dict[str, Any]) -> str | None:
    """The library module whose globals these are; None if they are a user's."""
    name = scope.get("__name__")
    if not isinstance(name, str) or name.startswith(_OURS_BUT_USERS):
        return None
    root = name.split(".", maxsplit=1)[0]
    if root not in LIBRARIES and root not in sys.stdlib_module_names:
        return None
    module = sys.modules.get(name)
    if module is not None and module.__dict__ is scope:
        return name
    # Some put another object in their place, or bear another's name; they were imported all the same.
    return name if getattr(scope.get("__spec__"), "origin", None) is not None else None


def is_library_name(name: str) -> bool:
    """Say whether a module of this name is one whose code is not followed."""
    root = name.split(".", maxsplit=1)[0]
    return root != "__main__" and (root in LIBRARIES or root in sys.stdlib_module_names)


def is_library(value: Any) -> bool:
    """Say whether a value is a module whose code is not followed."""
    return isinstance(value, types.ModuleType) and is_library_name(value.__name__)


def is_told_of(value: Any, called: bool) -> bool:
    """Say whether a function is called at once, and the watch is told of that call."""
    if called and isinstance(value, types.FunctionType):
        return home(value.__globals__) is not None and not value.__closure__
    return called and isinstance(value, types.BuiltinFunctionType)


def constants_are_fixed(name: str) -> bool:
    """Say whether a library keeps no state in its modules, as the interpreter does in ``sys`` and ``os``."""
    root = name.split(".", maxsplit=1)[0]
    return root in LIBRARIES or root in _PYTHON


def _listed(module: str, name: str) -> bool:
    parts = name.split(".")
    if module.startswith(_NOT_MODULES) or not _NOT.isdisjoint(parts):
        return False
    while module:
        names = _PYTHON.get(module)
        if names is not None:
            return names is _ALL or name in names
        module = module.rpartition(".")[0]
    return False


def known_code(module: str, code: types.CodeType) -> bool:
    """Say whether a user's code may call this Python function of a library."""
    if module in {"numpy", "autoray"} or module.startswith(("numpy.", "autoray.")):
        if module.startswith(("numpy.linalg", "numpy.fft", "autoray")):
            return not module.startswith(_NOT_MODULES)
        # NumPy's functions: the Python ones by the same names as those in C.
        name = code.co_name
        return not module.startswith(_NOT_MODULES) and (
            name.removeprefix("_") in _C["numpy"] or name.endswith("_dispatcher") or name in _ARRAY_METHODS
            or name.startswith("__") or code.co_qualname.split(".")[0] in _NUMPY_KINDS
        )  # fmt: skip
    if module.startswith("pennylane.devices") and code.co_name in _OF_DEVICES:
        return True
    if module.startswith("fubini.") and code.co_name in _OF_MODES:
        return True  # who records what is done with tensors
    return _listed(module, code.co_qualname)


def known_c(function: Any) -> bool:
    """Say whether a user's code may call this function or method that is written in C."""
    name = function.__name__
    if name in _C_NOT:
        return False
    owner = getattr(function, "__objclass__", None)
    if owner is None:
        this = getattr(function, "__self__", None)
        if this is not None and not isinstance(this, types.ModuleType):
            owner = this if isinstance(this, type) else type(this)
    if owner is not None:
        return _known_method(owner, name)
    module = getattr(function, "__module__", None) or ""
    if not module and isinstance(this, types.ModuleType):
        module = this.__name__
    return module in _C_ALL or name in _C.get(module, ())


def _known_method(owner: type, name: str) -> bool:
    if issubclass(owner, torch.Tensor) or owner is torch._C.TensorBase:
        return name in _TENSOR_METHODS
    if issubclass(owner, np.ndarray | np.generic):
        return name in _ARRAY_METHODS
    if owner is np.ufunc:
        return True
    if owner is torch.Size or owner.__module__ in _LIBRARY_KINDS or owner is torch.device:
        return True
    if owner.__name__ == "_VariableFunctionsClass":
        return name in _C["torch"]
    base = owner
    while base.__flags__ & 1 << 9 and base.__base__ is not None:  # the C type below users' classes
        base = base.__base__
    return base in _PLAIN_KINDS or (base is object and name.startswith("__")) or (base is type and name == "mro") or (
        issubclass(base, BaseException) or (base.__module__ == "builtins" and base.__name__.endswith("iterator"))
    )  # fmt: skip


def known_type(kind: type) -> bool:
    """Say whether a user's code may make objects of this type of a library."""
    if kind in _TYPES:
        return True
    if kind.__module__ == "builtins":
        return issubclass(kind, BaseException)
    if issubclass(kind, np.generic):
        return not issubclass(kind, np.void)
    if kind.__module__ in _TYPE_HOMES:
        return kind.__name__ not in _TYPES_NOT
    return kind.__module__.startswith("pennylane.") and _listed(kind.__module__, kind.__qualname__)


def known_callable(value: Any) -> bool:
    """Say whether a function of NumPy's kind may be called where nothing tells of the call."""
    if isinstance(value, np.ufunc):  # users make some of their own functions
        homes = (np, sys.modules.get("scipy.special"))
        return any(value is getattr(module, value.__name__, None) for module in homes)
    if type(value).__name__ == "_ArrayFunctionDispatcher":
        return value.__name__ in _C["numpy"] or value.__module__ in ("numpy.linalg", "numpy.fft")
    return False


def copyable(value: Any, deep: bool) -> bool:
    """Say whether a copy reads nothing but what is watched: Python reads the attributes of objects unseen."""
    kind = type(value)
    if kind in {torch.Tensor, np.ndarray} or issubclass(kind, OPERATORS):
        return True
    if kind in {list, tuple, set, dict}:
        items = (*value, *value.values()) if isinstance(value, dict) else value
        return not deep or all(type(item) in _NUMBERS for item in items)
    return kind in _NUMBERS or value is None


def known_by_name(name: Any) -> bool:
    """Say whether a function may be called that autoray looks up in a library of arrays."""
    return isinstance(name, str) and name.removeprefix("linalg.") in _ARRAY_FUNCTIONS


def shown(value: Any) -> str:
    """A function or type by the name that a user knows."""
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    module = getattr(value, "__module__", None)
    if not isinstance(name, str):
        return f"a {type(value).__name__}"
    return name if module in {None, "builtins", "__main__"} else f"{module}.{name}"


OPERATORS = (qml.operation.Operator, qml.measurements.MeasurementProcess)


_DISPATCH = vars(type(lambda: None))["__code__"].__get__(
    functools.singledispatch(lambda value: value)
)


def known_dispatch(code: types.CodeType, dispatch: Any) -> bool:
    """Return whether a function of ``functools.singledispatch`` is PennyLane's, with all of its forms.

    Args:
        code: Of the function that is called.
        dispatch: What finds the form, as the function refers to it.
    """
    if code is not _DISPATCH or not isinstance(dispatch, types.FunctionType):
        return False
    at = dispatch.__code__.co_freevars.index("registry")
    forms = (dispatch.__closure__ or ())[at].cell_contents.values()
    # Of a library: what it makes of unusual arguments (a pulse) is no gate that the engine knows.
    return all(
        isinstance(form, types.FunctionType)
        and str(home(form.__globals__)).startswith("pennylane.")
        for form in forms
    )
