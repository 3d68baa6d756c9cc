"""Features of a model's layers, taken by hooks from a forward pass that is made anyway.

Hooks are on the bare model's modules, so they work whatever wraps the model: DDP calls it, and `torch.compile` looks
into it and hands the features out of the graph. They only look on while something is recording, so that the forward
passes of gradient checkpointing's recomputation, of evaluation or of generation leave no trace.
"""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from torch import Tensor, nn

from replay_trainer.errors import InvalidTraining

INPUT: Final = ":input"
"""At the end of a module's path: its first input, and not its output."""


class FeatureRecorder:
    """Keeps what some layers of a model give.

    Args:
        model: bare; build the recorder before the model is compiled, since `torch.compile` does not look for hooks
            that come later.
        layers: paths of modules, as in `model.named_modules()`, each with `INPUT` at its end or without.

    Raises:
        InvalidTraining: when the model has no such module, or none is named.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str]) -> None:
        if not layers:
            raise InvalidTraining("no layers to compare features of; name at least one")
        self.layers = tuple(layers)
        self._features: dict[str, Tensor] | None = None
        modules = [module_at(model, layer.removesuffix(INPUT)) for layer in self.layers]
        self._handles = [self._listen(module, layer) for module, layer in zip(modules, self.layers, strict=True)]

    @contextmanager
    def recording(self) -> Iterator[dict[str, Tensor]]:
        """The outputs of the layers within it, by layer: [rows, tokens, channels] of any float type, with their
        gradients. The places of a map [rows, channels, height, width] are tokens.

        Raises:
            InvalidTraining: in the forward pass, when a layer runs twice or gives neither of the two.
        """
        features: dict[str, Tensor] = {}
        self._features = features
        try:
            yield features
        finally:
            self._features = None

    def check(self, features: dict[str, Tensor]) -> None:
        """Raises InvalidTraining when a layer is missing from what was recorded."""
        silent = [layer for layer in self.layers if layer not in features]
        if silent:
            raise InvalidTraining(
                f"{', '.join(silent)} gave no features: the forward pass did not run there, or the model was compiled "
                "before the hooks were there; build FeatureDrift before the first forward pass of a compiled model"
            )

    def close(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def _listen(self, module: nn.Module, layer: str) -> Any:
        def keep_input(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            if self._features is not None:
                self._keep(layer, arguments[0] if arguments else next(iter(keywords.values())))

        def keep_output(_module: nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:
            if self._features is not None:
                self._keep(layer, output[0] if isinstance(output, tuple) else output)

        if layer.endswith(INPUT):
            return module.register_forward_pre_hook(keep_input, with_kwargs=True)
        return module.register_forward_hook(keep_output)

    def _keep(self, layer: str, feature: Any) -> None:
        assert self._features is not None
        if layer in self._features:
            raise InvalidTraining(
                f"{layer} ran twice while its features were recorded; record one forward pass, without its backward "
                "pass, of a model that runs the layer once"
            )
        if not isinstance(feature, Tensor) or feature.ndim not in (3, 4):
            found = tuple(feature.shape) if isinstance(feature, Tensor) else type(feature).__name__
            raise InvalidTraining(
                f"{layer} must give features [rows, tokens, channels] or [rows, channels, height, width], not {found}; "
                "choose a block"
            )
        self._features[layer] = feature.flatten(2).transpose(1, 2) if feature.ndim == 4 else feature


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The module at a path; raises InvalidTraining, with the paths that look like it, when there is none."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if path not in modules:
        near = [name for name in modules if name.endswith(f".{path}")]
        near += difflib.get_close_matches(path, modules, n=3)
        hint = f"near it are {', '.join(dict.fromkeys(near))}" if near else "model.named_modules() lists what there is"
        raise InvalidTraining(f"{type(model).__name__} has no layer {path!r}; {hint}")
    return modules[path]


def quarters(model: nn.Module, *, with_input: bool) -> list[str]:
    """The blocks at each quarter of a transformer's depth: 3, 6, 9 and 12 of twelve, counted from one and rounded up.

    Args:
        model: a stack of blocks somewhere in it.
        with_input: whether what comes into the first block stands before them, as a layer of its own.

    Raises:
        InvalidTraining: when there is no stack of blocks, or more than one.
    """
    path, depth = _blocks(model)
    numbers = dict.fromkeys(-(-depth * quarter // 4) - 1 for quarter in (1, 2, 3, 4))
    return [f"{path}0{INPUT}"] * with_input + [f"{path}{number}" for number in numbers]


def _blocks(model: nn.Module) -> tuple[str, int]:
    """The one stack of like modules that is in no other: what its modules' paths begin with, and its length."""
    stacks: dict[str, int] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        inside = any(prefix.startswith(outer) for outer in stacks)
        if not inside and isinstance(module, nn.ModuleList | nn.Sequential) and _are_blocks(module):
            stacks[prefix] = len(module)
    if len(stacks) != 1:
        found = f"more than one: {', '.join(each.rstrip('.') for each in stacks)}" if stacks else "none"
        raise InvalidTraining(
            f"{type(model).__name__} should have one stack of transformer blocks, and has {found}; name the layers"
        )
    return next(iter(stacks.items()))


def _are_blocks(stack: nn.ModuleList | nn.Sequential) -> bool:
    """Two or more modules of one class, which have modules of their own."""
    return len(stack) > 1 and len({type(each) for each in stack}) == 1 and any(True for _ in stack[0].children())
