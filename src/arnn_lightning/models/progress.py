"""The progress of a stage's training: hidden states, loss and speed, and how they are saved and resumed."""

import logging
from typing import Any

import torch

from arnn_lightning.batch import State
from arnn_lightning.errors import UserError
from arnn_lightning.nn.collectives import all_gather, rank_and_world_size
from arnn_lightning.nn.dropout import random_state, set_random_state

log = logging.getLogger(__name__)


class TrainingProgress:
    """Progress of a stage's training.

    Attributes:
        state: the hidden states of this device's slots after the last chunk; None where an epoch starts.
    """

    def __init__(self) -> None:
        self.state: State | None = None
        self._epoch_loss = (0.0, 0)  # sum over events, events
        self._n_events_timed, self._seconds_timed, self._is_warm = 0, 0.0, False
        self._saved: dict[str, Any] | None = None  # what the run resumes from, until its first step

    def start(self, device: torch.device) -> None:
        """Called before the first step of a run, of a resumed one too."""
        self._n_events_timed, self._seconds_timed, self._is_warm = 0, 0.0, False
        if self._saved is not None:
            rank, n_devices = rank_and_world_size()
            self._epoch_loss, self.state = self._saved["epoch_loss"], self._saved["state"]
            if self.state is not None:
                self.state = tuple(part.chunk(n_devices, -2)[rank].to(device) for part in self.state)

    def start_epoch(self) -> None:
        """Called before the first step of an epoch, whose schedule starts every slot with a new session."""
        self.state = None
        self._epoch_loss = (0.0, 0)

    def add_chunk(self, loss: float, n_events: int, seconds: float) -> None:
        """Adds a chunk's ``loss``, summed over its events on all devices."""
        if self._is_warm:
            self._n_events_timed += n_events
            self._seconds_timed += seconds
        self._is_warm = True  # the first chunk, of a resumed run too, includes compilation and the like
        self._epoch_loss = (self._epoch_loss[0] + loss, self._epoch_loss[1] + n_events)

    @property
    def epoch_loss(self) -> float:
        """Mean loss per event of the epoch so far."""
        total, n_events = self._epoch_loss
        return total / max(n_events, 1)

    @property
    def events_per_second(self) -> float | None:
        """Events trained per second inside training steps, the first chunk left out."""
        return self._n_events_timed / self._seconds_timed if self._seconds_timed else None

    def restore_random_state(self, device: torch.device) -> None:
        """Sets the random state of a resumed run at its first step: starting a run may use random numbers too."""
        if self._saved is not None:
            saved = self._saved["rng"][rank_and_world_size()[0]].cpu().clone()  # a view crashes set_rng_state
            if saved.shape == random_state(device).shape:
                set_random_state(saved, device)
            else:
                log.info("resumed on another kind of device: dropout uses other random numbers from here on")
            self._saved = None

    def state_dict(self, device: torch.device) -> dict[str, Any]:
        """The state that a checkpoint stores: slots and random states of all devices, device by device."""
        state, rng, n_devices = self.state, random_state(device)[None], rank_and_world_size()[1]
        if n_devices > 1:
            rng = all_gather(rng[0].to(device)).cpu()
            if state is not None:
                state = tuple(torch.cat(all_gather(part).unbind(), -2) for part in state)
        return {"epoch_loss": self._epoch_loss, "devices": n_devices, "state": state, "rng": rng}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Resumes from what ``state_dict`` returned, once the run starts.

        Raises:
            UserError: another number of devices.
        """
        before, now = saved["devices"], rank_and_world_size()[1]
        if before != now:
            raise UserError(
                f"this run was started on {before} device(s) and cannot be resumed on {now}; use the same "
                "trainer.devices and trainer.num_nodes"
            )
        self._saved = saved
