"""Networks that take turns on the device, by accelerate's hooks: the denoising network and the autoencoder.

A network whose weights a graph holds stays: on the way back they are used where they are. A graph made under a checkpoint holds
none, as it is computed again, which calls the network and so brings it back.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor, nn

Place = Callable[[nn.Module, torch.device], object]  # puts a network's weights on a device
_HOST = torch.device("cpu")


class Alternating:
    """Networks that wait on the host until one is called; the others then leave the device, but for those that graphs hold."""

    def __init__(self, device: torch.device, place: Place = nn.Module.to) -> None:
        self._device, self._place = device, place
        self._there: dict[nn.Module, bool] = {}  # each network, and whether it is on the device
        self._graphs: weakref.WeakKeyDictionary[_Mark, nn.Module] = weakref.WeakKeyDictionary()

    def add(self, network: nn.Module) -> None:
        """From now on the network takes part. An autoencoder is called by its parts."""
        self._place(network, _HOST)
        self._there[network] = False
        add_hook_to_module(network, _Turn(self))
        for part in ("encoder", "decoder"):
            if isinstance(inside := getattr(network, part, None), nn.Module):
                inside.register_forward_hook(lambda _part, _given, output, network=network: self.note(network, output))

    def held(self, network: nn.Module) -> bool:
        """Whether a graph that goes through the network is alive, and holds its weights."""
        return network in self._graphs.values()

    def bring(self, network: nn.Module) -> None:
        """Puts the network on the device, after the others have gone back to the host."""
        self.leave(but=network)
        if not self._there[network]:
            self._place(network, self._device)
            self._there[network] = True

    def leave(self, but: nn.Module | None = None) -> None:
        """Puts all networks but one, and those that graphs hold, back on the host."""
        leaving = [other for other, there in self._there.items() if there and other is not but and not self.held(other)]
        for network in leaving:
            self._place(network, _HOST)
            self._there[network] = False
        if leaving and self._device.type == "cuda":
            torch.cuda.empty_cache()

    def note(self, network: nn.Module, output: object) -> None:
        """Remembers the graph of what a network has returned, for as long as that is alive."""
        for node in {tensor.grad_fn for tensor in _tensors(output) if tensor.grad_fn is not None}:
            if _graphs_hold_tensors():
                mark = _Mark()
                node.metadata[mark] = mark  # type: ignore[index]  # a dictionary, whatever torch's stubs say
                self._graphs[mark] = network


class _Mark:
    """Lives as long as the node of a graph that it is put into."""


class _Turn(ModelHook):  # type: ignore[misc]  # accelerate's types are not read
    """A network's turn: what diffusers calls before an autoencoder decodes or encodes, and accelerate around any forward."""

    def __init__(self, networks: Alternating) -> None:
        self._networks = networks

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self._networks.bring(module)
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        self._networks.note(module, output)
        return output


def _graphs_hold_tensors() -> bool:
    """Whether what is computed now keeps tensors for its way back: not without gradients, nor under a checkpoint. It is tried."""
    x, kept = torch.ones(1, requires_grad=True), torch.ones(1)
    alive = weakref.ref(kept)
    product = x * kept
    del kept
    return product.requires_grad and alive() is not None


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for each in value:
            yield from _tensors(each)
