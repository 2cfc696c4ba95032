"""The bounded field types that every request body is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def printable(text: str) -> str:
    """Text that a database, a log line and a terminal can carry. Raises ValueError."""
    if not text.isprintable():
        raise ValueError("has characters that cannot be printed; use letters, digits and punctuation")
    return text


Name = Annotated[str, Field(min_length=1, max_length=120), AfterValidator(printable)]
PathText = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(printable)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Body(BaseModel):
    """A request body: unknown fields are refused, numbers are finite, `3.0` and `"3"` are not the integer 3."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True, frozen=True)
