"""What every encoder is. B batch slots, H width of a query."""

from torch import Tensor, nn

from arnn_lightning.batch import Contexts, State, StepInput


class SessionEncoder(nn.Module):
    """Encodes one event per batch slot into a query vector; may keep a recurrent state.

    A subclass sets ``hidden_size`` and implements ``encode``, and ``initial_state`` where it has a state. The same
    function is trained, evaluated and served: it depends on the step and the state alone.

    Attributes:
        hidden_size: H.
        uses_contexts: whether ``encode`` reads the users' contexts.
        last_n_events: how many of a session's last events, the current one included, ``encode`` reads the items of.
    """

    hidden_size: int
    uses_contexts: bool = False
    last_n_events: int = 1

    def initial_state(self, batch_size: int) -> State:
        """The state before a session's first event: tensors (..., B, width), zeros; empty without a memory."""
        return ()

    def encode(self, step: StepInput, state: State) -> tuple[Tensor, State]:
        """One event -> query (B, H) and the next state. Resets at session starts are already applied."""
        raise NotImplementedError(f"{type(self).__name__} must implement encode()")

    def user_terms(self, contexts: Contexts) -> Tensor | None:
        """(N, ...) what ``encode`` computes from the contexts alone, so that it can be computed once per user."""
        return None
