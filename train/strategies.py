"""Strategies that a config names: `zero1` to `zero3` (DeepSpeed) and `fsdp2`, beside Lightning's `auto` and `ddp`.

All of them run on CPU processes too, so that what the tests train is what the GPUs run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.plugins.precision import DeepSpeedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from gnomon.vlm.model import VLM

NAMES = ("auto", "ddp", "zero1", "zero2", "zero3", "fsdp2")

# A rank that waits this long for the others will wait for ever; their last sample ids are in the run directory.
TIMEOUT = timedelta(minutes=10)


def register() -> None:
    """Make the names known to Lightning."""
    if "zero2" in StrategyRegistry:
        return
    for stage in (1, 2, 3):
        StrategyRegistry.register(f"zero{stage}", Zero, description=f"DeepSpeed ZeRO stage {stage}", stage=stage)
    StrategyRegistry.register("fsdp2", FSDP2, description="PyTorch's fully sharded data parallel, second edition")


class ZeroPrecision(DeepSpeedPrecision):
    """Lightning has divided the loss by the accumulated batches already; DeepSpeed shall not do it once more."""

    def backward(self, tensor: Tensor, model: LightningModule, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        super().backward(tensor, model, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def convert_input(self, data: Any) -> Any:
        # depth and cameras stay as they are, see precision.py
        return data

    def convert_module(self, module: nn.Module) -> nn.Module:
        # the engine casts parameters itself and keeps buffers (rotary frequencies) as they are
        return module


class Zero(DeepSpeedStrategy):
    """DeepSpeed ZeRO with a complete configuration: Lightning's defaults, ours, then `config`, merged key by key."""

    def __init__(self, stage: int = 2, *, config: dict[str, Any] | None = None) -> None:
        if "DS_ACCELERATOR" not in os.environ and not torch.cuda.is_available():
            # DeepSpeed reads its device from here when it is first imported
            os.environ["DS_ACCELERATOR"] = "cpu"
        # overlapped communication is what corrupts ZeRO-2's gradients with some graph shapes (DeepSpeed #4298, #7188)
        super().__init__(
            stage=stage,
            overlap_comm=False,
            allgather_bucket_size=50_000_000,
            reduce_bucket_size=50_000_000,
            logging_batch_size_per_gpu=1,
            logging_level=logging.ERROR,
            timeout=TIMEOUT,
        )
        self.config = merge(self.config, {"zero_force_ds_cpu_optimizer": False})
        self.config = merge(self.config, config or {})
        _refuse(self.config)

    def _load_config(self, config: Any) -> None:
        # the base class would let an environment variable replace the whole configuration
        return None

    @property
    def precision_plugin(self) -> Precision:
        return self._precision_plugin if self._precision_plugin is not None else Precision()

    @precision_plugin.setter
    def precision_plugin(self, plugin: Precision | None) -> None:
        if isinstance(plugin, DeepSpeedPrecision):
            plugin = ZeroPrecision(plugin.precision)
        self._precision_plugin = plugin

    @property
    def root_device(self) -> torch.device:
        device = super().root_device
        return torch.device("cpu", 0) if device.type == "cpu" else device

    def setup_environment(self) -> None:
        # past DeepSpeedStrategy's own, which insists on CUDA
        DDPStrategy.setup_environment(self)

    def setup(self, trainer: Trainer) -> None:
        super().setup(trainer)
        if self.zero_stage_3:
            self._hold()

    def _hold(self) -> None:
        """Gather for the whole step what ranks may call differently often, and parameters that no leaf module owns.

        ZeRO-3 gathers a module's own parameters around its forward and backward, as seen from the tensors that go in
        and come out: all ranks must call the same modules in the same order, and an encoder whose result is not a plain
        tensor would lose its class tokens and position tables before the backward pass.
        """
        from deepspeed.runtime.zero import register_external_parameter

        varied = {part for child in varying(self.lightning_module.vlm) for part in child.modules()}
        for module in self.lightning_module.modules():
            if module in varied or any(True for _ in module.children()):
                for parameter in module.parameters(recurse=False):
                    register_external_parameter(self.lightning_module, parameter)
        # held as they are they need no hooks, which would count calls and compare the counts of all ranks
        hooks = {id(hooks) for module in varied for hooks in (module._forward_pre_hooks, module._forward_hooks)}
        offload = self.deepspeed_engine.optimizer.parameter_offload
        for handle in (*offload.forward_hooks, *offload.backward_hooks):
            if id(handle.hooks_dict_ref()) in hooks:
                handle.remove()

    def setup_distributed(self) -> None:
        if self.root_device.type == "cuda":
            super().setup_distributed()
            return
        import deepspeed.ops
        from deepspeed.accelerator import get_accelerator

        if get_accelerator().device_name() != "cpu":
            raise ValueError("DeepSpeed has chosen the GPU of this machine; set DS_ACCELERATOR=cpu to train on its CPU")
        # its shared-memory collectives want a compiler and half a minute; gloo's do the same
        deepspeed.ops.__compatible_ops__ = {}
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()


