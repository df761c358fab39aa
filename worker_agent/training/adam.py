"""Adam over gaussians whose number changes, with state that can be saved and restored exactly."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from worker_agent.training.gaussians import Parameters

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-15


class Adam:
    """Kingma & Ba 2015. Holds the parameters themselves, because refinement replaces them."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.steps = 0
        self._first = {name: torch.zeros_like(p.data) for name, p in parameters.items()}
        self._second = {name: torch.zeros_like(p.data) for name, p in parameters.items()}

    @torch.no_grad()
    def step(self, rates: Mapping[str, float]) -> None:
        """One update from the gradients that are there, which are cleared."""
        self.steps += 1
        correction1 = 1.0 - _BETA1**self.steps
        correction2 = 1.0 - _BETA2**self.steps
        for name, parameter in self.parameters.items():
            gradient = parameter.grad
            if gradient is None:
                continue
            first, second = self._first[name], self._second[name]
            first.lerp_(gradient, 1.0 - _BETA1)
            second.mul_(_BETA2).addcmul_(gradient, gradient, value=1.0 - _BETA2)
            denominator = second.sqrt().div_(correction2**0.5).add_(_EPSILON)
            parameter.addcdiv_(first, denominator, value=-rates[name] / correction1)
            parameter.grad = None

    @torch.no_grad()
    def replace(self, keep: Tensor, added: Mapping[str, Tensor]) -> None:
        """Keep the rows `keep` (indices) with their moments, append `added` with none."""
        for name, parameter in list(self.parameters.items()):
            new = added[name]
            self.parameters[name] = torch.nn.Parameter(torch.cat([parameter.data[keep], new]))
            for moments in (self._first, self._second):
                moments[name] = torch.cat([moments[name][keep], torch.zeros_like(new)])

    @torch.no_grad()
    def put(self, name: str, values: Tensor) -> None:
        """Other values for a parameter, whose moments begin anew."""
        self.parameters[name].copy_(values)
        self._first[name].zero_()
        self._second[name].zero_()

    def state(self) -> dict[str, object]:
        """Everything but the parameters, for a checkpoint."""
        return {"steps": self.steps, "first": self._first, "second": self._second}

    def restore(self, state: dict[str, object]) -> None:
        """Take over what `state` returned; tensors move to the parameters' device."""
        first, second, steps = state["first"], state["second"], state["steps"]
        if not (isinstance(first, dict) and isinstance(second, dict) and isinstance(steps, int)):
            raise ValueError("optimizer state has an unexpected form")
        self.steps = steps
        for name, parameter in self.parameters.items():
            self._first[name] = first[name].to(parameter.device)
            self._second[name] = second[name].to(parameter.device)
