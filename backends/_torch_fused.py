"""What PyTorch computes by capscore's own kernels: custom ops with their gradients, opaque to its compiler.

`capscore::routing` is `capscore.fast.streaming`, or on a GPU Triton's where its kernels can, and
`capscore::fast_conv2d` is `capscore.fast.cook_toom`. Under autocast both compute in float32; on a GPU, votes then are
products of bfloat16, and of tf32 where `torch.backends.cuda.matmul` allows them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import capscore.backends.torch as ops  # which imports this module last
from capscore.fast import cook_toom
from capscore.fast.streaming import RULES, Streaming
from capscore.layers import BatchNorm
from capscore.routing import DynamicRouting, Routing
from capscore.values import read, write

STREAMING: Streaming = Streaming(ops)
PATCH = 512  # numbers in a patch: the first layer of most networks; with more, patches cost too much memory
BLOCK = 64  # channels from which on PyTorch's convolution takes maps in either order equally fast
# Numbers in a vector of AVX2. With fewer channels and no AVX-512, oneDNN's gradient of a strided convolution of one
# pixel writes beyond its memory (PyTorch 2.13, oneDNN 3.12; tests/test_torch.py): such a map is strided before it.
LANES = 8
FEW = 80  # patches: PyTorch's convolution rearranges its weights at every call, for so few the greater part of its time


def tracing() -> bool:
    """Whether `torch.jit.trace` runs the network; sizes are tensors then."""
    return torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call, no-any-return]


def plainly() -> bool:
    """Whether PyTorch needs its own operators: it writes the network down for other programs, or `torch.func` runs it.

    Then capscore's operators step aside for what they are made of. `torch.compile` keeps them. A function of
    `torch.func` knows no derivative of theirs: `jvp` would take it for 0, without a word.
    """
    in_export = getattr(torch.compiler, "is_exporting", bool)  # PyTorch 2.6 does not tell
    derived = torch._C._are_functorch_transforms_active()
    return tracing() or torch.onnx.is_in_onnx_export() or in_export() or derived


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, tiling: cook_toom.Tiling) -> Tensor:
    """Do the convolution of a tiling by its transforms."""
    with torch.autocast(x.device.type, enabled=False):
        b = None if bias is None else _wide(bias)
        y = _conv2d(_wide(x), _wide(weight), b, tiling.stride, tiling.padding, tiling.name)
    map: Tensor = y.to(x.dtype).permute(0, 3, 1, 2)
    return map


def direct_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Correlate by PyTorch's convolution, or if few patches make the map, as of one image, by their product."""
    sizes = zip(x.shape[2:], padding, weight.shape[2:], stride, strict=True)
    height, width = ((size + 2 * margin - kernel) // step + 1 for size, margin, kernel, step in sizes)
    learning = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    compiling = torch.compiler.is_compiling()
    if learning or compiling or x.shape[0] * height * width > FEW:
        if learning:
            if x.device.type == "cpu" and not compiling:
                # Weights in this order make maps in it, which take 0.7 to 0.85 of the time; a clone has it for one
                # channel too. A gradient in another order than its map would take a batch norm three times as long.
                weight = weight.clone(memory_format=torch.channels_last)
                if x.shape[1] < LANES and weight.shape[2:] == (1, 1) and padding == (0, 0):
                    x, stride = x[:, :, :: stride[0], :: stride[1]], (1, 1)
        elif x.is_contiguous() and 1 < x.shape[1] < BLOCK and x.dtype == torch.float32:
            # Maps of few channels take twice as long where their channels are apart; of one, they are not apart.
            x = x.contiguous(memory_format=torch.channels_last)
        return nn.functional.conv2d(x, weight, bias, stride, padding)
    return _patches_conv2d(x, weight, bias, stride, padding)


def patches_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Do the same by one matrix product of all patches, if these are small; the map is in the order `conv2d` wants."""
    if weight[0].numel() > PATCH or x.requires_grad:
        return direct_conv2d(x, weight, bias, stride, padding)
    return _patches_conv2d(x, weight, bias, stride, padding)


def _patches_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    (o, c, kh, kw), b = weight.shape, x.shape[0]
    x = nn.functional.pad(x, [padding[1], padding[1], padding[0], padding[0]])
    patches = x.unfold(2, kh, stride[0]).unfold(3, kw, stride[1]).permute(2, 0, 3, 1, 4, 5)  # [H', B, W', C, kh, kw]
    height, _, width = patches.shape[:3]
    rows, columns = patches.reshape(-1, c * kh * kw), weight.reshape(o, -1).t()
    y = rows @ columns if bias is None else torch.addmm(bias, rows, columns)
    return y.view(height, b, width, o).permute(1, 3, 0, 2)


def depthwise_whole(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Correlate every channel of x [B, C, H, W] with one kernel [C, 1, H, W]: a sum, where PyTorch's takes long."""
    kernels = weight.transpose(0, 1).to(x.dtype)
    if not x.is_contiguous():  # channels are together: then they are in the gradient, too
        kernels = kernels.contiguous(memory_format=torch.channels_last)
    y = (x * kernels).sum((2, 3), keepdim=True)
    return y if bias is None else y + bias.to(x.dtype)[:, None, None]


def batch_norm(
    layer: BatchNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None, running: Sequence[Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return a map normalised over its batch, scaled and shifted, and the mean and the variance [C] it had.

    With `running` mean and variance, these are used in place of the batch's own; None where they want a gradient, which
    PyTorch's operator has not.
    """
    if x.ndim == 4 and not tracing() and 1 in x.shape:
        # The order of such a map in memory has two names. PyTorch 2.13 mixes them up if the gradient lies in another
        # order, and the gradient that it returns is wrong (tests/test_torch.py); [B, C, H·W] has one.
        flat = batch_norm(layer, x.flatten(2), weight, bias, running)
        return flat and (flat[0].view(x.shape), *flat[1:])
    if running:
        mean, variance = running
        if mean.requires_grad or variance.requires_grad:
            return None
        return nn.functional.batch_norm(x, mean, variance, weight, bias, eps=layer.epsilon), mean, variance
    y, mean, scale = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, layer.epsilon)
    return y, mean.detach(), (scale.detach() ** -2 - layer.epsilon).clamp_min(0)


def route(routing: Routing, u: Tensor, weight: Tensor, bias: Tensor | None, *own: Tensor) -> Tensor | None:
    """Return v [B, J, D] of u [B, N, K], weight [N, J, D, K] and bias [J, D]; None where `plainly`."""
    if plainly():
        return None
    learning = torch.is_grad_enabled() and any(x.requires_grad for x in (u, weight, bias, *own) if x is not None)
    precision = "tf32" if _allows_tf32() else "float32"
    if torch.is_autocast_enabled(u.device.type) and torch.get_autocast_dtype(u.device.type) == torch.bfloat16:
        precision = "bf16"
    with torch.autocast(u.device.type, enabled=False):
        b = None if bias is None else _wide(bias)
        # Where nothing records or compiles, the operator's own machinery takes 4% of the time of one image.
        run = _routing if learning or torch.compiler.is_compiling() or type(u) is not Tensor else _routed
        v, _ = run(_wide(u), _wide(weight), b, [_wide(x) for x in own], _said(routing), learning, precision)
    capsules: Tensor = v.to(u.dtype)
    return capsules


def _said(routing: Routing) -> str:
    """Return what an operator is told of a routing: text, as PyTorch's take no values of ours."""
    if (text := _texts.get(routing)) is None:
        text = _texts[routing] = json.dumps(write(routing))
    return text


# As `torch.compiler.assume_constant_result` marks it, which first imports the compiler: a second at every start.
_said._dynamo_marked_constant = True  # type: ignore[attr-defined]
_texts: dict[Routing, str] = {}


@cache
def _meant(said: str) -> Any:
    return read(json.loads(said), "routing")


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


@torch.library.custom_op("capscore::fast_conv2d", mutates_args=())
def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, tiles: str) -> Tensor:
    """Return the map [B, H', W', O] of `capscore.fast.cook_toom`, or with few images that of a direct convolution."""
    if len(x) < cook_toom.FEWEST:
        direct = direct_conv2d(x.contiguous(), weight, bias, (stride,) * 2, (padding,) * 2)
        return direct.permute(0, 2, 3, 1).contiguous()
    y: Tensor = cook_toom.convolve(ops, x, weight, bias, _tiling(x, weight, stride, padding, tiles))
    return y.permute(0, 2, 3, 1)


@_conv2d.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, tiles: str) -> Tensor:
    height, width = ((size + 2 * padding - weight.shape[-1]) // stride + 1 for size in x.shape[2:])
    return x.new_empty(x.shape[0], height, width, weight.shape[0])


@torch.library.custom_op("capscore::fast_conv2d_backward", mutates_args=())
def _conv2d_backward(
    g: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, tiles: str
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x, as [H, B, W, C], and of weight from that of the map, g [B, H', W', O]."""
    if len(x) < cook_toom.FEWEST:
        mask = [True, True, False]
        args = None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, mask
        dx, dweight, _ = torch.ops.aten.convolution_backward(g.permute(0, 3, 1, 2), x, weight, *args)
        return dx.permute(2, 0, 3, 1).contiguous(), dweight.contiguous()
    dx, dweight = cook_toom.gradients(ops, g.permute(0, 3, 1, 2), x, weight, _tiling(x, weight, stride, padding, tiles))
    return dx.permute(2, 0, 3, 1), dweight


@_conv2d_backward.register_fake
def _(g: Tensor, x: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    b, c, height, width = x.shape
    return x.new_empty(height, b, width, c), weight.new_empty(weight.shape)


def _tiling(x: Tensor, weight: Tensor, stride: int, padding: int, tiles: str) -> cook_toom.Tiling:
    return cook_toom.tiling(tiles, x.shape[1], x.shape[2], x.shape[3], weight.shape[-1], stride, padding)


def _keep_for_conv2d(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *settings = inputs
    ctx.save_for_backward(x, weight)
    ctx.settings, ctx.biased = settings, bias is not None


def _conv2d_gradients(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    dx, dweight = _conv2d_backward(g, *ctx.saved_tensors, *ctx.settings)
    return dx.permute(1, 3, 0, 2), dweight, g.sum((0, 1, 2)) if ctx.biased else None, None, None, None


_conv2d.register_autograd(_conv2d_gradients, setup_context=_keep_for_conv2d)


def _routed(
    u: Tensor, weight: Tensor, bias: Tensor | None, own: list[Tensor], routing: str, learning: bool, precision: str
) -> tuple[Tensor, Tensor]:
    """Return v [B, J, D] and, if `learning`, what the gradient needs: by Triton on a GPU, else by `Streaming`."""
    how = _meant(routing)
    if (kernels := _kernels(u, weight, how)) is not None:
        v, states = kernels.forward(u, weight, bias, how.iterations, how.leaky, precision)
        return v.clone(), states if learning else u.new_empty(0)
    if not learning:
        return STREAMING(how, u, weight, bias, *own).contiguous(), u.new_empty(0)
    v, kept = STREAMING.forward(how, u, weight, bias, *own)
    return v.contiguous(), torch.stack(kept)


_routing = torch.library.custom_op("capscore::routing", _routed, mutates_args=())


@_routing.register_fake
def _(
    u: Tensor, weight: Tensor, bias: Tensor | None, own: list[Tensor], routing: str, learning: bool, precision: str
) -> tuple[Tensor, Tensor]:
    b, (_, j, d, _), how = u.shape[0], weight.shape, _meant(routing)
    if _kernels(u, weight, how) is None:
        kept: tuple[int, ...] = (len(RULES[type(how)](how, j, d).steps), j, b, d)
    else:
        kept = (2, how.iterations, b, j, d)
    return u.new_empty(b, j, d), u.new_empty(kept if learning else 0)


@torch.library.custom_op("capscore::routing_backward", mutates_args=())
def _routing_backward(
    g: Tensor,
    kept: Tensor,
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    own: list[Tensor],
    routing: str,
    precision: str,
) -> list[Tensor]:
    """Return the gradients of u, weight, bias (without one, nothing) and each of what the routing learns."""
    how = _meant(routing)
    if (kernels := _kernels(u, weight, how)) is not None:
        found = kernels.backward(g, kept, u, weight, bias, how.iterations, how.leaky, precision)
    else:
        found = STREAMING.backward(how, g, [*kept], u, weight, bias, *own)
    return [u.new_empty(0) if x is None else x.contiguous() for x in found]


@_routing_backward.register_fake
def _(
    g: Tensor, kept: Tensor, u: Tensor, weight: Tensor, bias: Tensor | None, own: list[Tensor], *_: Any
) -> list[Tensor]:
    return [u.new_empty(0 if x is None else x.shape) for x in (u, weight, bias, *own)]


def _allows_tf32() -> bool:
    """Whether PyTorch may round the factors of matrix products to tf32.

    Asked once, before the forward pass: the backward one computes the same votes. To the compiler the answer is a
    constant, and it compiles again when the flag has changed. By the newer of the flag's two names, once there is one:
    the older refuses to tell when the newer has been set.
    """
    matmul = torch.backends.cuda.matmul
    return bool(matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32)


# What `torch.compiler.assume_constant_result` does, which imports the compiler: a second, for all who do not compile.
_allows_tf32._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _kernels(u: Tensor, weight: Tensor, routing: Routing) -> Any:
    """Return the Triton kernels if they can route these; Triton comes with PyTorch's builds for GPUs."""
    if u.device.type != "cuda" or type(routing) is not DynamicRouting:
        return None
    try:
        from capscore.backends import _torch_kernels
    except ModuleNotFoundError:
        return None
    return _torch_kernels if _torch_kernels.supports(u, weight) else None


def _keep_for_routing(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    u, weight, bias, own, routing, _, precision = inputs
    ctx.save_for_backward(output[1], u, weight, bias, *own)
    ctx.settings = routing, precision


def _routing_gradients(ctx: Any, g: Tensor, _: Tensor) -> tuple[Any, ...]:
    kept, u, weight, bias, *own = ctx.saved_tensors
    du, dweight, dbias, *down = _routing_backward(g, kept, u, weight, bias, own, *ctx.settings)
    return du, dweight, dbias if bias is not None else None, down, None, None, None


_routing.register_autograd(_routing_gradients, setup_context=_keep_for_routing)
