"""The JSON bodies of requests and responses; the description of the API is generated from them."""

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
)

from arnn_lightning.serving import MAX_SEEN


def _require_unicode(text: str) -> str:
    """JSON can contain halves of a surrogate pair, which no answer could contain."""
    if not text.isascii() and text != text.encode(errors="ignore").decode():
        raise ValueError("must be valid Unicode")
    return text


def _whole(number: Any) -> Any:
    """5.0 is an integer in JSON Schema, and in what many clients send."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


Text = Annotated[StrictStr, AfterValidator(_require_unicode)]
Integer = Annotated[StrictInt, BeforeValidator(_whole)]
Id = Integer | Text
Value = StrictBool | StrictInt | StrictFloat | Text | None
MAX_BATCH, MAX_K = 256, 1_000


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Visitor(Strict):
    """The visitor: a profile (attribute -> value or values), a user of the training data, or neither."""

    profile: dict[Text, Value | list[Value]] | None = Field(None, max_length=1_000)
    user: Id | None = None


NOBODY = Visitor(profile=None)


class Lists(Strict):
    """Options of a list."""

    k: Integer = Field(20, ge=1, le=MAX_K)
    exclude_seen: StrictBool = False
    items: list[Id] | None = None
    exclude_items: list[Id] | None = None


class Prefix(Visitor):
    """A session so far: the ids of its items, the latest last."""

    session: list[Id] = Field(max_length=MAX_SEEN)


class RecommendRequest(Prefix, Lists):
    pass


class BatchRequest(Lists):
    sessions: list[Prefix] = Field(max_length=MAX_BATCH)


class ClickRequest(Lists):
    item: Id


class Item(BaseModel):
    id: Id
    score: float
    title: str | None


class UnknownParts(BaseModel):
    """Ignored parts: unknown items and users, attributes that the model does not use, values unseen in training."""

    items: list[Id]
    attributes: list[str]
    values: list[tuple[str, str]]
    users: list[Id]


class RecommendResponse(BaseModel):
    items: list[Item]
    unknown: UnknownParts
    model: str


class BatchResponse(BaseModel):
    lists: list[RecommendResponse]


class SessionResponse(BaseModel):
    id: str
    unknown: UnknownParts
    model: str


class Problem(BaseModel):
    """The reason why a request failed, in one sentence."""

    detail: str


class Health(BaseModel):
    status: str
    model: str
    name: str
    items: int
