"""The base class of encoders. B batch slots, H width of a query."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from arnn_lightning.batch import Contexts, State, StepInput
from arnn_lightning.errors import UserError

CHECKED_SLOTS = 3  # of a batch, in the check of an encoder


class SessionEncoder(nn.Module):
    """Encodes one event per batch slot into a query vector; may keep a recurrent state.

    A subclass sets ``hidden_size`` and implements ``encode``, and ``initial_state`` where it has a state. The same
    function is trained, evaluated and served: it depends on the step and the state alone.

    Attributes:
        hidden_size: H.
        uses_contexts: whether ``encode`` reads the users' contexts.
        input_sizes: widths of the blocks that ``StepInput.input_term`` consists of; empty: ``encode`` reads none.
        n_hidden_states: how many tensors of the state, the first ones, are hidden states of an RNN, which may start
            elsewhere than at 0.
        last_n_events: how many of a session's last events, the current one included, ``encode`` reads the items of.
    """

    hidden_size: int
    uses_contexts: bool = False
    input_sizes: tuple[int, ...] = ()
    n_hidden_states: int = 0
    last_n_events: int = 1

    def initial_state(self, batch_size: int) -> State:
        """The state before a session's first event.

        Args:
            batch_size: B.

        Returns:
            tensors (..., B, width) of zeros; an empty tuple for an encoder without a memory.
        """
        return ()

    def encode(self, step: StepInput, state: State) -> tuple[Tensor, State]:
        """Encodes one event per batch slot.

        Args:
            step: items, users' contexts and which slots are valid.
            state: as ``initial_state`` or the last call returned it, zero in slots whose session starts (E1).

        Returns:
            the queries (B, H), and the next state.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement encode()")

    def user_terms(self, contexts: Contexts) -> Tensor | None:
        """The part of ``encode`` that depends on the contexts alone, so that it can be computed once per user.

        Args:
            contexts: of N users.

        Returns:
            (N, ...) the ``user_terms`` of a ``StepInput``; None: ``encode`` computes all from the contexts itself.
        """
        return None

    def profile_encoder(self, item_events_I: Tensor) -> Callable[[Contexts], Tensor] | None:
        """A function that encodes users by their contexts alone, before the first click of a session.

        Args:
            item_events_I: (I,) training events of every item.

        Returns:
            a function of the contexts of N users that returns their queries (N, H), in evaluation mode; None: the
            encoder needs an item.
        """
        return None


def check_encoder(encoder: nn.Module) -> None:
    """Raises UserError for an encoder that is no ``SessionEncoder``, lacks its width, or starts with an unusual state.

    Otherwise the first step would fail with an error of shapes, or another model than intended would be trained.
    """
    name = type(encoder).__name__
    if not isinstance(encoder, SessionEncoder):
        raise UserError(f"{name}: must be a subclass of arnn_lightning.encoders.SessionEncoder")
    if not isinstance(getattr(encoder, "hidden_size", None), int):
        raise UserError(f"{name}: must set hidden_size, the width of its query, to an integer")
    state = encoder.initial_state(CHECKED_SLOTS)
    if not isinstance(state, tuple) or not all(isinstance(part, Tensor) for part in state):
        raise UserError(f"{name}.initial_state: must return a tuple of tensors")
    for part in state:
        if part.dim() < 2 or part.shape[-2] != CHECKED_SLOTS:
            raise UserError(
                f"{name}.initial_state: every part must have the shape (..., batch_size, width), not "
                f"{tuple(part.shape)} for batch_size={CHECKED_SLOTS}"
            )
        if not part.is_meta and bool(torch.count_nonzero(part)):
            raise UserError(f"{name}.initial_state: must return zeros, to which the state of every session is reset")
