"""The base class of fusions: a session encoder and the user's contexts in one model, trained together.

B batch slots, D embedding, H width of the query.
"""

from torch import Tensor

from arnn_lightning.batch import Contexts, State, StepInput
from arnn_lightning.encoders.base import SessionEncoder
from arnn_lightning.nn.contexts import ContextEmbedding


class FusionEncoder(SessionEncoder):
    """A session encoder with c (B, D), the sum of the embeddings of all that is known of the user.

    A subclass implements ``project`` and ``fuse``, and ``initial_state`` where it adds to the state.

    Args:
        session: the session encoder; its query is as wide as that of the fusion.
        n_categories: number of categories of all single-valued fields together.
        n_binary: number of binary fields.
        embedding_size: D.

    Raises:
        UserError: in a subclass, where ``session`` lacks what it needs.
    """

    uses_contexts = True

    def __init__(self, session: SessionEncoder, n_categories: int, n_binary: int, embedding_size: int) -> None:
        super().__init__()
        self.session = session
        self.hidden_size, self.last_n_events = session.hidden_size, session.last_n_events
        self.contexts = ContextEmbedding(n_categories, n_binary, embedding_size)

    def project(self, context_BD: Tensor) -> Tensor:
        """(B, ...) what ``fuse`` uses of c: the same at every event of a session."""
        raise NotImplementedError(f"{type(self).__name__} must implement project()")

    def fuse(self, term: Tensor, step: StepInput, state: State) -> tuple[Tensor, State]:
        """The session encoder's step with the projected c -> query (B, H) and the next state."""
        raise NotImplementedError(f"{type(self).__name__} must implement fuse()")

    def initial_state(self, batch_size: int) -> State:
        return self.session.initial_state(batch_size)

    def user_terms(self, contexts: Contexts) -> Tensor:
        return self.project(self.contexts(contexts))

    def encode(self, step: StepInput, state: State) -> tuple[Tensor, State]:
        term = self.user_terms(step.contexts) if step.user_terms is None else step.user_terms
        return self.fuse(term, step._replace(user_terms=None), state)
