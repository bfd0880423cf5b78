"""Names of functions of torch's interface: those that compute with tensors, and those that ask for their kind and shape."""

from typing import Any


def words(text: str) -> tuple[str, ...]:
    """The words of a list in one string."""
    return tuple(text.split())


# Functions of torch's interface, by name, whose work is ATen operations alone. Operators come without underscores:
# __mul__, mul and mul_ are the same word; so are torch.sin, Tensor.sin and torch.nn.functional's names.
COMPUTED = frozenset(
    words(
        "add sub subtract rsub mul multiply div divide truediv true_divide neg negative pos positive pow abs absolute square "
        "radd rmul rtruediv rdiv rpow iadd isub imul itruediv idiv ipow reciprocal sqrt rsqrt exp exp2 expm1 log log1p log2 log10 "
        "sin cos tan asin acos atan arcsin arccos arctan atan2 arctan2 sinh cosh tanh asinh acosh atanh arcsinh arccosh arctanh "
        "sigmoid relu silu softmax leaky_relu elu selu gelu mish softsign tanhshrink clamp clamp_min clamp_max clip where masked_fill "
        "tril triu var std logsumexp log_softmax lerp special_expit hardtanh relu6 cumprod diff erf erfc maximum minimum deg2rad rad2deg addcmul sum mean prod cumsum norm linalg_norm "
        "linalg_vector_norm vector_norm normalize softplus hypot mm mv bmm dot vdot inner outer ger kron matmul rmatmul addmm addmv "
        "baddbmm chain_matmul linalg_multi_dot multi_dot einsum tensordot linear bilinear trace clone contiguous float double to "
        "type_as cpu cat concat concatenate stack hstack vstack dstack column_stack row_stack repeat repeat_interleave tile flip "
        "fliplr flipud roll rot90 index_select gather take_along_dim getitem setitem pad view view_as reshape reshape_as expand "
        "expand_as broadcast_to broadcast_tensors atleast_1d atleast_2d atleast_3d permute transpose swapaxes swapdims movedim "
        "moveaxis t squeeze unsqueeze flatten unflatten ravel select narrow split split_with_sizes tensor_split chunk unbind "
        "diagonal diag diag_embed unfold copy fill zeros_like ones_like empty_like full_like new_zeros new_ones new_empty new_full "
        "new_tensor T mT H mH as_tensor asarray meshgrid cartesian_prod block_diag iter real imag view_as_real"
    )
)
# What tells about a tensor and not about its numbers; the form that is compiled holds for tensors of the same kind only.
ASKED = frozenset(
    words(
        "dim ndim ndimension dtype device layout is_cuda is_cpu is_sparse is_quantized is_complex is_floating_point is_nested "
        "is_meta is_mkldnn is_mps is_xla is_xpu element_size itemsize is_contiguous is_conj is_neg resolve_conj resolve_neg"
    )
)
# What tells the number of inputs, where a tensor holds a batch of them.
SIZES = frozenset(words("shape size len numel nelement stride broadcast_shapes iter unbind"))

_CONVERSIONS = ("__float__", "__int__", "__bool__", "__complex__", "__index__")


def name_of(function: Any) -> str:
    """The name of a function of torch's interface as it stands in the lists."""
    name = getattr(function, "__name__", "")
    if name == "__get__":  # the getter of a property
        name = getattr(getattr(function, "__self__", None), "__name__", "")
    elif name == "__set__":
        return "set_" + str(getattr(getattr(function, "__self__", None), "__name__", ""))
    # float(tensor) is no cast of the tensor, as tensor.float() is.
    return str(name) if name in _CONVERSIONS else str(name).strip("_")
