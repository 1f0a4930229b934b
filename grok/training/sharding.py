"""Weights that are spread over processes (FSDP2), for models that outgrow one GPU."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, cast

from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from grok.models import StepModel

__all__ = ["FullySharded", "is_sharded", "load_whole", "shard", "whole"]


class FullySharded(ModelParallelStrategy):
    """Spreads weights, gradients and the optimizer's state over all processes; checkpoints are those of one process.

    Args:
        timeout: of a collective operation; null means torch's own.
    """

    def __init__(self, timeout: timedelta | None = None) -> None:
        usual = {} if timeout is None else {"timeout": timeout}
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **cast(Any, usual))

    def setup_environment(self) -> None:
        """All processes share each batch."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    # Lightning numbers the states of an optimizer in the order of the model's weights, which is not that of its groups:
    # what one process has saved could not be read by several, and the other way round.

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """As for one process: weights are spread when the module is configured, which is before."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """As for one process."""
        return True

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """What an optimizer of whole weights would give."""
        plain = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return cast(dict[str, Any], apply_to_collection(plain.state_dict(), DTensor, lambda one: whole(one).cpu()))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the file; Lightning calls what follows."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Give every process its part of the weights."""
        assert self.lightning_module is not None
        load_whole(self.lightning_module, checkpoint["state_dict"], strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give every process its part of the optimizers' states."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            spread = {index: _like(state, weights[index]) for index, state in saved["state"].items()}
            optimizer.load_state_dict({**saved, "state": spread})


def _like(state: Mapping[str, Any], weight: Tensor) -> dict[str, Any]:
    """The state of a weight, spread as the weight is."""
    if not isinstance(weight, DTensor):
        return dict(state)
    return {
        name: distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)
        if isinstance(value, Tensor) and value.shape == weight.shape
        else value
        for name, value in state.items()
    }


def shard(net: StepModel, mesh: Any) -> None:
    """Spread the weights of `net`, block by block, so that only one block at a time is whole on a device."""
    for block in getattr(net, "blocks", ()):
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)
    register_fsdp_forward_method(net, "forward_with_state")


def is_sharded(net: nn.Module) -> bool:
    """Whether weights are spread over processes."""
    return any(isinstance(weight, DTensor) for weight in net.parameters())


def load_whole(module: nn.Module, weights: Mapping[str, Tensor], strict: bool = True) -> None:
    """Put whole weights into a module whose own may be spread; every process calls this."""
    if is_sharded(module):
        set_model_state_dict(module, dict(weights), options=StateDictOptions(full_state_dict=True, strict=strict))
    else:
        module.load_state_dict(weights, strict=strict)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be spread; every process calls this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
