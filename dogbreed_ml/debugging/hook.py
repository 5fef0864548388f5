"""smdebug's own hook on a real run: losses, gradients, weights and activations of what is trained.

Imported only where `profile.debugger` is on: smdebug takes 2.4 s to import.
"""

import atexit
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from smdebug import SaveConfig, SaveConfigMode, modes
from smdebug.core.utils import error_handling_agent
from smdebug.pytorch import Hook
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dogbreed_ml.debugging.budget import SaveBudget
from dogbreed_ml.errors import ProfileError
from dogbreed_ml.ruleparameters import TENSOR_RULES, rule_collections

_NAME = "_module_name"
"""The attribute in which smdebug looks for a module's name."""
LOSS_NAME = "CrossEntropyLoss"
"""smdebug saves CrossEntropyLoss_output_0 in its collection `losses`."""
EPOCH_LOSS_NAME = "epoch_train_loss"
TRAINING_STEP_NAME = "training_step"
COLLECTIONS = {
    "labels": "^labels$",
    "predictions": "^predictions$",
    "epoch": f"^{EPOCH_LOSS_NAME}$",
    "training_step": f"^{TRAINING_STEP_NAME}$",
    "biases": None,
    "weights": None,
    "gradients": None,
}

logger = logging.getLogger(__name__)