class FSDP2(ModelParallelStrategy):
    """Parameters, gradients and optimizer state sharded over all processes; StageModule.configure_model wraps."""

    def __init__(self) -> None:
        super().__init__(timeout=TIMEOUT)

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, dictionaries merged instead of replaced."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _refuse(config: dict[str, Any]) -> None:
    """Settings that are known to train wrongly."""
    zero = config["zero_optimization"]
    if zero["stage"] not in (1, 2, 3):
        raise ValueError(f"ZeRO stage {zero['stage']} does not exist here; use 1, 2 or 3, or strategy ddp")
    if zero["stage"] < 3 and zero.get("overlap_comm"):
        raise ValueError(
            "overlap_comm: true with ZeRO-2 gives zero or NaN gradients (DeepSpeed #4298, #7188); set it to false"
        )
    if "gradient_accumulation_steps" in config:
        raise ValueError("gradient_accumulation_steps belongs to the trainer; set trainer.accumulate_grad_batches")
    for key in ("optimizer", "scheduler"):
        if key in config:
            raise ValueError(f"{key!r} in the DeepSpeed config would replace the recipe's; remove it")


def varying(vlm: VLM) -> list[nn.Module]:
    """The parts that ranks may call differently often in a step: once for each size of its pictures, for scenes of
    which as much is known, or, where nothing is learned, only if there is a picture. All but the language model.
    """
    return [part for part in vlm.children() if part is not vlm.lm]


def shard(vlm: VLM, mesh: DeviceMesh, blocks: Iterable[nn.Module], *, precision: str) -> None:
    """FSDP2: each block is gathered when it runs; what remains stays gathered from forward to backward.

    Remain do the blocks of varying parts, too.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy()
    if precision == "bf16-mixed":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    varied = {part for child in varying(vlm) for part in child.modules()}
    for block in blocks:
        if block not in varied:
            fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(vlm, mesh=mesh, mp_policy=policy, reshard_after_forward=False)


def full_state(strategy: Any, module: nn.Module) -> dict[str, Tensor]:
    """The whole model's tensors on the CPU, gathered from all ranks; empty on other ranks than 0. Collective."""
    if isinstance(strategy, FSDP2):
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        whole = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        # a gathered tensor may be a view of padded storage
        return {name: tensor.clone() for name, tensor in whole.items()}
    keep = strategy.is_global_zero
    state = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items() if keep}
    if isinstance(strategy, Zero):
        for names, parameter in _with_aliases(module):
            tensor = _whole(parameter).cpu()
            state.update({name: tensor for name in names if keep})
    return state


def _whole(parameter: nn.Parameter) -> Tensor:
    """A parameter that ZeRO may have split, in float32 as the optimizer holds it where it is trained. Collective."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    master = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
    if master is not None:
        return master.detach().clone()
    with GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
        return parameter.detach().clone()


def _with_aliases(module: nn.Module) -> list[tuple[list[str], nn.Parameter]]:
    """Every parameter once, with all the names it has."""
    found: dict[int, tuple[list[str], nn.Parameter]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), ([], parameter))[0].append(name)
    return list(found.values())
