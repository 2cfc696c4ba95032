"""The bounded field types that every request body is made of."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Asking = TypeVar("Asking", bound=str | dict[str, Any])
# As ECMA 262 writes them, for the description: what `printable`, `lines` and `trimmed` take.
PRINTABLE = {"pattern": r"^(?:[^\p{C}\p{Z}]| )*$"}
LINES = {"pattern": r"^(?:[^\p{C}\p{Z}]|[ \n\t])*$"}
TRIMMED = {"pattern": r"^[^\p{C}\p{Z}]+(?: +[^\p{C}\p{Z}]+)*$"}
EXACT = 2**53  # up to here a float is one integer
DEEPEST = 20  # levels of a written policy; legal ones have fewer than 6


def printable(text: str) -> str:
    """Text that a database, a log line and a terminal can carry. Raises ValueError."""
    if not text.isprintable():
        raise ValueError("has characters that cannot be printed; use letters, digits and punctuation")
    return text


def lines(text: str) -> str:
    """The same with line breaks and tabs. Raises ValueError."""
    for line in text.replace("\t", "\n").split("\n"):
        printable(line)
    return text


def trimmed(text: str) -> str:
    """A word as it would be looked for. Raises ValueError."""
    if text != text.strip():
        raise ValueError("has a blank at its beginning or end; leave it out")
    return text


def different(texts: list[str]) -> list[str]:
    """Raises ValueError where one appears twice."""
    for place, text in enumerate(texts):
        if text in texts[:place]:
            raise ValueError(f"{text!r} appears twice; once is enough")
    return texts


def whole(value: object) -> object:
    """A number without a fraction as an integer, which a field of any number takes too; other values as they are."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT else value


def shallow(value: Asking) -> Asking:
    """A policy, by name or written out, that every walk over it can take. Raises ValueError."""
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [
            part
            for one in level
            for part in (one.values() if isinstance(one, dict) else one if isinstance(one, list) else ())
            if isinstance(part, dict | list)
        ]
        if not level:
            return value
    raise ValueError(f"is nested more than {DEEPEST} deep; a policy is an object of options and terms")


Name = Annotated[str, Field(min_length=1, max_length=120, json_schema_extra=PRINTABLE), AfterValidator(printable)]
Notes = Annotated[str, Field(max_length=4000, json_schema_extra=LINES), AfterValidator(lines)]
Tag = Annotated[str, Field(min_length=1, max_length=40, json_schema_extra=TRIMMED), AfterValidator(printable), AfterValidator(trimmed)]
Tags = Annotated[list[Tag], Field(max_length=20, json_schema_extra={"uniqueItems": True}), AfterValidator(different)]
PathText = Annotated[str, Field(min_length=1, max_length=1000, json_schema_extra=PRINTABLE), AfterValidator(printable)]
Shallow = AfterValidator(shallow)
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]

NOTES = "what is worth remembering of it, up to 4,000 characters"
TAGS = "words to find it again by, up to 20"


class Body(BaseModel):
    """A request body: unknown fields are refused, numbers are finite, `"3"` is not the integer 3, and `3.0` is, as in JSON Schema."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def read_whole_numbers(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        return {name: [whole(one) for one in value] if isinstance(value, list) else whole(value) for name, value in given.items()}


class Asked(BaseModel):
    """Query parameters: unknown ones are refused, numbers are finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)