class TrainingHook(Hook):  # type: ignore[misc]
    """Saves the steps of training; of evaluation it keeps an epoch's losses (`save_epoch`).

    smdebug's modes are TRAIN and EVAL. Tensors are named as smdebug names them, with one thing more: a ReLU's name
    ends with `relu`, which SageMaker's rules look for.
    """

    _collections_to_save_for_step: set[Any] | None
    """smdebug's own: of the step at hand, None until it is asked."""

    def __init__(self, out_dir: Path, *, budget: SaveBudget) -> None:
        """`out_dir` must not exist yet; the training steps that `budget` allows are saved."""
        every = SaveConfigMode(save_interval=budget.interval)
        super().__init__(
            out_dir=str(out_dir),
            save_config=SaveConfig({modes.TRAIN: every, modes.EVAL: SaveConfigMode(save_interval=1)}),
        )
        if error_handling_agent.disable_smdebug:
            # smdebug logs what goes wrong in there, switches itself off for the rest of the process, and returns.
            atexit.unregister(self._cleanup)
            raise ProfileError(f"smdebug must be able to save tensors in {out_dir}; its log says why it cannot.")
        collections: dict[str, str | None] = dict(COLLECTIONS)
        for rule in TENSOR_RULES:
            collections |= rule_collections(rule)
        for name, regex in collections.items():
            collection = self.get_collection(name)
            if regex is not None:
                collection.include(regex)
            self.include_collections.append(name)
        self._budget = budget
        self._handles: list[RemovableHandle] = []
        self._inplace: list[nn.Module] = []
        self._is_training = False
        self.exported_collections: bool = False

    def attach(self, model: nn.Module, loss_function: nn.Module) -> None:
        """Hooks onto the loss and onto the part of the model that is trained; `detach` takes everything off again."""
        self.register_module(model)
        setattr(loss_function, _NAME, LOSS_NAME)
        self._handles.append(loss_function.register_forward_hook(self.forward_hook))

    def register_module(self, module: nn.Module) -> None:
        """smdebug's own hooks the frozen layers too, and never lets go."""
        names = {each: name for name, each in module.named_modules()}
        trained = {each for each in names if any(p.requires_grad for p in each.parameters(recurse=False))}
        relus = [each for each in _last_modules(module, trained) if isinstance(each, nn.ReLU)]
        for each in [*trained, *relus]:
            name = names[each]
            setattr(each, _NAME, name if each in trained or name.endswith("relu") else f"{name}.relu")
            self._handles.append(each.register_forward_hook(self.forward_hook))
        for relu in relus:
            if relu.inplace:
                # In place, what the hook sees as the input is already the output.
                relu.inplace = False
                self._inplace.append(relu)
        setattr(module, _NAME, module._get_name())
        self._handles.append(module.register_forward_pre_hook(self.forward_pre_hook))
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                self._handles.append(parameter.register_hook(self.backward_hook(f"{module._get_name()}_{name}")))

    def detach(self) -> None:
        """Takes the hooks off and closes the files; nothing of smdebug is left to run when the process ends."""
        for handle in self._handles:
            handle.remove()
        for relu in self._inplace:
            relu.inplace = True  # type: ignore[assignment]
        self._handles, self._inplace = [], []
        self.close()
        # It would write into a folder that may be gone by then.
        atexit.unregister(self._cleanup)
        atexit.unregister(self.profiler_config_parser.stop_post_hook_close_python_profiling)

    def flush(self) -> bool:
        """Finishes the files of the step at hand, so that they can be read; False where nothing was saved yet."""
        if self.last_saved_step is None:
            return False
        self._close_step()
        if not self.exported_collections:
            self.export_collections()
            self.exported_collections = True
        return True

    def save_epoch(self, train_loss: float, valid_loss: float | None) -> None:
        """Saves an epoch's mean losses as a step of its own, in mode EVAL, with the last training step before it."""
        self._close_step()
        self.set_mode(modes.EVAL)
        if not self.prepared_collections:
            self._prepare_collections()
        self._increment_step()
        self._initialize_writers()
        self._save_for_tensor(EPOCH_LOSS_NAME, torch.tensor(train_loss))
        self._save_for_tensor(TRAINING_STEP_NAME, torch.tensor(self.mode_steps[modes.TRAIN]))
        if valid_loss is not None:
            self.record_tensor_value(LOSS_NAME, torch.tensor(valid_loss))
        self.last_saved_step = self.step
        self._close_writers()

    def forward_pre_hook(self, module: nn.Module, inputs: Any) -> None:
        self._is_training = module.training
        if self._is_training:
            self._close_step()
            self.set_mode(modes.TRAIN)
            super().forward_pre_hook(module, inputs)

    def forward_hook(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        if not self._is_training:
            return
        super().forward_hook(module, inputs, outputs)
        if isinstance(module, nn.CrossEntropyLoss) and self._get_collections_to_save_for_step():
            logits, labels = inputs
            self._save_for_tensor("predictions", logits)
            self._save_for_tensor("labels", labels)

    def backward_hook(self, tname: str) -> Callable[[Tensor], None]:
        return super().backward_hook(tname)  # type: ignore[no-any-return]

    def _close_step(self) -> None:
        """Finishes the file of the training step at hand, if there is one, and counts it."""
        if self.writer is None:
            return
        path, step = Path(self.writer.event_file_path), self.mode_steps[modes.TRAIN]
        self._close_writers()
        if self._budget.spend(path.stat().st_size, step=step):
            logger.info("tensors are saved every %d training steps after step %d.", self._budget.interval, step)

    def _get_collections_to_save_for_step(self) -> set[Any]:
        is_new, was_spent = self._collections_to_save_for_step is None, self._budget.is_spent
        if is_new and self.mode == modes.TRAIN and not self._budget.allows(self.mode_steps[modes.TRAIN]):
            self._collections_to_save_for_step = set()
            if self._budget.is_spent and not was_spent:
                logger.info("no tensors are saved after step %d: profile.max_gib is used up.", self._budget.last_step)
        return super()._get_collections_to_save_for_step()  # type: ignore[no-any-return]

    def _log_params(self, module: nn.Module) -> None:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                self._save_for_tensor(f"{module._get_name()}_{name}", parameter.data)

    @staticmethod
    def _make_numpy_array(tensor_value: Any) -> Any:
        # numpy knows no bfloat16, which autocast makes.
        if isinstance(tensor_value, Tensor) and tensor_value.dtype == torch.bfloat16:
            tensor_value = tensor_value.float()
        return Hook._make_numpy_array(tensor_value)


def _last_modules(module: nn.Module, trained: set[nn.Module]) -> list[nn.Module]:
    """The modules from the first trained one on, in order of definition."""
    modules = list(module.modules())
    first = next((index for index, each in enumerate(modules) if each in trained), len(modules))
    return modules[first:]
