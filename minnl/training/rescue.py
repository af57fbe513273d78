"""What is done when memory runs out: undo the failed step, and report which batch would fit."""

from __future__ import annotations

from dataclasses import replace

from minnl import backend, random
from minnl.training import out_of_memory


class Rescue:
    """Notes what a step changes before it updates the parameters, and undoes a step that failed before that."""

    def __init__(self, model, optimizer, loader):
        self.model, self.optimizer, self.loader = model, optimizer, loader
        self.device = model.parameters()[0].device

    def note(self, step):
        """Note the state after `step` steps."""
        self.before = {
            "step": step,
            "updates": self.optimizer.steps,
            "lr": self.optimizer.lr,
            "loader": self.loader.state_dict(),
            "random": random.get_state(),
            "buffers": {name: backend.copied(a) for name, a in self.model.named_buffers()},  # running statistics
        }

    def undo(self, step):
        """Free what the failed step held, and put back what it changed; `step` is the number of steps done.

        Returns whether the state is that after a whole step: in the middle of an update it is not.
        """
        self.optimizer.zero_grad()
        out_of_memory.release(self.device)
        before = self.before
        if step - before["step"] != self.optimizer.steps - before["updates"]:
            return False
        if step == before["step"]:
            self.optimizer.lr = before["lr"]
            self.loader.load_state_dict(before["loader"])
            random.set_state(before["random"])
            for name, array in self.model.named_buffers():
                backend.assign(array, before["buffers"][name])
        return True

    def report(self, then, most_memory):
        """The message: the memory held at the failure, a Usage, and the batch that would fit."""
        shape = (self.loader.batch_size, *self.loader.dataset.shape)
        ahead = 1 if self.device.kind == "gpu" else self.loader.prefetch * bool(self.loader.workers)
        now, then = out_of_memory.usage(self.device), replace(then, most=max(then.most or 0, most_memory))
        return out_of_memory.report(self.model, self.optimizer, shape, ahead, then, now)
